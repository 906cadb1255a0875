//! What requests go to: a controller, or layers on several.
//!
//! Knows how a name becomes targets of a poller; must not know what is requested.

use std::sync::Arc;

use kiovec::layer::{Direct, Disk, Plan, Stack};
use kiovec::memory::DmaSpace;
use kiovec::pci::Vfio;
use kiovec::{Controller, Poller, QueueOptions, Target};

use crate::Failure;
use crate::plan::Geometry;

/// Controllers that are open, and what stands on them.
#[derive(Debug)]
pub struct Device {
    plan: Plan,
    /// One for each name in the plan, from left to right.
    controllers: Vec<Arc<Controller>>,
    space: DmaSpace,
}

/// A poller whose requests go through what a device has of layers.
pub trait Route: kiovec::layer::Layer + Sized {
    /// Makes one target of the same namespace of each controller.
    fn join(device: &Device, poller: &mut Poller<Self>, namespaces: &[Target]) -> Result<Target, Failure>;
}

impl Route for Direct {
    fn join(_: &Device, _: &mut Poller<Direct>, namespaces: &[Target]) -> Result<Target, Failure> {
        namespaces.first().copied().ok_or_else(|| "no controller".into())
    }
}

impl Route for Stack {
    fn join(device: &Device, poller: &mut Poller<Stack>, namespaces: &[Target]) -> Result<Target, Failure> {
        let mut next = namespaces.iter();
        // In the order of the names.
        let mut disk = |name: &str| match next.next() {
            Some(namespace) => Disk::new(poller, *namespace),
            None => Err(kiovec::Error::InvalidInput(format!("{name} is not open"))),
        };
        let stack = Stack::new(&device.plan, &device.space, &mut disk)?;
        Ok(poller.add_layer(stack)?)
    }
}

impl Device {
    /// Opens `0000:00:10.0`, or `mirror(0000:01:00.0,0000:02:00.0)`.
    pub fn open(name: &str) -> Result<Device, Failure> {
        let (plan, space): (Plan, _) = (name.parse()?, DmaSpace::new()?);
        let open = |name: &str| Ok(Controller::open(Arc::new(Vfio::open(name.parse()?, &space)?), &space)?);
        let controllers = plan.devices().into_iter().map(open).collect::<Result<_, Failure>>()?;
        Ok(Device { plan, controllers, space })
    }

    /// Where memory for it comes from.
    pub fn space(&self) -> &DmaSpace {
        &self.space
    }

    /// Whether there are layers.
    pub fn is_layered(&self) -> bool {
        matches!(self.plan, Plan::Layer { .. })
    }

    /// A queue pair on each controller, and on them a target for each namespace.
    pub fn connect<L: Route>(
        &self,
        poller: &mut Poller<L>,
        options: QueueOptions,
        nsids: &[u32],
    ) -> Result<Vec<(u32, Target)>, Failure> {
        let mut queues = Vec::new();
        for controller in &self.controllers {
            queues.push(poller.add_queue(controller, options)?);
        }
        let mut targets = Vec::new();
        for nsid in nsids {
            let mut namespaces = Vec::new();
            for (controller, queue) in self.controllers.iter().zip(&queues) {
                namespaces.push(poller.add_namespace(*queue, &controller.namespace(*nsid)?)?);
            }
            targets.push((*nsid, L::join(self, poller, &namespaces)?));
        }
        Ok(targets)
    }

    /// What it is by each namespace that its first controller has.
    pub fn namespaces(&self) -> Result<Vec<Geometry>, Failure> {
        let mut poller = Poller::<Stack>::with_layers(1);
        let nsids = self.controllers.first().ok_or("no controller")?.active_namespaces()?;
        let targets = self.connect(&mut poller, QueueOptions::default(), &nsids)?;
        let geometry = |(nsid, target)| {
            let geometry = poller.geometry(target).ok_or_else(|| format!("namespace {nsid} has no size"))?;
            Ok(Geometry { nsid, blocks: geometry.blocks, block: geometry.block_size() as u64 })
        };
        targets.into_iter().map(geometry).collect()
    }
}

//! The route of a worker's requests: a poller, a queue pair on each controller, and the layers
//! above them, if there are any.
//!
//! Knows what stands between a request and its controllers; must not know what the requests are.

use std::hint::cold_path;

use kiovec::layer::{Direct, Disk, Geometry, Layer, Stack};
use kiovec::{Done, Namespace, Poller, QueueId, QueueOptions, Target};

use super::counters::Counters;
use super::layers::Counted;
use super::recovery::Recovery;
use crate::device::Opened;
use crate::{Error, Result};

pub struct Route<L: Layer> {
    pub poller: Poller<L>,
    pub target: Target,
    /// One for each controller.
    queues: Vec<QueueId>,
    /// What is submitted in one go is held back until it is complete, so that neighbours share commands.
    gathers: bool,
}

impl Route<Direct> {
    /// Straight to the namespace of a device without layers. The type says that there are none, so
    /// that a completion need not look for any.
    pub fn direct(
        opened: &Opened,
        namespaces: &[Namespace],
        requests: u32,
        options: QueueOptions,
    ) -> Result<Route<Direct>> {
        let mut poller = Poller::new(requests);
        let (queues, targets) = connect(&mut poller, opened, namespaces, options)?;
        let target = targets.first().copied();
        let target = target.ok_or_else(|| Error::Usage(format!("{} is no device", opened.device)))?;
        Ok(Route { poller, target, queues, gathers: false })
    }
}

impl Route<Stack> {
    /// Through the layers of a device.
    pub fn layered(
        opened: &Opened,
        namespaces: &[Namespace],
        requests: u32,
        options: QueueOptions,
    ) -> Result<Route<Stack>> {
        let mut poller = Poller::with_layers(requests);
        let (queues, targets) = connect(&mut poller, opened, namespaces, options)?;
        let stack = opened.stack(|index| Disk::new(&poller, targets[index]))?;
        let target = poller.add_layer(stack)?;
        Ok(Route { poller, target, queues, gathers: false })
    }

    pub fn geometry(&self) -> Option<Geometry> {
        self.poller.geometry(self.target)
    }

    /// What each layer has counted, for those that count.
    pub fn counted(&self, opened: &Opened) -> Vec<Counted> {
        let stack = self.poller.layer(self.target);
        let layers = stack.map(Stack::layers).unwrap_or_default();
        opened
            .device
            .layers()
            .into_iter()
            .zip(layers)
            .filter_map(|(plan, layer)| Counted::by(plan, layer))
            .collect()
    }
}

impl<L: Layer> Route<L> {
    /// The same, with neighbours in one go sharing commands, or without.
    pub fn gathering(self, gathers: bool) -> Route<L> {
        Route { gathers, ..self }
    }

    /// Polls; what `f` submits is one go.
    #[inline(always)]
    pub fn poll(&mut self, f: impl FnMut(Done<'_, L>)) -> usize {
        if !self.gathers {
            return self.poller.poll(f);
        }
        cold_path();
        self.begin();
        let count = self.poller.poll(f);
        self.go();
        count
    }

    /// What is submitted from now on is one go.
    pub fn begin(&mut self) {
        if self.gathers {
            self.queues.iter().for_each(|queue| self.poller.plug(*queue));
        }
    }

    /// All of it is submitted.
    pub fn go(&mut self) {
        if self.gathers {
            self.queues.iter().for_each(|queue| self.poller.unplug(*queue));
        }
    }

    /// What its queue pairs have counted since they were created.
    pub fn counters(&self) -> Counters {
        self.queues.iter().map(|queue| Counters::from(self.poller.stats(*queue))).sum()
    }

    /// What its queue pairs did about commands that took too long.
    pub fn recovery(&self) -> Recovery {
        self.queues.iter().map(|queue| Recovery::from(self.poller.stats(*queue))).sum()
    }

    /// Commands that each of its queue pairs can hold.
    pub fn depth(&self) -> usize {
        self.queues.iter().map(|queue| self.poller.depth(*queue)).min().unwrap_or(0)
    }
}

/// Creates a queue pair on each controller, and makes its namespace a target.
fn connect<L: Layer>(
    poller: &mut Poller<L>,
    opened: &Opened,
    namespaces: &[Namespace],
    options: QueueOptions,
) -> Result<(Vec<QueueId>, Vec<Target>)> {
    let (mut queues, mut targets) = (Vec::new(), Vec::new());
    for (controller, namespace) in opened.controllers.iter().zip(namespaces) {
        let queue = poller.add_queue(controller, options)?;
        targets.push(poller.add_namespace(queue, namespace)?);
        queues.push(queue);
    }
    Ok((queues, targets))
}

//! What a seed runs on: controllers, pollers with queues, namespaces and stacks of layers, faults.
//!
//! Knows how all of that is drawn and put together; must not know what is done with it.

use std::sync::Arc;

use std::time::Duration;

use kiovec::layer::{Disk as Bottom, Plan, Stack};
use kiovec::memory::DmaSpace;
use kiovec::pci::Clock;
use kiovec::spec::Cns;
use kiovec::{Controller, DataForm, Error, Poller, QueueId, QueueOptions, QueueStats, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};

use crate::chance::Chance;
use crate::faults::{self, Act, Planned};
use crate::memory::Memories;
use crate::model::Model;
use crate::notices::Notices;
use crate::reach::{Point, Reached};
use crate::trace::{Step, Trace};
use crate::tree::{Disk, Tree};

/// Where Identify Controller has the times of Command Retry Delay.
const CRDT: usize = 128;
/// Namespaces that requests go to directly, and those below a stack, at most.
const MOST_STACKED: usize = 4;

/// A poller, and what it owns.
pub struct Station {
    /// It.
    pub poller: Poller<Stack>,
    /// The clock that its deadlines run by.
    pub clock: Clock,
    /// Its queue pairs.
    pub queues: Vec<QueuePair>,
    /// Requests that it has room for.
    pub room: usize,
}

/// A queue pair of a poller.
pub struct QueuePair {
    /// Its controller.
    pub controller: usize,
    /// Its name.
    pub id: QueueId,
    /// The turn in which it is plugged no more, if it is.
    pub plugged: Option<u64>,
    /// A namespace behind it.
    pub target: Option<Target>,
    /// What it had done after the last poll.
    pub seen: QueueStats,
}

/// Something that requests go to: a namespace, or a stack.
pub struct Volume {
    /// What may come of a request.
    pub tree: Tree,
    /// What may be on it.
    pub model: Model,
    /// The pollers and targets through which it is reached.
    pub ways: Vec<(usize, Target)>,
    /// No layers.
    pub direct: bool,
    /// It can compare.
    pub compares: bool,
    /// Blocks.
    pub blocks: u64,
    /// Where the last request to it ended: the next one may go on there.
    pub cursor: u64,
}

/// A controller's settings.
#[derive(Debug, Clone)]
pub struct Device {
    /// The emulator's.
    pub settings: String,
    /// Namespaces that requests go to. There is one more, which changes.
    pub namespaces: u32,
    /// Units of 100 ms that it asks to wait, by Command Retry Delay.
    pub retry_delays: Option<[u16; 3]>,
    /// Blocks of each.
    pub blocks: u64,
    /// Namespaces that requests go to directly; the others are below a stack.
    pub direct: u32,
    /// It has a volatile write cache, which can be lost.
    pub cached: bool,
    /// What stops it takes its power as well.
    power: bool,
    /// Abort Command Limit, less one.
    pub acl: u8,
    sgl: bool,
    compares: bool,
}

/// All of it.
pub struct World {
    /// By number.
    pub emulators: Vec<Emulator>,
    /// The driver's side of them.
    pub controllers: Vec<Arc<Controller>>,
    /// What they are like.
    pub devices: Vec<Device>,
    /// The pollers.
    pub stations: Vec<Station>,
    /// What requests go to.
    pub volumes: Vec<Volume>,
    /// Memory.
    pub memories: Memories,
    /// What goes wrong.
    pub plan: Vec<Planned>,
    /// What controllers report of their own accord.
    pub notices: Notices,
}

impl Device {
    /// Faults, and what Identify says of delays.
    pub fn identified(&self, faults: Faults) -> Faults {
        let bytes = self.retry_delays.iter().flatten().flat_map(|units| units.to_le_bytes());
        faults.identify(Cns::CONTROLLER, 0, CRDT, bytes.collect::<Vec<u8>>())
    }
}

fn device(chance: &mut Chance, block: u64, direct: u32, stacked: u32) -> Device {
    let blocks = chance.within(64..400);
    let namespaces = direct + stacked;
    let mdts = chance.pick(&[0, 1, 1, 2, 3]);
    let noiob = if chance.one_in(4) { chance.within(1..64) } else { 0 };
    let sgl = chance.pick(&["off", "on", "dword"]);
    let mqes = chance.pick(&[1, 3, 255, 255]);
    // Each is none, or not below those before.
    let awupf = if chance.one_in(3) { 0 } else { chance.within(1..64) };
    let nawupf = if chance.one_in(2) { 0 } else { awupf + chance.below(20) };
    let nabspf = if chance.one_in(2) { 0 } else { awupf.max(nawupf) + chance.below(20) };
    let (wzsl, dmrsl) = (chance.below(3), if chance.one_in(2) { 0 } else { chance.within(1..50) });
    let oncs = chance.pick(&[29, 29, 29, 29, 28, 25, 21, 16]);
    let seed = chance.next() as u32;
    // Layers remember what they have seen; what they promise of a medium that forgets is nothing.
    let cached = stacked == 0 && !chance.one_in(3);
    let (cache, power) = (if cached { chance.within(4..300) } else { 0 }, cached && chance.one_in(2));
    // Of a source of its own: everything else is drawn as it was before there were any.
    let dbbuf = if Chance::new(seed.into()).one_in(3) { "on" } else { "off" };
    let (acl, vwc) = (chance.pick(&[0, 0, 1, 7]), if cached || chance.one_in(2) { "on" } else { "off" });
    let settings = format!(
        "size={},block={block},media=ram,namespaces={},mdts={mdts},noiob={noiob},sgl={sgl},mqes={mqes},\
         awupf={awupf},nawupf={nawupf},nabspf={nabspf},wzsl={wzsl},dmrsl={dmrsl},oncs={oncs},queues=8,seed={seed},\
         acl={acl},to=1,vwc={vwc},write_cache={cache},dbbuf={dbbuf}",
        blocks * block,
        namespaces + 1,
    );
    let retry_delays = chance.one_in(2).then_some([1, 2, 3]);
    Device {
        settings,
        namespaces,
        retry_delays,
        acl,
        blocks,
        direct,
        cached,
        power,
        sgl: sgl != "off",
        compares: oncs & 1 != 0,
    }
}

/// Longer than most delays, or shorter.
const COMMAND_TIMEOUTS: [u64; 5] = [25, 25, 25, 5, 1];

fn options(chance: &mut Chance, device: &Device) -> QueueOptions {
    let data = match device.sgl {
        true => chance.pick(&[DataForm::Auto, DataForm::Prp, DataForm::Sgl]),
        false => chance.pick(&[DataForm::Auto, DataForm::Prp]),
    };
    QueueOptions::default()
        .depth(chance.pick(&[1, 2, 3, 4, 6, 16, 32]))
        .data(data)
        .max_transfer(chance.pick(&[2 << 20, 2 << 20, 16 << 10, 4096]))
        .merge(!chance.one_in(4))
        .gather(chance.one_in(4))
        .command_timeout(Duration::from_millis(chance.pick(&COMMAND_TIMEOUTS)))
}

fn emulate(settings: &str) -> Result<Emulator, String> {
    let config = Config::parse(settings).map_err(|error| error.to_string())?;
    Emulator::stepped(config).map_err(|error| error.to_string())
}

impl World {
    /// Draws one. What cannot be put together is an error.
    pub fn draw(
        chance: &mut Chance,
        memories: Memories,
        trace: &mut Trace,
        reached: &mut Reached,
    ) -> Result<World, String> {
        let block = chance.pick(&[512, 4096]);
        let count = chance.weighted(&[(3, 1), (3, 2), (2, 3)]);
        let stacked = if chance.below(5) < 3 { chance.count(1..MOST_STACKED + 1) } else { 0 };
        let devices: Vec<Device> = (0..count)
            .map(|number| {
                let direct = chance.within(1..3) as u32;
                let here = (number..stacked).step_by(count).count() as u32;
                device(chance, block, direct, here)
            })
            .collect();
        for device in &devices {
            trace.note(0, &Step::World { what: device.settings.clone() });
        }
        let shapes: Vec<(u32, u64)> =
            devices.iter().map(|device| (device.namespaces, device.blocks)).collect();
        let mut plan = faults::draw(chance, &shapes, 400 / count as u64);
        for planned in &mut plan {
            bring_up(planned, &devices[planned.controller], memories.space(), reached)?;
            trace.note(0, &Step::Fault { name: planned.name(), what: planned.drawn.to_string() });
        }
        let mut world = World {
            emulators: Vec::new(),
            controllers: Vec::new(),
            devices,
            stations: Vec::new(),
            volumes: Vec::new(),
            memories,
            plan,
            notices: Notices::default(),
        };
        world.open(reached)?;
        world.add_stations(chance, reached)?;
        world.add_namespaces(block)?;
        reached.note_if(stacked == 0, Point::NoLayers);
        if stacked > 0 {
            world.add_stack(chance, trace, stacked, block)?;
            reached.note(Point::Layered);
        }
        for (number, emulator) in world.emulators.iter().enumerate() {
            let faults = faults::faults(&world.plan, number, chance.next());
            let faults = world.devices[number].identified(faults);
            emulator.set_faults(if world.devices[number].power { faults.power_loss() } else { faults });
        }
        Ok(world)
    }

    fn open(&mut self, reached: &mut Reached) -> Result<(), String> {
        for device in &self.devices {
            let emulator = emulate(&device.settings)?;
            emulator.set_faults(device.identified(Faults::default()));
            let controller = Controller::open(emulator.function(), self.memories.space())
                .map_err(|error| error.to_string())?;
            reached.note_if(controller.has_shadow_doorbells(), Point::ShadowsArmed);
            let spare = controller.namespace(device.namespaces + 1).map_err(|error| error.to_string())?;
            self.notices.add(spare, emulator.counters().resets);
            self.controllers.push(controller);
            self.emulators.push(emulator);
        }
        Ok(())
    }

    fn add_stations(&mut self, chance: &mut Chance, reached: &mut Reached) -> Result<(), String> {
        for _ in 0..chance.count(1..3) {
            let room = chance.count(8..33);
            let mut poller = Poller::with_layers(room as u32);
            let mut queues = Vec::new();
            for (number, (controller, device)) in self.controllers.iter().zip(&self.devices).enumerate() {
                let pairs = if chance.one_in(4) { 2 } else { 1 };
                reached.note_if(pairs > 1, Point::TwoQueues);
                for _ in 0..pairs {
                    let options = options(chance, device);
                    let sgl = device.sgl && options.data != DataForm::Prp;
                    reached.note(if sgl { Point::Sgl } else { Point::Prp });
                    let id = poller.add_queue(controller, options).map_err(|error| error.to_string())?;
                    queues.push(QueuePair {
                        controller: number,
                        id,
                        plugged: None,
                        target: None,
                        seen: QueueStats::default(),
                    });
                }
            }
            let clock = self.emulators[0].function().clock();
            self.stations.push(Station { poller, clock, queues, room });
        }
        reached.note_if(self.stations.len() > 1, Point::TwoPollers);
        Ok(())
    }

    /// Namespaces that requests go to directly, through all queues there are.
    fn add_namespaces(&mut self, block: u64) -> Result<(), String> {
        for controller in 0..self.controllers.len() {
            let Device { direct, blocks, .. } = self.devices[controller];
            for nsid in 1..=direct {
                let namespace =
                    self.controllers[controller].namespace(nsid).map_err(|error| error.to_string())?;
                let mut ways = Vec::new();
                for (number, station) in self.stations.iter_mut().enumerate() {
                    for queue in station.queues.iter_mut().filter(|queue| queue.controller == controller) {
                        let target = station.poller.add_namespace(queue.id, &namespace);
                        let target = target.map_err(|error| error.to_string())?;
                        queue.target.get_or_insert(target);
                        ways.push((number, target));
                    }
                }
                self.volumes.push(Volume {
                    tree: Tree::Disk(Disk { controller, nsid, blocks }),
                    model: Model::new(block as usize, blocks).cached(self.devices[controller].cached),
                    ways,
                    direct: true,
                    compares: self.devices[controller].compares,
                    blocks,
                    cursor: 0,
                });
            }
        }
        Ok(())
    }

    fn add_stack(
        &mut self,
        chance: &mut Chance,
        trace: &mut Trace,
        disks: usize,
        block: u64,
    ) -> Result<(), String> {
        let count = self.controllers.len();
        let disks: Vec<Disk> = (0..disks)
            .map(|number| {
                let Device { direct, blocks, .. } = self.devices[number % count];
                Disk { controller: number % count, nsid: direct + 1 + (number / count) as u32, blocks }
            })
            .collect();
        let tree = Tree::draw(chance, &disks);
        let text = tree.text(block);
        trace.note(0, &Step::World { what: text.clone() });
        let plan: Plan = text.parse().map_err(|error| format!("{text}: {error}"))?;
        let number = chance.count(0..self.stations.len());
        let station = &mut self.stations[number];
        let (controllers, space) = (&self.controllers, self.memories.space().clone());
        let Station { poller, queues, .. } = station;
        let stack = Stack::new(&plan, &space, &mut |name| {
            let missing = || Error::InvalidInput(format!("there is no disk {name}"));
            let (controller, nsid) = name.split_once('.').ok_or_else(missing)?;
            let (controller, nsid): (usize, u32) =
                controller.parse().ok().zip(nsid.parse().ok()).ok_or_else(missing)?;
            let here: Vec<QueueId> =
                queues.iter().filter(|queue| queue.controller == controller).map(|queue| queue.id).collect();
            let target =
                poller.add_namespace(chance.pick(&here), &controllers[controller].namespace(nsid)?)?;
            Bottom::new(poller, target)
        });
        let target =
            stack.and_then(|stack| poller.add_layer(stack)).map_err(|error| format!("{text}: {error}"))?;
        let blocks = poller.geometry(target).map_or(0, |geometry| geometry.blocks);
        if blocks != tree.blocks() {
            return Err(format!("{text} has {blocks} blocks, and should have {}", tree.blocks()));
        }
        self.volumes.push(Volume {
            model: Model::new(block as usize, blocks),
            tree,
            ways: vec![(number, target)],
            direct: false,
            compares: false,
            blocks,
            cursor: 0,
        });
        Ok(())
    }
}

/// Brings a controller up that has a fault then, if one is planned: whatever comes of it, it comes, and a controller
/// that is still there can be opened afterwards.
fn bring_up(
    planned: &mut Planned,
    device: &Device,
    space: &DmaSpace,
    reached: &mut Reached,
) -> Result<(), String> {
    let (settings, effect) = match planned.act() {
        Some(Act::BringUp(effect)) => (device.settings.clone(), Some(effect)),
        Some(Act::NeverReady) => (format!("{},never_ready=on", device.settings), None),
        _ => return Ok(()),
    };
    let emulator = emulate(&settings)?;
    let fault =
        effect.map(|effect| Fault::new(Commands::admin(), effect).after(planned.drawn_after() % 4).once());
    emulator.set_faults(fault.into_iter().fold(Faults::default(), Faults::with));
    let first = Controller::open(emulator.function(), space);
    let struck = effect.is_none() || emulator.injections().iter().any(|struck| *struck > 0);
    planned.struck = u64::from(struck);
    reached.note_if(struck && first.is_err(), Point::OpenRefused);
    if let (true, Ok(_), None) = (struck, &first, effect) {
        return Err("a controller that is never ready was opened".into());
    }
    drop(first);
    emulator.set_faults(Faults::default());
    match (Controller::open(emulator.function(), space), effect) {
        (Ok(_), Some(Effect::Unplug)) if struck => Err("a controller that is gone was opened".into()),
        (Err(error), Some(effect)) if effect != Effect::Unplug => {
            Err(format!("after {effect:?} at bring-up, the controller cannot be opened: {error}"))
        }
        _ => Ok(()),
    }
}

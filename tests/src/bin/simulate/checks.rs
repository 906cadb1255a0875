//! What must hold when a seed is over: nothing is left behind, and every medium holds what it may hold.
//!
//! Knows what a fresh start looks like; must not know how the seed went.

use std::sync::Arc;
use std::time::Duration;

use kiovec::layer::Stack;
use kiovec::{Controller, IoContainer, Poller, QueueOptions, Refusal, Rejected, State, Target};
use kiovec_emulator::{Commands, Effect, Fault, Faults};

use crate::bench::Bench;
use crate::events::What;
use crate::faults::{Act, Planned};
use crate::notices::Kind;
use crate::reach::Point;
use crate::run::{Outcome, Run};
use crate::tree::{Disk, Fates};

/// Turns for anything that nothing stands in the way of.
const TURNS: usize = 20_000;
/// Polls in which a poller looks after its controllers once, and of these as many as it takes until an event is told;
/// and until none comes any more that may.
const ATTEND: usize = 1100;
const HEARD: usize = 100;
const SILENT: usize = 30;
/// The same where a controller is lost, which takes many polls to be found.
const LOST_TURNS: usize = 300_000;
/// Rounds in which a controller finishes what nobody waits for: completions that were delayed or come twice.
const DRAIN: usize = 300;

impl Run {
    /// Ends the seed.
    pub fn end(mut self, outcome: &mut Outcome) -> Result<(), String> {
        self.end_events()?;
        self.count()?;
        self.unplug_all();
        self.cure();
        self.lose_power();
        self.read_back()?;
        self.check_notices()?;
        self.check_slots()?;
        self.check_nodes()?;
        let in_reset = |planned: &Planned| planned.is_in_reset() && planned.struck > 0;
        let forfeited = self.bench.forfeited || self.bench.plan.iter().any(in_reset);
        if !forfeited && self.bench.memories.free().map_err(|error| error.to_string())? != self.free {
            return Err("memory is missing at the end".into());
        }
        let in_use = self.legs_in_use();
        self.take_down();
        self.check_media(&in_use)?;
        self.reopen()?;
        let Run { bench, .. } = self;
        outcome.reached = bench.reached;
        outcome.faults = bench.plan.iter().map(|planned| (planned.kind, planned.struck)).collect();
        drop((bench.emulators, bench.volumes));
        bench.memories.end()
    }

    /// All sets are settled, and told so.
    fn end_events(&mut self) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        for (number, station) in stations.iter_mut().enumerate() {
            bench.scan(station, number)?;
            for node in std::mem::take(&mut bench.active) {
                if bench.nodes[node].station != number {
                    bench.active.push(node);
                    continue;
                }
                let Some(event) = bench.nodes[node].event.take() else { continue };
                let state = station.poller.state(event);
                let kept = matches!(bench.nodes[node].what, What::Set { .. } | What::Open(_));
                if !kept || !matches!(state, Some(State::Settled(..))) {
                    return Err(format!("event {node} is {state:?} when all requests are over"));
                }
                if bench.nodes[node].moments.is_some_and(|moments| moments != [true; 2]) {
                    return Err(format!(
                        "of event {node}, the moments {:?} were told",
                        bench.nodes[node].moments
                    ));
                }
                station.poller.release(event);
            }
        }
        Ok(())
    }

    /// What the queues, layers and controllers have counted.
    fn count(&mut self) -> Result<(), String> {
        self.count_recovery()?;
        let Run { stations, bench, .. } = self;
        let mut faults = vec![0; bench.emulators.len()];
        for station in stations.iter() {
            for queue in &station.queues {
                let stats = station.poller.stats(queue.id);
                bench.reached.add(Point::Split, stats.splits);
                bench.reached.add(Point::Merge, stats.merges);
                bench.reached.add(Point::Bounce, stats.bounces);
                bench.reached.add(Point::Spurious, stats.faults);
                faults[queue.controller] += stats.faults;
            }
        }
        for (controller, emulator) in bench.emulators.iter().enumerate() {
            let counters = emulator.counters();
            let extra = counters.faults.doubled + counters.faults.corrupted;
            let doorbells = counters.bad_doorbells > 0 && !bench.plights[controller].lost;
            let full = counters.full_queues > 0 && extra == 0;
            if faults[controller] > extra || doorbells || full {
                return Err(format!(
                    "controller {controller}: {} completions that answer nothing; {counters:?}",
                    faults[controller]
                ));
            }
        }
        let bench = &mut self.bench;
        for volume in bench.volumes.iter().filter(|volume| !volume.direct) {
            let (station, target) = volume.ways[0];
            let mut buffers = Vec::new();
            volume.tree.buffers(&mut buffers);
            let layers = self.stations[station].poller.layer(target).map(Stack::layers).unwrap_or_default();
            count_layers(&layers, &buffers, &mut bench.reached)?;
        }
        Ok(())
    }

    /// Every event reaches the application, now that nothing stands in its way: what was raised before, and then as
    /// many more as there are requests, and some.
    fn check_notices(&mut self) -> Result<(), String> {
        let healthy: Vec<usize> =
            (0..self.controllers.len()).filter(|number| !self.bench.plights[*number].lost).collect();
        self.hear(&healthy, SILENT)?;
        for number in healthy.iter().copied() {
            self.bench.notices.settle(number);
        }
        for kind in Kind::ALL.into_iter().chain([Kind::Firmware, Kind::Namespaces]) {
            for number in healthy.iter().copied() {
                let Bench { notices, emulators, chance, .. } = &mut self.bench;
                if !notices.raise(number, &emulators[number], kind, chance) {
                    return Err(format!("controller {number} was not asked to report anything"));
                }
            }
            self.hear(&healthy, 2)?;
        }
        Ok(())
    }

    /// Goes on until everything that controllers have reported was told, and for some rounds more.
    fn hear(&mut self, healthy: &[usize], more: usize) -> Result<(), String> {
        let mut quiet = 0;
        for _ in 0..HEARD {
            for station in &mut self.stations {
                (0..ATTEND).for_each(|_| _ = station.poller.poll(|_| {}));
            }
            (0..4).for_each(|_| self.idle());
            self.listen()?;
            let Bench { notices, emulators, .. } = &mut self.bench;
            let silent = healthy.iter().all(|number| notices.due(*number, &emulators[*number]).is_empty());
            quiet = if silent { quiet + 1 } else { 0 };
            if quiet > more {
                return Ok(());
            }
        }
        let Bench { notices, emulators, .. } = &mut self.bench;
        let due = healthy.iter().map(|number| (*number, notices.due(*number, &emulators[*number])));
        let (number, kinds) = due.max_by_key(|(_, kinds)| kinds.len()).unwrap_or_default();
        Err(format!("controller {number} has reported {kinds:?}, and nobody was told"))
    }

    /// Nothing goes wrong any more, but what is lost stays lost.
    fn cure(&mut self) {
        let bench = &mut self.bench;
        bench.cured = true;
        for (emulator, device) in bench.emulators.iter().zip(&bench.devices) {
            emulator.set_faults(device.identified(Faults::seeded(bench.chance.next()).random_order()));
            emulator.release_all();
        }
        for _ in 0..DRAIN {
            self.idle();
        }
    }

    /// The power fails once more, now that nothing is under way: what a flush has covered is there.
    fn lose_power(&mut self) {
        let bench = &mut self.bench;
        for controller in 0..bench.emulators.len() {
            if bench.caches[controller].is_some() && !bench.plights[controller].lost && bench.chance.one_in(2)
            {
                bench.emulators[controller].power_loss();
            }
        }
        bench.notice_power();
    }

    /// A turn in which nothing is asked for.
    fn idle(&mut self) {
        self.idle_for(Duration::from_micros(100));
    }

    fn idle_for(&mut self, time: Duration) {
        for emulator in &self.bench.emulators {
            emulator.advance(time);
            emulator.step();
        }
    }

    /// Polls all but one; they have nothing to do.
    fn poll_others(&mut self, but: usize) {
        for (_, station) in self.stations.iter_mut().enumerate().filter(|(number, _)| *number != but) {
            station.poller.poll(|_| {});
        }
    }

    /// Carries a request out, whatever its result.
    fn carry_out(
        &mut self,
        station: usize,
        target: Target,
        io: IoContainer,
    ) -> Result<(Result<(), kiovec::Failure>, Vec<u8>), String> {
        let refused = |rejected: Rejected| format!("a request at the end is refused: {}", rejected.reason);
        self.stations[station].poller.submit(target, io).map_err(refused)?;
        let mut back = None;
        for turn in 0..LOST_TURNS {
            let mut twice = false;
            self.stations[station].poller.poll(|done| {
                let result = done.result();
                twice |= back.replace((result, done.take().into_memory().to_vec())).is_some();
            });
            if twice {
                return Err("a request at the end came back twice".into());
            }
            if back.is_some() && self.stations[station].poller.outstanding() == 0 {
                break;
            }
            // A long silence is that of a controller that is lost, or that is reset, for which all stop.
            if turn >= TURNS {
                self.poll_others(station);
            }
            match turn {
                ..TURNS => self.idle(),
                _ if turn % 64 == 0 => self.idle_for(Duration::from_millis(2)),
                _ => {}
            }
        }
        back.ok_or_else(|| "a request at the end never comes back".into())
    }

    /// Reads all there is by every way, in pieces of some blocks.
    fn read_back(&mut self) -> Result<(), String> {
        for volume in 0..self.bench.volumes.len() {
            let all = self.bench.volumes[volume].blocks;
            let ways = self.bench.volumes[volume].ways.clone();
            // Often enough for every leg of a mirror to have its turn.
            let rounds = if self.bench.volumes[volume].tree.has_mirror() { 3 } else { 1 };
            for (number, (station, target)) in ways.into_iter().enumerate() {
                for round in 0..rounds {
                    let most = if number == 0 && round == 0 { all } else { 1 + self.bench.chance.below(all) };
                    let mut lba = 0;
                    while lba < all {
                        let blocks = most.min(all - lba);
                        self.read_one(volume, station, target, lba, blocks)?;
                        lba += blocks;
                    }
                }
            }
        }
        Ok(())
    }

    fn read_one(
        &mut self,
        volume: usize,
        station: usize,
        target: Target,
        lba: u64,
        blocks: u64,
    ) -> Result<(), String> {
        let len = blocks as usize * self.bench.block;
        let mut memory = self.bench.memories.own(len).map_err(|error| error.to_string())?;
        memory.fill(0xee);
        let (result, bytes) = self.carry_out(station, target, IoContainer::read(lba, memory))?;
        let bench = &mut self.bench;
        let fates = Fates { plan: &bench.plan, plights: &bench.plights, cured: true };
        let Volume { tree, model, .. } = &mut bench.volumes[volume];
        match result {
            Ok(()) => model
                .check(lba, &bytes, bench.now)
                .map_err(|why| format!("volume {volume} at the end: {why}")),
            Err(_) if tree.may_fail(&fates, kiovec::Operation::Read, &(lba..lba + blocks)) => Ok(()),
            Err(failure) => Err(format!("volume {volume} cannot be read at the end: {failure}")),
        }
    }

    /// All slots of all queues can be taken at the same time.
    fn check_slots(&mut self) -> Result<(), String> {
        for number in 0..self.stations.len() {
            for queue in 0..self.stations[number].queues.len() {
                let station = &mut self.stations[number];
                let (controller, target) = (station.queues[queue].controller, station.queues[queue].target);
                let Some(target) = target.filter(|_| !self.bench.plights[controller].lost) else { continue };
                let most = station.room.min(station.poller.depth(station.queues[queue].id));
                let emulator = &self.bench.emulators[controller];
                emulator.hold(Commands::io());
                for tag in 0..(most + 1).min(station.room) as u64 {
                    let memory =
                        self.bench.memories.own(self.bench.block).map_err(|error| error.to_string())?;
                    let io = IoContainer::read(tag % 2, memory).no_merge(true);
                    station.poller.submit(target, io).map_err(|rejected| rejected.reason.to_string())?;
                }
                for _ in 0..4 {
                    station.poller.poll(|_| {});
                    emulator.step();
                }
                let held = emulator.held().len();
                emulator.release_all();
                if held != most {
                    return Err(format!(
                        "{held} slots of {most} are left in queue {queue} of poller {number}"
                    ));
                }
                self.drain(number)?;
            }
        }
        Ok(())
    }

    /// As many requests as there is room for, and no more.
    fn check_nodes(&mut self) -> Result<(), String> {
        for number in 0..self.stations.len() {
            let station = &mut self.stations[number];
            let live = |queue: &&QueuePair| !self.bench.plights[queue.controller].lost;
            let Some(target) = station.queues.iter().find(live).and_then(|queue| queue.target) else {
                continue;
            };
            for _ in 0..station.room {
                let submitted = station.poller.submit(target, IoContainer::flush());
                submitted.map_err(|rejected| format!("room at the end: {}", rejected.reason))?;
            }
            match station.poller.submit(target, IoContainer::flush()) {
                Err(Rejected { reason: Refusal::Full, .. }) => {}
                other => return Err(format!("beyond the room there is: {other:?}")),
            }
            self.drain(number)?;
        }
        Ok(())
    }

    /// Goes on until nothing is left in a poller.
    fn drain(&mut self, number: usize) -> Result<(), String> {
        for _ in 0..TURNS {
            if self.stations[number].poller.outstanding() == 0 {
                return Ok(());
            }
            self.stations[number].poller.poll(|_| {});
            self.idle();
        }
        Err(format!("{} requests are left in poller {number}", self.stations[number].poller.outstanding()))
    }

    /// Of each volume, which legs of which mirror are in use.
    fn legs_in_use(&self) -> Vec<Vec<Vec<bool>>> {
        let legs = |volume: &Volume| {
            let (station, target) = volume.ways[0];
            let layers = self.stations[station].poller.layer(target).map(Stack::layers).unwrap_or_default();
            let mirrors = layers.into_iter().filter_map(|layer| match layer {
                Stack::Mirror(mirror) => Some(mirror),
                _ => None,
            });
            let in_use = |mirror: &kiovec::layer::Mirror<Stack>| {
                (0..).map_while(|leg| mirror.leg_counts(leg)).map(|leg| leg.ejected.is_none()).collect()
            };
            mirrors.map(|mirror| in_use(mirror)).collect()
        };
        self.bench.volumes.iter().map(legs).collect()
    }

    /// Takes the driver down, with whatever is planned for that.
    fn take_down(&mut self) {
        let bench = &mut self.bench;
        for planned in &mut bench.plan {
            if let Some(Act::TearDown(effect)) = planned.act()
                && !bench.plights[planned.controller].lost
            {
                let emulator = &bench.emulators[planned.controller];
                emulator.set_faults(Faults::default().with(Fault::new(Commands::admin(), effect)));
                planned.struck = 1;
                if effect == Effect::Unplug {
                    (bench.plights[planned.controller].lost, bench.plights[planned.controller].gone) =
                        (true, true);
                }
                bench.reached.note(Point::TeardownFault);
            }
        }
        self.stations.clear();
        self.controllers.clear();
    }

    /// Every block of every medium is what it may be, in every place where it is.
    fn check_media(&mut self, in_use: &[Vec<Vec<bool>>]) -> Result<(), String> {
        let bench = &self.bench;
        let mut bytes = vec![0; bench.block];
        for (number, volume) in bench.volumes.iter().enumerate() {
            for lba in 0..volume.blocks {
                let mut places: Vec<(Disk, u64)> = Vec::new();
                let used = |mirror: usize, leg: usize| in_use[number][mirror][leg];
                volume.tree.places(lba, &mut 0, &used, true, &mut places);
                for (disk, at) in places {
                    if !bench.emulators[disk.controller].read_medium(disk.nsid, at, &mut bytes) {
                        return Err(format!("there is no block {at} of {disk:?}"));
                    }
                    volume.model.check(lba, &bytes, bench.now).map_err(|why| {
                        format!("the medium of volume {number}, block {at} of {disk:?}: {why}")
                    })?;
                }
            }
        }
        Ok(())
    }

    /// A fresh driver finds every controller that is still there usable, and on it what it may.
    fn reopen(&mut self) -> Result<(), String> {
        let bench = &mut self.bench;
        for (number, emulator) in bench.emulators.iter().enumerate() {
            emulator.set_faults(Faults::default());
            let opened = Controller::open(emulator.function(), bench.memories.space());
            let controller = match opened {
                Ok(controller) => controller,
                Err(_) if bench.plights[number].gone => continue,
                Err(error) => return Err(format!("controller {number} cannot be opened again: {error}")),
            };
            bench.reached.note(Point::Reopened);
            for (name, volume) in bench.volumes.iter().enumerate().filter(|(_, volume)| volume.direct) {
                let disk = volume.tree.disks()[0];
                if disk.controller == number {
                    let bytes = read_all(&controller, disk, bench.block)
                        .map_err(|why| format!("controller {number}, opened again: {why}"))?;
                    volume
                        .model
                        .check(0, &bytes, bench.now)
                        .map_err(|why| format!("volume {name}, again: {why}"))?;
                }
            }
        }
        Ok(())
    }
}

/// Reads a namespace as a driver does that has just come.
fn read_all(controller: &Arc<Controller>, disk: Disk, block: usize) -> Result<Vec<u8>, kiovec::Error> {
    let mut poller = Poller::new(1);
    let queue = poller.add_queue(controller, QueueOptions::default())?;
    let target = poller.add_namespace(queue, &controller.namespace(disk.nsid)?)?;
    let memory = controller.space().allocate(disk.blocks as usize * block)?;
    let event = poller.request(target, IoContainer::read(0, memory))?;
    let verdict = poller.wait(event, std::time::Duration::from_secs(10), |_| {});
    let claimed = verdict.and_then(|_| poller.claim(event));
    match claimed {
        Some((io, Ok(()))) => Ok(io.into_memory().to_vec()),
        other => Err(kiovec::Error::InvalidInput(format!("a read of all blocks: {other:?}"))),
    }
}

fn count_layers(layers: &[&Stack], buffers: &[usize], reached: &mut Reached) -> Result<(), String> {
    let mut buffers = buffers.iter();
    for (place, layer) in layers.iter().enumerate() {
        match layer {
            Stack::Mirror(mirror) => {
                let (free, all) = (mirror.free_buffers(), buffers.next().copied().unwrap_or(0));
                if free != all {
                    return Err(format!("{free} buffers of {all} are left in a mirror"));
                }
                let counts = mirror.counts();
                reached.add(Point::Failover, counts.failovers);
                reached.add(Point::Hedged, counts.hedges);
                reached.add(Point::HedgeWon, counts.hedge_wins);
                let legs = (0..).map_while(|leg| mirror.leg_counts(leg));
                reached.add(Point::Ejected, legs.filter(|leg| leg.ejected.is_some()).count() as u64);
            }
            Stack::Retry(retry) => {
                let retries = retry.retries();
                reached.add(Point::Retried, retries.retried);
                reached.add(Point::Cured, retries.cured);
                reached.add(Point::GivenUp, retries.given_up);
            }
            Stack::Cache(cache) => {
                let counts = cache.counts();
                reached.add(Point::CacheHit, counts.hits);
                reached.add(Point::CacheMiss, counts.misses);
                reached.add(Point::CacheShared, counts.shared);
                reached.add(Point::CacheInvalidated, counts.invalidated);
            }
            Stack::Verify(verify) => {
                let checks = verify.filter().checks();
                reached.add(Point::Verified, checks.checked);
                if checks.mismatches > 0 {
                    return Err(format!("a false alarm of layer {place} of the stack: {checks:?}"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

use crate::reach::Reached;
use crate::world::{QueuePair, Volume};

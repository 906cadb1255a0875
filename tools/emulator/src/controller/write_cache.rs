//! A volatile write cache: what becomes of writes that are not on the medium yet when the power fails.
//!
//! A store always holds what is seen. Kept here is what its medium holds in place of that, block by block, and the
//! writes since, in their order: a loss of power lets some of them have reached the medium, and takes the others
//! back. Knows blocks and chance; must not know commands.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use kiovec::spec::Status;

use crate::faults::Random;
use crate::media::Store;

/// A block: the store that it is in, and its number.
type Place = (usize, u64);

/// A write that is not on the medium.
#[derive(Debug)]
struct Cached {
    number: u64,
    store: usize,
    first: u64,
    /// What it has left on each of its blocks.
    blocks: Vec<Box<[u8]>>,
    /// All of it reaches the medium, or nothing.
    whole: bool,
}

/// What the medium holds of a block that is seen otherwise.
#[derive(Debug)]
struct Behind {
    contents: Box<[u8]>,
    /// The first write that is in the way; those before are on the medium.
    from: u64,
    /// Writes that are in the way.
    writes: u64,
}

/// The cache of a controller, for all of its namespaces.
#[derive(Debug)]
pub(super) struct WriteCache {
    block: usize,
    /// Blocks that it holds; a block counts once for each write.
    room: u64,
    held: u64,
    /// Blocks of the largest write that is written whole or not at all.
    atomic: u64,
    writes: VecDeque<Cached>,
    number: u64,
    medium: BTreeMap<Place, Behind>,
    random: Random,
}

impl WriteCache {
    /// An empty one, for blocks of `block` bytes.
    pub(super) fn new(block: usize, room: u64, atomic: u64, seed: u64) -> WriteCache {
        WriteCache {
            block,
            room,
            held: 0,
            atomic,
            writes: VecDeque::new(),
            number: 0,
            medium: BTreeMap::new(),
            random: Random::new(seed),
        }
    }

    /// Changes blocks of a store: for good, or until the power fails.
    pub(super) fn change(
        &mut self,
        stores: &mut [Store],
        store: usize,
        blocks: Range<u64>,
        durable: bool,
        how: impl FnOnce(&mut Store) -> Result<(), Status>,
    ) -> Result<(), Status> {
        if durable {
            let done = how(&mut stores[store]);
            self.settle(store, blocks);
            return done;
        }
        self.before(stores, store, blocks.clone());
        // What fails may have changed some.
        let done = how(&mut stores[store]);
        self.after(stores, store, blocks);
        done
    }

    /// Blocks are about to be written, and the medium is to keep what they hold.
    fn before(&mut self, stores: &[Store], store: usize, blocks: Range<u64>) {
        self.number += 1;
        for block in blocks {
            let place = (store, block);
            if !self.medium.contains_key(&place) {
                let contents = contents(stores, place, self.block);
                self.medium.insert(place, Behind { contents, from: self.number, writes: 0 });
            }
        }
    }

    /// They were written. Where there is no more room, what came first goes to the medium.
    fn after(&mut self, stores: &[Store], store: usize, blocks: Range<u64>) {
        let (count, first) = (blocks.end - blocks.start, blocks.start);
        let contents = blocks.map(|block| {
            if let Some(behind) = self.medium.get_mut(&(store, block)) {
                behind.writes += 1;
            }
            contents(stores, (store, block), self.block)
        });
        let blocks = contents.collect();
        self.held += count;
        let whole = count <= self.atomic;
        self.writes.push_back(Cached { number: self.number, store, first, blocks, whole });
        while self.held > self.room
            && let Some(write) = self.writes.pop_front()
        {
            self.drain(write);
        }
    }

    /// A write reaches the medium.
    fn drain(&mut self, write: Cached) {
        self.held -= write.blocks.len() as u64;
        for (block, contents) in (write.first..).zip(write.blocks) {
            let place = (write.store, block);
            let Some(behind) = self.medium.get_mut(&place).filter(|behind| behind.from <= write.number)
            else {
                continue;
            };
            behind.contents = contents;
            behind.writes -= 1;
            if behind.writes == 0 {
                self.medium.remove(&place);
            }
        }
    }

    /// What is seen of some blocks is on the medium, whatever was written before.
    fn settle(&mut self, store: usize, blocks: Range<u64>) {
        let settled: Vec<Place> =
            self.medium.range((store, blocks.start)..(store, blocks.end)).map(|(place, _)| *place).collect();
        settled.iter().for_each(|place| _ = self.medium.remove(place));
    }

    /// All that is seen of a store is on the medium.
    pub(super) fn flush(&mut self, store: usize) {
        self.settle(store, 0..u64::MAX);
        self.writes.retain(|write| write.store != store);
        self.held = self.writes.iter().map(|write| write.blocks.len() as u64).sum();
    }

    /// The power fails: of the writes that are not on the medium, any have reached it, those that are atomic as a
    /// whole, of others any blocks. Returns how many blocks are not what they were.
    pub(super) fn lose(&mut self, stores: &mut [Store]) -> u64 {
        // Often all or nothing.
        let kept = self.random.below(5);
        let mut medium = std::mem::take(&mut self.medium);
        for write in std::mem::take(&mut self.writes) {
            let all = self.random.below(4) < kept;
            for (block, contents) in (write.first..).zip(write.blocks) {
                let kept = if write.whole { all } else { self.random.below(4) < kept };
                if let Some(behind) = medium.get_mut(&(write.store, block))
                    && behind.from <= write.number
                    && kept
                {
                    behind.contents = contents;
                }
            }
        }
        self.held = 0;
        let mut lost = 0;
        for (place, Behind { contents, .. }) in medium {
            lost += u64::from(self::contents(stores, place, self.block) != contents);
            stores[place.0].poke(place.1 * self.block as u64, &contents);
        }
        lost
    }
}

/// What is seen of a block.
fn contents(stores: &[Store], (store, number): Place, block: usize) -> Box<[u8]> {
    let mut contents = vec![0; block].into_boxed_slice();
    stores[store].peek(number * block as u64, &mut contents);
    contents
}

//! The lines of a cache: which part of the device each one has, or is being filled with, and which are
//! in use.
//!
//! Set-associative: a line of the device can be in one set of the cache only, and in a set the line goes
//! that was not used for longest. Knows line numbers, buffers, and how many writes are under way; must
//! not know what a read is, nor how a line is filled.

use std::ops::Range;

use crate::defects::Defect;
use crate::layer::Waiting;
use crate::request::IoContainer;

/// Lines of a set, at least, if the cache has that many.
const WAYS: usize = 8;
/// Counters of writes for each line: fewer would mistake more writes for overlapping ones.
const COUNTERS_PER_LINE: usize = 4;
/// No line of the device: what an empty line has.
const NONE: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Lines {
    /// What each line has, set by set: apart from the lines, so that a set is searched in one go.
    numbers: Box<[u64]>,
    lines: Box<[Line]>,
    ways: usize,
    /// The number of sets, a power of two, less one.
    set_mask: u64,
    /// How often lines were used.
    uses: u64,
    /// Writes under way, by the number of a line that they touch, modulo their length: a power of two.
    writes: Box<[u32]>,
}

#[derive(Debug)]
struct Line {
    /// The buffer is out, to be filled. If what it is being filled with is out of date, it has no number,
    /// and is empty afterwards.
    filling: bool,
    /// When it was used last; 0 if it is empty.
    used: u64,
    /// A read of a line; its memory is the line.
    buffer: IoContainer,
    /// Who wants some of what it is being filled with.
    waiting: Waiting,
}

impl Lines {
    /// Empty lines, one for each buffer. There are some; a few are left out where sets would differ.
    pub(super) fn new(buffers: Vec<IoContainer>) -> Lines {
        let sets = 1 << (buffers.len() / WAYS).max(1).ilog2();
        let ways = buffers.len() / sets;
        let empty = |buffer| Line { filling: false, used: 0, buffer, waiting: Waiting::default() };
        let lines: Box<[Line]> = buffers.into_iter().take(sets * ways).map(empty).collect();
        Lines {
            numbers: vec![NONE; lines.len()].into(),
            writes: vec![0; (lines.len() * COUNTERS_PER_LINE).next_power_of_two()].into(),
            lines,
            ways,
            set_mask: sets as u64 - 1,
            uses: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The line that has a line of the device, or will have it.
    #[inline]
    pub(super) fn find(&self, number: u64) -> Option<usize> {
        let set = self.set(number);
        let way = self.numbers[set.clone()].iter().position(|there| *there == number)?;
        Some(set.start + way)
    }

    pub(super) fn is_filling(&self, index: usize) -> bool {
        self.lines[index].filling
    }

    /// Notes that a line is used now.
    #[inline]
    pub(super) fn touch(&mut self, index: usize) {
        self.uses += 1;
        self.lines[index].used = self.uses;
    }

    /// What a line has; nothing while it is being filled.
    #[inline]
    pub(super) fn data(&self, index: usize) -> &[u8] {
        let segments = self.lines[index].buffer.memory().segments();
        segments.first().map_or(&[], |segment| segment.as_slice())
    }

    /// Who waits for a line that is being filled.
    pub(super) fn waiting(&mut self, index: usize) -> &mut Waiting {
        &mut self.lines[index].waiting
    }

    /// Empties a line, to be filled with another one of the device, and takes its buffer out. `None` if
    /// all of the set are being filled, or if a write may change the line meanwhile.
    pub(super) fn claim(&mut self, number: u64) -> Option<(usize, IoContainer)> {
        if self.writes[(number & self.counter_mask()) as usize] > 0 {
            return None;
        }
        let free = self.set(number).filter(|index| !self.lines[*index].filling);
        let index = free.min_by_key(|index| self.lines[*index].used)?;
        self.numbers[index] = number;
        self.lines[index].filling = true;
        self.touch(index);
        Some((index, std::mem::take(&mut self.lines[index].buffer)))
    }

    /// The buffer of a line is back, full or not. Returns who waits for it.
    pub(super) fn filled(&mut self, index: usize, buffer: IoContainer, full: bool) -> Waiting {
        let line = &mut self.lines[index];
        // A buffer that a lost controller may still write does not come back: then the line stays taken.
        line.filling = buffer.memory().is_empty();
        line.buffer = buffer;
        let waiting = std::mem::take(&mut line.waiting);
        if !full {
            self.forget(index);
        }
        waiting
    }

    /// A write of lines of the device goes down: until it is back, none of them is in the cache, and none
    /// comes in. Returns how many were thrown out.
    pub(super) fn begin_write(&mut self, numbers: Range<u64>) -> u64 {
        self.count_write(&numbers, |count| *count += 1);
        if crate::defects::is(Defect::KeepStaleLine) {
            return 0;
        }
        let mut thrown_out = 0;
        // Whichever is less work: a look into the set of each, or at all lines there are.
        if numbers.end - numbers.start <= self.set_mask {
            for number in numbers {
                let Some(index) = self.find(number) else { continue };
                self.forget(index);
                thrown_out += 1;
            }
        } else {
            for index in 0..self.len() {
                if numbers.contains(&self.numbers[index]) {
                    self.forget(index);
                    thrown_out += 1;
                }
            }
        }
        thrown_out
    }

    /// It is back.
    pub(super) fn end_write(&mut self, numbers: Range<u64>) {
        self.count_write(&numbers, |count| *count -= 1);
    }

    /// Each counter that stands for one of these lines, once.
    fn count_write(&mut self, numbers: &Range<u64>, change: impl Fn(&mut u32)) {
        let mask = self.counter_mask();
        let end = numbers.end.min(numbers.start + self.writes.len() as u64);
        (numbers.start..end).for_each(|number| change(&mut self.writes[(number & mask) as usize]));
    }

    fn counter_mask(&self) -> u64 {
        self.writes.len() as u64 - 1
    }

    fn set(&self, number: u64) -> Range<usize> {
        let first = (number & self.set_mask) as usize * self.ways;
        first..first + self.ways
    }

    fn forget(&mut self, index: usize) {
        self.numbers[index] = NONE;
        self.lines[index].used = 0;
    }
}

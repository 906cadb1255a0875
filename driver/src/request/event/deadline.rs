//! Deadlines of events: which is next, and which have passed.
//!
//! Knows times, counted from the clock's start, and the event that each belongs to; must not know
//! what time it is, nor what a deadline that has passed does.

use std::time::Duration;

use super::Event;

const NONE: u32 = u32::MAX;

/// The deadlines of a poller's events, one for each event at most.
///
/// A binary heap that knows the place of each event in it: a deadline is taken out the moment its
/// event needs it no more. Most events are over long before their deadline, and entries that only
/// went when their time came would pile up: a million events a second, half a minute each.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// None is earlier than the one at (its place − 1) / 2, rounded down.
    heap: Vec<Entry>,
    /// By the index of an event, the place of its entry.
    places: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Duration,
    event: Event,
}

impl Deadlines {
    /// Gives an event a deadline, in place of the one it has.
    pub(super) fn set(&mut self, event: Event, at: Duration) {
        self.remove(event.index);
        let index = event.index as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, NONE);
        }
        let entry = Entry { at, event };
        self.heap.push(entry);
        self.rise(self.heap.len() - 1, entry);
    }

    /// Takes away the deadline of the event at `index`, if it has one.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) {
        if !self.heap.is_empty() {
            self.take_out(index);
        }
    }

    /// The next deadline.
    #[inline]
    pub(super) fn next(&self) -> Option<Duration> {
        self.heap.first().map(|entry| entry.at)
    }

    /// Takes out the earliest deadline if it has passed: the event whose it was.
    pub(super) fn expired(&mut self, now: Duration) -> Option<Event> {
        let event = self.heap.first().filter(|entry| entry.at <= now)?.event;
        self.take_out(event.index);
        Some(event)
    }

    fn take_out(&mut self, index: u32) {
        let Some(place) = self.places.get_mut(index as usize).filter(|place| **place != NONE) else { return };
        let mut hole = std::mem::replace(place, NONE) as usize;
        let last = self.heap.pop().expect("what has a place is in the heap");
        if hole == self.heap.len() {
            return;
        }
        // The last entry fills the hole. As it is late, most likely, the hole first goes down all the
        // way, and the entry rises from there.
        loop {
            let child = match self.heap.get(2 * hole + 1..) {
                Some([left, right, ..]) if right.at < left.at => 2 * hole + 2,
                Some([_, ..]) => 2 * hole + 1,
                _ => break,
            };
            self.put(hole, self.heap[child]);
            hole = child;
        }
        self.rise(hole, last);
    }

    /// Puts an entry where it belongs between a place and the top.
    fn rise(&mut self, mut place: usize, entry: Entry) {
        while place > 0 {
            let parent = self.heap[(place - 1) / 2];
            if parent.at <= entry.at {
                break;
            }
            self.put(place, parent);
            place = (place - 1) / 2;
        }
        self.put(place, entry);
    }

    #[inline]
    fn put(&mut self, place: usize, entry: Entry) {
        self.heap[place] = entry;
        self.places[entry.event.index as usize] = place as u32;
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Of how much there is room.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 2] {
        [self.heap.capacity(), self.places.capacity()]
    }
}

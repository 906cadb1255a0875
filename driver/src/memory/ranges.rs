//! Free ranges of an address space: IOVAs of a space, bytes of a region.
//!
//! Knows numbers only; must not know what they address.

use std::collections::BTreeMap;
use std::ops::Range;

/// The free parts of an address space: ascending, disjoint, never adjacent, never empty.
#[derive(Debug, Default, Clone)]
pub(super) struct FreeRanges {
    by_start: BTreeMap<u64, u64>,
}

impl FreeRanges {
    pub(super) fn new(range: Range<u64>) -> Self {
        let mut free = FreeRanges::default();
        if range.start < range.end {
            free.by_start.insert(range.start, range.end);
        }
        free
    }

    /// First fit: the lowest free range of `len` bytes that starts at a multiple of `align` (a power of
    /// two).
    pub(super) fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        assert!(len > 0 && align.is_power_of_two());
        let (start, end, at) = self.by_start.iter().find_map(|(&start, &end)| {
            let at = start.checked_next_multiple_of(align)?;
            (at.checked_add(len)? <= end).then_some((start, end, at))
        })?;
        self.cut(start, end, at..at + len);
        Some(at)
    }

    /// Takes exactly this range, if all of it is free. It must not be empty.
    pub(super) fn take_at(&mut self, range: Range<u64>) -> bool {
        assert!(range.start < range.end);
        let around = self.by_start.range(..=range.start).next_back().map(|(&start, &end)| (start, end));
        match around {
            Some((start, end)) if range.end <= end => {
                self.cut(start, end, range);
                true
            }
            _ => false,
        }
    }

    /// Removes whatever of `range` is free.
    pub(super) fn exclude(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let hit: Vec<(u64, u64)> = self
            .by_start
            .range(..range.end)
            .filter(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in hit {
            self.cut(start, end, range.start.max(start)..range.end.min(end));
        }
    }

    /// Gives a range back. It must not be free already.
    pub(super) fn give(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        assert!(start < end, "an empty range was given back");
        if let Some((&before, &before_end)) = self.by_start.range(..=start).next_back() {
            assert!(before_end <= start, "a range was given back twice");
            if before_end == start {
                start = before;
            }
        }
        if let Some((&after, &after_end)) = self.by_start.range(range.start..).next() {
            assert!(after >= end, "a range was given back twice");
            if after == end {
                self.by_start.remove(&after);
                end = after_end;
            }
        }
        self.by_start.insert(start, end);
    }

    fn cut(&mut self, start: u64, end: u64, hole: Range<u64>) {
        self.by_start.remove(&start);
        if start < hole.start {
            self.by_start.insert(start, hole.start);
        }
        if hole.end < end {
            self.by_start.insert(hole.end, end);
        }
    }

    #[cfg(test)]
    fn contains(&self, at: u64) -> bool {
        self.by_start.range(..=at).next_back().is_some_and(|(_, end)| at < *end)
    }

    #[cfg(test)]
    fn total(&self) -> u64 {
        self.by_start.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 256;

    #[derive(Debug, Clone)]
    enum Step {
        Take { len: u64, align: u64 },
        TakeAt(u64, u64),
        Give(usize),
        Exclude(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..40u64, 0..6u32).prop_map(|(len, align)| Step::Take { len, align: 1 << align }),
            (0..SIZE, 1..20u64).prop_map(|(start, len)| Step::TakeAt(start, len)),
            (0..64usize).prop_map(Step::Give),
            (0..SIZE, 0..20u64).prop_map(|(start, len)| Step::Exclude(start, len)),
        ]
    }

    /// The oracle: one boolean per address.
    fn first_fit(free: &[bool], len: u64, align: u64) -> Option<u64> {
        (0..SIZE)
            .step_by(align as usize)
            .find(|at| at + len <= SIZE && (*at..at + len).all(|i| free[i as usize]))
    }

    proptest! {
        #[test]
        fn agrees_with_an_array_of_booleans(steps in proptest::collection::vec(step(), 1..200)) {
            let mut ranges = FreeRanges::new(0..SIZE);
            let mut free = vec![true; SIZE as usize];
            let mut taken: Vec<Range<u64>> = Vec::new();
            for step in steps {
                match step {
                    Step::Take { len, align } => {
                        let at = ranges.take(len, align);
                        prop_assert_eq!(at, first_fit(&free, len, align));
                        if let Some(at) = at {
                            free[at as usize..(at + len) as usize].fill(false);
                            taken.push(at..at + len);
                        }
                    }
                    Step::TakeAt(start, len) => {
                        let all = (start..start + len).all(|i| free.get(i as usize) == Some(&true));
                        prop_assert_eq!(ranges.take_at(start..start + len), all);
                        if all {
                            free[start as usize..(start + len) as usize].fill(false);
                            taken.push(start..start + len);
                        }
                    }
                    Step::Give(which) if !taken.is_empty() => {
                        let range = taken.swap_remove(which % taken.len());
                        free[range.start as usize..range.end as usize].fill(true);
                        ranges.give(range);
                    }
                    Step::Give(_) => {}
                    Step::Exclude(start, len) => {
                        let end = (start + len).min(SIZE);
                        free[start as usize..end as usize].fill(false);
                        ranges.exclude(start..end);
                    }
                }
                for at in 0..SIZE {
                    prop_assert_eq!(ranges.contains(at), free[at as usize]);
                }
                prop_assert_eq!(ranges.total(), free.iter().filter(|f| **f).count() as u64);
            }
        }
    }
}

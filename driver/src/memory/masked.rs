//! Arrays in which every index finds something.
//!
//! Knows lengths; must not know what is in the cells.

use std::ops::{Index, IndexMut};

/// An array whose length is a power of two. Only as many bits of an index count as there are cells for, so
/// nothing has to be checked where one comes from a device.
#[derive(Debug)]
pub(crate) struct Masked<T> {
    cells: Box<[T]>,
    mask: u32,
}

impl<T> Masked<T> {
    /// # Panics
    /// If the number of cells is no power of two, or above 2^31.
    pub(crate) fn new(cells: Box<[T]>) -> Masked<T> {
        assert!(cells.len().is_power_of_two() && cells.len() <= 1 << 31);
        let mask = cells.len() as u32 - 1;
        Masked { cells, mask }
    }

    /// The bits of an index that count.
    #[inline(always)]
    pub(crate) fn mask(&self, index: u32) -> u32 {
        index & self.mask
    }

    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.cells.iter()
    }
}

impl<T> Index<u32> for Masked<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, index: u32) -> &T {
        // SAFETY: at most the mask, which is one less than the number of cells (`new`), which never changes.
        unsafe { self.cells.get_unchecked(self.mask(index) as usize) }
    }
}

impl<T> IndexMut<u32> for Masked<T> {
    #[inline(always)]
    fn index_mut(&mut self, index: u32) -> &mut T {
        let index = self.mask(index);
        // SAFETY: as in `index`.
        unsafe { self.cells.get_unchecked_mut(index as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_finds_a_cell() {
        for len in [1u32, 2, 64, 4096] {
            let mut cells = Masked::new((0..len).collect());
            for index in [0, 1, len - 1, len, 5 * len + 3, u32::MAX] {
                assert_eq!(cells[index], index % len);
                cells[index] += 0;
            }
        }
    }

    #[test]
    #[should_panic]
    fn there_are_a_power_of_two() {
        Masked::new(Box::from([0, 1, 2]));
    }
}

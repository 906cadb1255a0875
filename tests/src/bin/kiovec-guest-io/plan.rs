//! Which data goes where: lengths, places and shapes of memory. Pure arithmetic, the same in every run.

use kiovec_tests::pattern::{Extent, ZEROS};

use crate::Form;
use crate::shape::Shape;

/// A namespace's size.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    pub nsid: u32,
    /// In blocks.
    pub blocks: u64,
    /// Bytes in a block.
    pub block: u64,
}

/// What is done to a stretch in a writing run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Write,
    /// Deallocating first must not harm what is written afterwards, nor the neighbours.
    DeallocateAndWrite,
    WriteZeroes,
}

/// Where a step takes place.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub nsid: u32,
    pub lba: u64,
    pub blocks: u64,
    /// Bytes in a block.
    pub block: u64,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub place: Place,
    pub action: Action,
    pub shape: Shape,
    pub seed: u64,
    /// Force Unit Access.
    pub fua: bool,
}

impl Step {
    /// The stretch as it is afterwards.
    pub fn extent(&self) -> Extent {
        let Place { nsid, lba, blocks, block } = self.place;
        Extent { nsid, offset: lba * block, len: blocks * block, seed: self.seed }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        (self.place.blocks * self.place.block) as usize
    }
}

/// The steps in one form's half of a namespace: from its first block on, one block apart, so that odd LBAs come by
/// themselves; the last step ends with the half's last block.
pub fn steps(namespace: Geometry, form: Form) -> Vec<Step> {
    let half = namespace.blocks / 2;
    let (start, end) = if form == Form::Prp { (0, half) } else { (half, namespace.blocks) };
    let mut steps = Vec::new();
    let mut lba = start;
    for (index, (bytes, shape, action)) in requests(namespace.block, form).into_iter().enumerate() {
        let blocks = bytes / namespace.block;
        let place = Place { nsid: namespace.nsid, lba, blocks, block: namespace.block };
        steps.push(step(place, shape, action, index as u64));
        lba += blocks + 1;
    }
    assert!(lba < end, "namespace {} is too small for the plan", namespace.nsid);
    let last = Place { nsid: namespace.nsid, lba: end - 1, blocks: 1, block: namespace.block };
    let index = steps.len() as u64;
    steps.push(step(last, Shape::Contiguous { offset: 0 }, Action::Write, index));
    steps
}

fn step(place: Place, shape: Shape, action: Action, index: u64) -> Step {
    let seed = if action == Action::WriteZeroes { ZEROS } else { (place.lba << 8) + index + 1 };
    Step { place, action, shape, seed, fua: index % 3 == 2 }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Lengths in bytes with the shape of their memory.
fn requests(block: u64, form: Form) -> Vec<(u64, Shape, Action)> {
    let aligned = Shape::Contiguous { offset: 0 };
    let page = 4 * KIB;
    let mut all = Vec::new();
    let mut add = |action: Action, shape: Shape, lengths: &[u64]| {
        let whole = lengths.iter().copied().filter(|bytes| bytes % block == 0);
        all.extend(whole.map(|bytes| (bytes, shape, action)));
    };
    let contiguous = [
        block,
        2 * block,
        page,
        page + block,
        8 * KIB,
        12 * KIB,
        64 * KIB,
        128 * KIB + block,
        512 * KIB,
        512 * KIB + block,
        MIB,
        2 * MIB + block,
        4 * MIB,
    ];
    add(Action::Write, aligned, &contiguous);
    // Not at the start of a page: the first PRP has an offset, and the list is one entry longer.
    for offset in [4, 512, 4092] {
        add(
            Action::Write,
            Shape::Contiguous { offset },
            &[block, page, 8 * KIB, 64 * KIB + block, 256 * KIB],
        );
    }
    add(Action::Write, Shape::Contiguous { offset: 512 }, &[MIB + page]);
    add(Action::Write, Shape::PagesBackwards, &[page, 8 * KIB, 64 * KIB, 516 * KIB, 2 * MIB + 8 * KIB]);
    add(Action::Write, Shape::BlocksApart, &[2 * block, 17 * block]);
    if form == Form::Sgl {
        add(Action::Write, Shape::Ragged, &[block, 3 * page, 64 * KIB]);
    }
    add(Action::DeallocateAndWrite, aligned, &[block, 64 * KIB]);
    add(Action::WriteZeroes, aligned, &[block, 32 * KIB + block]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiovec_tests::machine::{DISK, kernel_extent};
    use kiovec_tests::pattern::overlay;

    fn disk() -> impl Iterator<Item = (Geometry, Extent)> {
        DISK.namespaces.iter().map(|namespace| {
            let block = u64::from(namespace.block);
            let geometry = Geometry { nsid: namespace.nsid, blocks: namespace.size / block, block };
            (geometry, kernel_extent(namespace))
        })
    }

    #[test]
    fn both_forms_together_stay_apart_and_within() {
        for (geometry, whole) in disk() {
            let both = [Form::Prp, Form::Sgl].map(|form| steps(geometry, form)).concat();
            let extents: Vec<Extent> = both.iter().map(Step::extent).collect();
            let all = overlay(whole, &extents).expect("no overlap");
            assert!(all.len() > both.len(), "there is something of the kernel's between them");
        }
    }

    #[test]
    fn first_last_and_odd_blocks_are_in_it() {
        for (geometry, whole) in disk() {
            let both = [Form::Prp, Form::Sgl].map(|form| steps(geometry, form)).concat();
            assert!(both.iter().any(|step| step.extent().offset == 0));
            assert!(both.iter().any(|step| step.extent().end() == whole.len));
            assert!(both.iter().any(|step| step.place.lba % 2 == 1));
        }
    }

    #[test]
    fn lengths_reach_from_a_block_to_four_mebibytes() {
        for (geometry, _) in disk() {
            let lengths: Vec<usize> = steps(geometry, Form::Prp).iter().map(Step::len).collect();
            assert_eq!(lengths.iter().min().copied(), Some(geometry.block as usize));
            assert_eq!(lengths.iter().max().copied(), Some(4 << 20));
        }
    }
}

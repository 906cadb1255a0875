//! Small writes that are submitted together: neighbours share commands, what lies apart does not, and the kernel
//! finds all of them where they belong.

use kiovec_tests::machine::{Machine, OTHER_LEG};
use kiovec_tests::pattern::Extent;

use super::perf::sound;
use crate::program::program;
use crate::{Verdict, disk, ensure, pci};

/// Of each half of the first namespace.
const LEN: u64 = 16 << 20;

/// Each half is written in one order; the kernel reads them. And what `kiovec perf` says of neighbours.
pub fn gathered(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let orders = [("", 0x6761_7468), ("--scattered", 0x7363_6174)];
    let mut written = Vec::new();
    for (half, (order, seed)) in orders.into_iter().enumerate() {
        let extent = Extent { nsid: 1, offset: half as u64 * LEN, len: LEN, seed };
        let place = format!("{} {} {} {}", extent.nsid, extent.offset, extent.len, extent.seed);
        let line = format!("kiovec-guest-io gather prp {} {place} {order}", OTHER_LEG.bdf());
        let output = program(line.trim()).succeeds()?;
        let (requests, commands) = numbers(&output.out).ok_or_else(|| format!("no numbers: {output}"))?;
        match order {
            "" => ensure!(commands * 16 <= requests, "more than 1/16 command for a request: {output}"),
            _ => ensure!(commands == requests, "not a command for each request: {output}"),
        }
        written.push(extent);
    }
    pci::rebind(&OTHER_LEG, "nvme")?;
    written.iter().try_for_each(|extent| disk::verify(&OTHER_LEG, extent))?;
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let options = "-w write -q 256 -o 4096 -t 1 -a 0 --nsid 1 --merge --yes-destroy-data --json";
    let output = sound(program(&format!("kiovec perf {options} {}", OTHER_LEG.bdf())))?;
    let commands = output.json()?["commands_per_io"].as_f64();
    ensure!(commands.is_some_and(|commands| commands <= 1.0 / 16.0), "commands per I/O: {output}");
    Ok(())
}

/// Requests and commands, as `gather` says them.
fn numbers(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find(|line| line.contains(" requests, "))?;
    let mut words = line.split(' ');
    Some((words.next()?.parse().ok()?, words.nth(1)?.parse().ok()?))
}

//! Which cores a run uses, and staying on them.

use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Error, Result};

const FORMS: &str = "cores are a list (0,2), ranges (0-3), or a mask in hexadecimal (0x5)";

/// Cores in the order in which they were named, none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Cores, String> {
        let cores = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(mask) => from_mask(mask),
            None => from_list(text),
        };
        let cores = cores.filter(|cores| !cores.is_empty()).ok_or(FORMS)?;
        let twice = cores.iter().enumerate().find(|(index, core)| cores[..*index].contains(core));
        match twice {
            Some((_, core)) => Err(format!("core {core} is named twice, and runs one thread")),
            None => Ok(Cores(cores)),
        }
    }
}

/// Of any length: machines have more than 64 cores.
fn from_mask(digits: &str) -> Option<Vec<usize>> {
    if digits.len() > CpuSet::MAX_CPU / 4 {
        return None;
    }
    let mut cores = Vec::new();
    for (index, digit) in digits.chars().rev().enumerate() {
        let digit = digit.to_digit(16)?;
        cores.extend((0..4).filter(|bit| digit >> bit & 1 == 1).map(|bit| 4 * index + bit));
    }
    Some(cores)
}

fn from_list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (core(first)?, core(last)?);
        if first > last {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

fn core(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|core| plain && *core < CpuSet::MAX_CPU)
}

/// The cores that this process may run on, ascending.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).map_err(Error::os("the cores this process may use"))?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// The cores of a run: those asked for, or all there are.
pub fn choose(asked: Option<&Cores>, allowed: &[usize]) -> Result<Vec<usize>> {
    let Some(Cores(cores)) = asked else { return Ok(allowed.to_vec()) };
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => {
            let allowed = ranges(allowed);
            Err(Error::Unsuitable(format!("-c: this process has no core {core}; it may use {allowed}")))
        }
        None => Ok(cores.clone()),
    }
}

/// Deals the cores of a run to devices, which want so many workers each, or as many as there are. One after
/// the other, and again from the first if there are too few.
pub fn deal(asked: bool, cores: &[usize], wanted: &[Option<u32>]) -> Vec<Vec<usize>> {
    let mut next = cores.iter().copied().cycle();
    let mut dealt: Vec<Vec<usize>> =
        wanted.iter().map(|wanted| next.by_ref().take(wanted.unwrap_or(1) as usize).collect()).collect();
    let mut left = cores.len().saturating_sub(dealt.iter().map(Vec::len).sum());
    // Cores that were asked for have workers, unless all devices say how many they want.
    while asked && left > 0 && wanted.contains(&None) {
        for (cores, _) in dealt.iter_mut().zip(wanted).filter(|(_, wanted)| wanted.is_none()).take(left) {
            cores.extend(next.next());
            left -= 1;
        }
    }
    dealt
}

/// Keeps the calling thread on one core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(Error::os(format!("moving a thread to core {core}")))
}

/// `0-3,6`, as the kernel writes it.
pub fn ranges(cores: &[usize]) -> String {
    let runs = cores.chunk_by(|a, b| a + 1 == *b);
    let text = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(usize::to_string).collect(),
    });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ranges_and_masks() {
        for (text, cores) in [
            ("0", vec![0]),
            ("3,1", vec![3, 1]),
            ("0-3", vec![0, 1, 2, 3]),
            ("0,2-3", vec![0, 2, 3]),
            ("0x5", vec![0, 2]),
            ("0X10000000000000001", vec![0, 64]),
        ] {
            assert_eq!(text.parse(), Ok(Cores(cores)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", ",", "1,", "-", "1-", "3-1", "a", "0x", "0x0", "0xg", "+1", "99999", "0,0", "1-2,2"]
        {
            assert!(text.parse::<Cores>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let asked = Cores(vec![0, 9]);
        let error = choose(Some(&asked), &[0, 1, 2, 5]).unwrap_err().to_string();
        assert!(error.contains("no core 9") && error.contains("0-2,5"), "{error}");
        assert_eq!(choose(None, &[4, 5]).unwrap(), [4, 5]);
    }

    #[test]
    fn every_device_has_its_workers_and_every_core_that_was_asked_for_has_one() {
        for (asked, wanted, dealt) in [
            (false, &[None][..], vec![vec![4]]),
            (true, &[None], vec![vec![4, 5, 6]]),
            (true, &[None, None], vec![vec![4, 6], vec![5]]),
            (false, &[None, None], vec![vec![4], vec![5]]),
            (true, &[Some(1), None], vec![vec![4], vec![5, 6]]),
            (true, &[Some(2)], vec![vec![4, 5]]),
            (false, &[Some(2), Some(2)], vec![vec![4, 5], vec![6, 4]]),
            (true, &[None; 4], vec![vec![4], vec![5], vec![6], vec![4]]),
        ] {
            assert_eq!(deal(asked, &[4, 5, 6], wanted), dealt, "{asked} {wanted:?}");
        }
        assert!(deal(true, &[], &[None])[0].is_empty());
    }

    #[test]
    fn this_thread_can_be_pinned() {
        let core = allowed().unwrap()[0];
        std::thread::spawn(move || pin(core).map(|()| allowed())).join().unwrap().unwrap().unwrap();
    }
}

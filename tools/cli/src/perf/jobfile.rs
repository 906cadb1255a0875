//! `--jobfile`: jobs as fio writes them, as far as they have a meaning here.
//!
//! Knows the syntax and the keys; must not know what a job does.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use hugepage_setup::parse_bytes;

use super::options::{Options, Pattern};
use super::places;
use super::range::RangeOption;
use super::subject::Subject;
use crate::{Error, Result};

/// Longer ones are not written by hand.
const LONGEST: u64 = 1 << 20;
/// Jobs of one file.
const MOST: usize = 256;
const GLOBAL: &str = "global";

/// A section: its name, and its lines as far as they say something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    line: usize,
    name: String,
    settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    line: usize,
    key: String,
    value: String,
}

/// The jobs of a file, on top of what the command line says.
pub fn read(path: &Path, options: &Options) -> Result<Vec<Options>> {
    let wrong = |what: String| Error::Usage(format!("--jobfile {}: {what}", path.display()));
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 == LONGEST {
        return Err(wrong("longer than 1 MiB".into()));
    }
    jobs(&text, options).map_err(wrong)
}

fn jobs(text: &str, options: &Options) -> std::result::Result<Vec<Options>, String> {
    let mut global: Vec<Setting> = Vec::new();
    let mut jobs = Vec::new();
    for section in sections(text)? {
        if section.name == GLOBAL {
            // As in fio: for the jobs that follow.
            global.extend(section.settings);
            continue;
        }
        if jobs.len() == MOST {
            return Err(format!("line {}: more than {MOST} jobs", section.line));
        }
        let settings: Vec<&Setting> = global.iter().chain(&section.settings).collect();
        jobs.push(job(&settings, options).map_err(|(line, what)| format!("line {line}: {what}"))?);
    }
    match jobs.first() {
        None => Err("no job; one begins with its name in brackets, as in [random-reads]".into()),
        Some(first) if jobs.iter().any(|job| job.time != first.time) => {
            Err("jobs of different runtime; all run at the same time, so put it under [global]".into())
        }
        Some(_) => Ok(jobs),
    }
}

fn sections(text: &str) -> std::result::Result<Vec<Section>, String> {
    let mut sections: Vec<Section> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
            let name =
                name.ok_or_else(|| format!("line {number}: a section is a name in brackets, as in [job1]"))?;
            sections.push(Section { line: number, name: name.to_owned(), settings: vec![] });
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let setting = Setting { line: number, key: key.trim().to_owned(), value: value.trim().to_owned() };
        match sections.last_mut() {
            Some(section) => section.settings.push(setting),
            None => return Err(format!("line {number}: {key} is before any section; begin with [global]")),
        }
    }
    Ok(sections)
}

/// What a key does to a job. The text is what is wrong with its value.
type Apply = fn(&mut Draft, &str) -> std::result::Result<(), String>;

/// A job in the making: what belongs together comes in several lines.
struct Draft {
    options: Options,
    offset: Option<u64>,
    size: Option<u64>,
}

const KEYS: [(&str, Apply); 17] = [
    ("rw", |job, value| {
        // fio has names of its own for what the others call mixed.
        let value = if value == "readwrite" { "rw" } else { value };
        job.options.io_pattern = Pattern::from_str(value, false)
            .map_err(|_| "one of read, write, rw, randread, randwrite, randrw".to_owned())?;
        Ok(())
    }),
    ("bs", |job, value| {
        job.options.io_size = bytes(value)?;
        job.options.bssplit = None;
        Ok(())
    }),
    ("bssplit", |job, value| set(&mut job.options.bssplit, value.parse().map(Some))),
    ("iodepth", |job, value| set(&mut job.options.io_depth, number(value, 1..=4096))),
    ("numjobs", |job, value| set(&mut job.options.numjobs, number(value, 1..=1024).map(Some))),
    ("rwmixread", |job, value| {
        let share = number(value, 0..=100)?;
        job.options.rwmixread = u8::try_from(share).ok();
        Ok(())
    }),
    ("runtime", |job, value| set(&mut job.options.time, seconds(value))),
    ("ramp_time", |job, value| set(&mut job.options.warmup_time, seconds(value))),
    ("number_ios", |job, value| {
        let number = number(value, 1..=u32::MAX)?;
        job.options.number_ios = Some(number.into());
        Ok(())
    }),
    // There is no other way to drive a device, nor to run.
    ("direct", |_, value| match value {
        "" | "1" => Ok(()),
        _ => Err("1, or nothing: no page cache is on the way".into()),
    }),
    ("time_based", |_, value| match value {
        "" | "1" => Ok(()),
        _ => Err("1, or nothing: a run always takes its runtime".into()),
    }),
    ("size", |job, value| set(&mut job.size, bytes(value).map(Some))),
    ("offset", |job, value| set(&mut job.offset, bytes(value).map(Some))),
    ("rate_iops", |job, value| {
        let rate = number(value, 1..=1_000_000_000)?;
        job.options.rate = Some(rate.into());
        Ok(())
    }),
    ("random_distribution", |job, value| {
        (job.options.zipf, job.options.hot) = (None, None);
        match value.split_once(':') {
            None if value == "random" => Ok(()),
            Some(("zipf", theta)) => set(&mut job.options.zipf, places::zipf(theta).map(Some)),
            _ => Err("random, or zipf:THETA".into()),
        }
    }),
    ("verify", |job, value| {
        job.options.verify = match value {
            "0" | "none" => false,
            "1" | "pattern" | "meta" | "crc32c" => true,
            _ => return Err("0 or 1: what blocks say of themselves is kiovec's own".into()),
        };
        Ok(())
    }),
    ("filename", |job, value| set(&mut job.options.device, Subject::from_str(value))),
];

fn job(settings: &[&Setting], options: &Options) -> std::result::Result<Options, (usize, String)> {
    let mut draft = Draft { options: options.on(&options.device), offset: None, size: None };
    for setting in settings {
        let Setting { line, key, value } = setting;
        // fio's own other names.
        let name = match &key[..] {
            "readwrite" => "rw",
            "blocksize" => "bs",
            key => key,
        };
        let Some((_, apply)) = KEYS.iter().find(|(known, _)| *known == name) else {
            let known = KEYS.map(|(name, _)| name).join(", ");
            return Err((*line, format!("{key} is not supported; supported are: {known}")));
        };
        apply(&mut draft, value).map_err(|wrong| (*line, format!("{key}={value}: {wrong}")))?;
    }
    let Draft { mut options, offset, size } = draft;
    if offset.is_some() || size.is_some() {
        let start = offset.unwrap_or(0);
        options.range = Some(RangeOption::of_bytes(start, size));
    }
    if !options.io_pattern.is_mixed() {
        // fio takes it with any workload, and it may be for another job.
        options.rwmixread = None;
    }
    options.devices = vec![options.device.clone()];
    Ok(options)
}

fn set<T>(place: &mut T, value: std::result::Result<T, String>) -> std::result::Result<(), String> {
    *place = value?;
    Ok(())
}

fn bytes(value: &str) -> std::result::Result<u64, String> {
    parse_bytes(value)
}

fn number(value: &str, range: std::ops::RangeInclusive<u32>) -> std::result::Result<u32, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("not a number from {} to {}", range.start(), range.end()))
}

/// As in fio: seconds, or a number with s, ms, m, h, d.
fn seconds(value: &str) -> std::result::Result<Duration, String> {
    let digits = value.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(value.len());
    let (amount, unit) = value.split_at(digits);
    let unit = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err("not a time, such as 30, 500ms or 2m".into()),
    };
    let seconds = amount.parse::<f64>().ok().map(|amount| amount * unit);
    let seconds = seconds.filter(|seconds| (0.001..=31.0 * 86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "not a time from 1 ms to 31 days".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> std::result::Result<Vec<Options>, String> {
        jobs(text, &Options::from_line("-t 7 --seed 3"))
    }

    #[test]
    fn a_file_as_fio_has_it() {
        let text = "; two jobs\n[global]\nrw=randrw\nbs=8k\nruntime=2m\ntime_based\nrwmixread=70\n\n\
                    [reader]\nrw = randread\niodepth=32\nfilename=emulated:serial=A\n# and\n\
                    [writer]\nbssplit=4k/60:64k/40\nnumjobs=2\noffset=1M\nsize=16M\nrandom_distribution=zipf:1.2\n";
        let jobs = parse(text).unwrap();
        assert_eq!(jobs.len(), 2);
        let [reader, writer] = [&jobs[0], &jobs[1]];
        assert_eq!((reader.io_pattern, reader.io_size, reader.io_depth), (Pattern::Randread, 8192, 32));
        assert_eq!((reader.device.to_string(), reader.rwmixread), ("emulated:serial=A".into(), None));
        assert_eq!((reader.time, reader.seed), (Duration::from_secs(120), Some(3)));
        assert_eq!((writer.io_pattern, writer.read_share(), writer.numjobs), (Pattern::Randrw, 70, Some(2)));
        assert_eq!(writer.sizes(), [4096, 65536]);
        let range = writer.range.as_ref().unwrap().resolve(4096, 1 << 20).unwrap();
        assert_eq!(range, 256..256 + 4096);
        assert!(writer.zipf.is_some());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, words) in [
            ("", "no job"),
            ("[global]\nrw=read\n", "no job"),
            ("rw=read\n[a]", "line 1: rw is before any section"),
            ("[a\n", "line 1: a section is a name in brackets"),
            ("[]", "line 1: a section"),
            (
                "[a]\n\nioengine=libaio",
                "line 3: ioengine is not supported; supported are: rw, bs, bssplit, iodepth",
            ),
            ("[a]\nrw=trim", "line 2: rw=trim: one of read, write"),
            ("[a]\nbs=big", "line 2: bs=big: "),
            ("[a]\nbssplit=4k/10", "line 2: bssplit=4k/10: the percentages are 10 together"),
            ("[a]\niodepth=0", "line 2: iodepth=0: not a number from 1 to 4096"),
            ("[a]\nrwmixread=101", "0 to 100"),
            ("[a]\nruntime=soon", "line 2: runtime=soon: not a time"),
            ("[a]\nnumber_ios=0", "line 2: number_ios=0: not a number from 1"),
            ("[a]\ntime_based=0", "a run always takes its runtime"),
            ("[a]\nverify=md5", "0 or 1"),
            ("[a]\nfilename=/dev/sda", "line 2: filename=/dev/sda: a name of the kernel's driver"),
            ("[a]\nrandom_distribution=pareto:0.9", "zipf:THETA"),
            ("[a]\nruntime=1\n[b]\nruntime=2", "different runtime"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words) && error.lines().count() == 1, "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn nor_does_what_looks_like_a_job(lines in prop::collection::vec("(\\[[a-z]{0,6}\\]?|(rw|bs|bssplit|iodepth|size|offset|runtime|verify|numjobs|filename)=[0-9a-zA-Z:/.%-]{0,12})", 0..12)) {
            if let Err(error) = parse(&lines.join("\n")) {
                prop_assert_eq!(error.lines().count(), 1, "{}", error);
            }
        }
    }
}

//! The options of `kiovec perf`, with the letters that SPDK's perf gave them, and the checks that
//! need no device.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hugepage_setup::parse_bytes;
use kiovec::{DataForm, QueueOptions};
use kiovec_emulator::Media;

use super::cores::Cores;
use super::idle::Polling;
use super::jobfile;
use super::places::{self, Skew};
use super::range::RangeOption;
use super::sizes::Split;
use super::subject::{self, Subject};
use crate::device::Leaf;
use crate::output::{self, Format};
use crate::{Error, Result};

/// A month: longer than any stress test, and no clock overflows.
const MAX_SECONDS: f64 = 31.0 * 86_400.0;
/// The read share of mixed workloads without -M, as in fio.
const READ_SHARE: u8 = 50;

#[derive(Debug, Clone, Args)]
pub struct Options {
    #[arg(value_name = "DEVICE",
          help = format!("The devices, `emulated` without any; each has workers of its own. One is {}", subject::forms()))]
    pub devices: Vec<Subject>,

    /// The one of them that a job is about.
    #[arg(skip)]
    pub device: Subject,

    /// Another device, measured in turns with the first, round by round: what counts is the ratio.
    #[arg(long, value_name = "DEVICE")]
    pub versus: Option<Subject>,

    /// How many rounds --versus takes, in each of which both devices have the time of -t; 9 without
    /// this.
    #[arg(long, value_name = "N", requires = "versus",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: Option<u32>,

    /// Workers on each device, on one core each; without this, one, or one for each core of -c.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub numjobs: Option<u32>,

    /// I/Os in flight on each core, 1 to 4096.
    #[arg(short = 'q', long, visible_alias = "iodepth", value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub io_depth: u32,

    /// Bytes of each I/O: 4096, 4k, 1M.
    #[arg(short = 'o', long, visible_alias = "bs", value_name = "BYTES", default_value = "4096", value_parser = size)]
    pub io_size: u64,

    /// I/Os of several sizes, with their percentages, instead of -o: 4k/60:64k/40.
    #[arg(long, value_name = "SPLIT", conflicts_with_all = ["io_size", "verify"])]
    pub bssplit: Option<Split>,

    /// Begin so many I/Os per second on each device, whatever becomes of those before (up to -q in flight). Latency
    /// then counts from when an I/O should have begun.
    #[arg(long, value_name = "IOPS", value_parser = rate)]
    pub rate: Option<u64>,

    /// Random LBAs by Zipf's law with this exponent: a few are asked for very often. They are spread over
    /// the range.
    #[arg(long, value_name = "THETA", value_parser = places::zipf)]
    pub zipf: Option<Skew>,

    /// Random LBAs of which the first PLACES percent of the range get IOS percent of the I/Os: 10:90.
    #[arg(long, value_name = "PLACES:IOS", value_parser = places::hot, conflicts_with = "zipf")]
    pub hot: Option<Skew>,

    /// What a worker does when polls find nothing: spin, or adaptive, which pauses and lets others run, and
    /// says how much later that may have found an I/O.
    #[arg(long, value_enum, default_value_t = Polling::Spin)]
    pub poll: Polling,

    /// Let neighbours among the I/Os that are submitted in one go share a command, as many as it can carry. Without
    /// this, only those that have to wait for a slot do.
    #[arg(long)]
    pub merge: bool,

    /// What the I/Os are.
    #[arg(short = 'w', long, visible_alias = "rw", value_enum, default_value_t = Pattern::Randread)]
    pub io_pattern: Pattern,

    /// Percentage of reads in rw and randrw; 50 without this.
    #[arg(short = 'M', long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: Option<u8>,

    /// Seconds to measure.
    #[arg(short = 't', long, visible_alias = "runtime", value_name = "SECONDS", default_value = "5", value_parser = duration)]
    pub time: Duration,

    /// End when each worker has done so many I/Os (a few more, in fact), and -t is not over yet.
    #[arg(short = 'd', long, alias = "number_ios", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub number_ios: Option<u64>,

    /// Seconds to run before the measurement begins.
    #[arg(short = 'a', long, visible_alias = "ramp-time", alias = "ramp_time", value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub warmup_time: Duration,

    /// Cores to run on, one thread and one queue pair each: 0,2 or 0-3 or 0x5 (a mask); without
    /// this, one.
    #[arg(short = 'c', long, value_name = "LIST", visible_alias = "core-mask")]
    pub cores: Option<Cores>,

    /// Show the histogram of latencies.
    #[arg(short = 'L', long)]
    pub latency_histogram: bool,

    /// The namespace, of every controller; without this, the first active one of each.
    #[arg(long, value_name = "NSID", value_parser = clap::value_parser!(u32).range(1..))]
    pub nsid: Option<u32>,

    /// The part of the namespace to use: START:LEN, or START-END with END not included. Plain
    /// numbers are LBAs, numbers with a suffix (1G) are bytes.
    #[arg(long, value_name = "RANGE")]
    pub range: Option<RangeOption>,

    /// Write blocks that say which LBA and which generation they are, and check every block read.
    /// Read workloads write the range first; write workloads read it back at the end.
    #[arg(long)]
    pub verify: bool,

    /// The seed of the random LBAs and of the data; without this, another one for each run.
    #[arg(long, value_name = "N", value_parser = seed)]
    pub seed: Option<u64>,

    /// Seconds that a controller may take for a command, 30 without this: then the command is aborted, and if that
    /// does not help, the controller reset. The I/O goes on.
    #[arg(long, value_name = "SECONDS", value_parser = command_timeout)]
    pub command_timeout: Option<Duration>,

    /// Reset the controllers again and again, after so many seconds each. The I/O goes on.
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub reset_every: Option<Duration>,

    /// How data pointers are made.
    #[arg(long, value_enum, default_value_t = Data::Auto)]
    pub data: Data,

    /// Write to a device that is not emulated in this process, or whose blocks are in a file that is there already:
    /// what is on it is lost.
    #[arg(long)]
    pub yes_destroy_data: bool,

    /// Jobs as fio writes them: sections with rw, bs, bssplit, iodepth, numjobs, rwmixread, runtime, size,
    /// offset, verify, filename and a few more. They run at the same time; what they do not say, the other
    /// options do.
    #[arg(long, value_name = "FILE", conflicts_with = "versus")]
    pub jobfile: Option<PathBuf>,

    /// Show what is different in two results (of --json), and measure nothing.
    #[arg(long, value_names = ["A.json", "B.json"], num_args = 2,
          conflicts_with_all = ["devices", "versus", "report", "jobfile"])]
    pub compare: Option<Vec<PathBuf>>,

    /// Write a page of HTML as well: latencies, how it went, the machine. It needs no network.
    #[arg(long, value_name = "FILE", conflicts_with = "versus")]
    pub report: Option<PathBuf>,

    /// Say every so many seconds how it goes, in a line on standard error.
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub status_interval: Option<Duration>,

    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output_format: Format,

    /// The same as --output-format json.
    #[arg(long)]
    json: bool,
}

/// The workloads of SPDK's perf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Reads of random LBAs.
    Randread,
    /// Writes of random LBAs.
    Randwrite,
    /// Reads and writes, sequential.
    #[value(alias = "readwrite")]
    Rw,
    /// Reads and writes of random LBAs.
    Randrw,
}

impl Pattern {
    pub fn is_random(self) -> bool {
        matches!(self, Pattern::Randread | Pattern::Randwrite | Pattern::Randrw)
    }

    pub fn is_mixed(self) -> bool {
        matches!(self, Pattern::Rw | Pattern::Randrw)
    }

    pub fn writes(self) -> bool {
        !matches!(self, Pattern::Read | Pattern::Randread)
    }

    /// The name as it is given.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Data {
    /// SGLs where the controller has them, else PRPs.
    Auto,
    /// Physical Region Pages.
    Prp,
    /// Scatter Gather Lists.
    Sgl,
}

impl From<Data> for DataForm {
    fn from(data: Data) -> DataForm {
        match data {
            Data::Auto => DataForm::Auto,
            Data::Prp => DataForm::Prp,
            Data::Sgl => DataForm::Sgl,
        }
    }
}

impl Options {
    /// What is to be done on each device, as far as it can be told without touching one.
    pub fn jobs(&self) -> Result<Vec<Options>> {
        let devices = if self.devices.is_empty() { vec![Subject::default()] } else { self.devices.clone() };
        let mut jobs = Vec::new();
        for device in devices {
            let options = Options { device, ..self.clone() };
            match &self.jobfile {
                Some(path) => {
                    let read = jobfile::read(path, &options)?;
                    if !self.devices.is_empty() && read.iter().any(|job| job.device != options.device) {
                        let what = format!("--jobfile {}: filename and DEVICE both name one", path.display());
                        return Err(Error::Usage(what + "; leave one of them out"));
                    }
                    jobs.extend(read);
                }
                None => jobs.push(options),
            }
        }
        jobs.iter().try_for_each(Options::check)?;
        check_twice(&jobs)?;
        Ok(jobs)
    }

    /// The same for another device.
    pub fn on(&self, device: &Subject) -> Options {
        Options { device: device.clone(), devices: vec![device.clone()], ..self.clone() }
    }

    /// Whatever can be refused before a device is touched.
    pub fn check(&self) -> Result<()> {
        let pattern = self.io_pattern;
        if self.rwmixread.is_some() && !pattern.is_mixed() {
            let what =
                format!("-M is the read share of rw and randrw, and the workload is {}", pattern.name());
            return Err(Error::Usage(what + "; leave it out, or choose -w randrw"));
        }
        if self.skew().is_some() && !pattern.is_random() {
            let what =
                format!("--zipf and --hot are about random LBAs, and the workload is {}", pattern.name());
            return Err(Error::Usage(what + "; leave them out, or choose -w randread"));
        }
        if self.io_size == 0 {
            return Err(Error::Usage("-o 0: an I/O has at least one block; try -o 4k".into()));
        }
        if matches!(self.device, Subject::Kernel(_)) {
            self.check_kernel()?;
        }
        self.device.leaves().iter().try_for_each(|leaf| self.check_leaf(leaf))
    }

    /// What only the driver's own devices have.
    fn check_kernel(&self) -> Result<()> {
        let device = &self.device;
        if self.nsid.is_some() {
            let what = format!("--nsid: {device} is one namespace already");
            return Err(Error::Usage(what + "; name another one, as in kernel:/dev/nvme0n2"));
        }
        if self.poll != Polling::Spin {
            return Err(Error::Usage(format!(
                "--poll: the kernel waits for {device} as it can; leave it out"
            )));
        }
        if self.merge {
            return Err(Error::Usage(format!("--merge: the kernel decides for {device}; leave it out")));
        }
        if self.data != Data::Auto {
            return Err(Error::Usage(format!("--data: the kernel chooses for {device}; leave it out")));
        }
        if self.command_timeout.is_some() || self.reset_every.is_some() {
            let what = format!("--command-timeout and --reset-every: the kernel looks after {device} itself");
            return Err(Error::Usage(what + "; leave them out"));
        }
        self.check_consent(device)
    }

    fn check_consent(&self, device: &impl fmt::Display) -> Result<()> {
        if !self.destroys_data() || self.yes_destroy_data {
            return Ok(());
        }
        let pattern = self.io_pattern;
        let why = if pattern.writes() { "" } else { " with --verify, which fills the range first," };
        let what = format!("-w {}{why} overwrites data on {device}", pattern.name());
        Err(Error::Usage(what + "; if that may be lost, add --yes-destroy-data"))
    }

    fn check_leaf(&self, leaf: &Leaf) -> Result<()> {
        match leaf {
            Leaf::Emulated(config) if self.verify && config.media == Media::Null => {
                let what = format!("{leaf} has null media, which keeps no data to verify");
                Err(Error::Usage(what + "; use media=ram, as in emulated:media=ram"))
            }
            // A file that is not there yet is made for this run.
            Leaf::Emulated(config) => match &config.media {
                Media::File(path) if path.exists() => self.check_consent(leaf),
                _ => Ok(()),
            },
            Leaf::Pci(_) | Leaf::VfioUser(_) => self.check_consent(leaf),
        }
    }

    pub fn skew(&self) -> Option<Skew> {
        self.zipf.or(self.hot)
    }

    /// The sizes that I/Os have.
    pub fn sizes(&self) -> Vec<u64> {
        match &self.bssplit {
            Some(split) => split.sizes().iter().map(|size| size.0).collect(),
            None => vec![self.io_size],
        }
    }

    /// Bytes of the largest I/O.
    pub fn largest(&self) -> u64 {
        self.bssplit.as_ref().map_or(self.io_size, Split::largest)
    }

    pub fn destroys_data(&self) -> bool {
        self.io_pattern.writes() || self.verify
    }

    pub fn read_share(&self) -> u8 {
        match self.io_pattern {
            Pattern::Read | Pattern::Randread => 100,
            Pattern::Write | Pattern::Randwrite => 0,
            Pattern::Rw | Pattern::Randrw => self.rwmixread.unwrap_or(READ_SHARE),
        }
    }

    pub fn format(&self) -> Format {
        output::format(self.output_format, self.json)
    }
}

/// Jobs that verify one device would each see the other's blocks.
fn check_twice(jobs: &[Options]) -> Result<()> {
    let verified = |job: &&Options| job.verify;
    let shared = |job: &Options| jobs.iter().filter(|other| other.device == job.device).count() > 1;
    match jobs.iter().filter(verified).find(|job| shared(job)) {
        Some(job) => {
            let what = format!("--verify: {} is there twice, and sees the blocks of both", job.device);
            Err(Error::Usage(what + "; name it once, and use --numjobs for more workers"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
impl Options {
    /// The options of a command line that clap accepts.
    pub fn from_line(line: &str) -> Options {
        use clap::FromArgMatches;
        let command = Options::augment_args(clap::Command::new("perf"));
        let matches = command.get_matches_from(["perf"].into_iter().chain(line.split_whitespace()));
        let options = Options::from_arg_matches(&matches).unwrap();
        Options { device: options.devices.first().cloned().unwrap_or_default(), ..options }
    }
}

/// I/Os per second: 200000, 200k.
fn rate(text: &str) -> std::result::Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1000),
        None => (text, 1),
    };
    let rate = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    let rate = rate.filter(|rate| (1..=1_000_000_000).contains(rate));
    rate.ok_or_else(|| "I/Os per second are 1 to 1000000000, such as 200000 or 200k".into())
}

/// A seed that a report has shown.
fn seed(text: &str) -> std::result::Result<u64, String> {
    text.parse().map_err(|_| "a seed is a number, such as the one that a report shows".into())
}

/// Seconds, with a fraction or without: 5, 0.5.
fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) => Err(format!("not within 0 to {MAX_SECONDS} seconds")),
        Err(_) => Err("not a number of seconds, such as 5 or 0.5".into()),
    }
}

/// The size of an I/O. In nvme-cli the letter is for the format of the output.
fn size(text: &str) -> std::result::Result<u64, String> {
    match text {
        "json" | "normal" | "binary" => {
            Err("-o is the size of an I/O here, such as 4k; for JSON, use --json".into())
        }
        text => parse_bytes(text),
    }
}

/// What the driver takes as a command timeout.
fn command_timeout(text: &str) -> std::result::Result<Duration, String> {
    let (time, most) = (seconds(text)?, *QueueOptions::COMMAND_TIMEOUTS.end());
    match QueueOptions::COMMAND_TIMEOUTS.contains(&time) {
        true => Ok(time),
        false => Err(format!("a command timeout is 0.001 to {} seconds", most.as_secs())),
    }
}

/// Seconds between two resets, or two lines: more often, and nothing is done between them.
fn interval(text: &str) -> std::result::Result<Duration, String> {
    match seconds(text)? {
        time if time < Duration::from_millis(100) => Err("at least 0.1 seconds".into()),
        time => Ok(time),
    }
}

/// Seconds, at least a little.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    match seconds(text)? {
        time if time < Duration::from_millis(1) => Err("a measurement takes at least 0.001 seconds".into()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<()> {
        Options::from_line(line).check()
    }

    #[test]
    fn nothing_is_good_enough() {
        check("").unwrap();
    }

    #[test]
    fn writing_to_hardware_needs_consent() {
        for line in ["-w write", "-w randrw -M 100", "-w randread --verify", "-w write --range 0:1"] {
            let error = check(&format!("01:00.0 {line}")).unwrap_err().to_string();
            assert!(error.contains("0000:01:00.0; if that may be lost, add --yes-destroy-data"), "{error}");
            check(&format!("01:00.0 --yes-destroy-data {line}")).unwrap();
            check(&format!("emulated:media=ram {line}")).unwrap();
        }
        check("01:00.0 -w randread").unwrap();
        check("mirror(emulated,01:00.0) -w randread").unwrap();
        let error = check("mirror(emulated:media=ram,trace(01:00.0)) --verify").unwrap_err().to_string();
        assert!(error.contains("overwrites data on 0000:01:00.0; if that may be lost"), "{error}");
    }

    #[test]
    fn a_file_that_is_there_is_overwritten_with_consent_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        let device = format!("emulated:size=1M,media=file:{}", file.display());
        check(&format!("{device} -w write")).unwrap();
        std::fs::write(&file, "data").unwrap();
        for line in ["-w write", "-w randrw", "--verify", "-w read --verify"] {
            let error = check(&format!("{device} {line}")).unwrap_err().to_string();
            assert!(error.contains("disk; if that may be lost, add --yes-destroy-data"), "{error}");
            check(&format!("{device} {line} --yes-destroy-data")).unwrap();
        }
        check(&device).unwrap();
        assert!(check("trace(emulated:size=4k,media=file:/dev/null) -w write").is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn contradictions_are_refused() {
        for (line, what) in [
            ("-w read -M 70", "-M"),
            ("-o 0", "at least one block"),
            ("--verify", "null media"),
            ("emulated:media=null --verify", "media=ram"),
            ("mirror(emulated:media=ram,trace(emulated:mdts=3)) --verify", "emulated:mdts=3 has null media"),
        ] {
            assert!(check(line).unwrap_err().to_string().contains(what), "{line}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!((rate("200000"), rate("200k")), (Ok(200_000), Ok(200_000)));
        for bad in ["0", "k", "-1", "1M", "1000000001", "18446744073709551615k"] {
            assert!(rate(bad).unwrap_err().contains("such as"), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(command_timeout("86400"), Ok(Duration::from_secs(86_400)));
        assert!(command_timeout("86401").is_err() && command_timeout("0").is_err());
        assert!(interval("0.1").is_ok() && interval("0.05").is_err());
        for bad in ["0", "-1", "nan", "inf", "1e300", "5s", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}

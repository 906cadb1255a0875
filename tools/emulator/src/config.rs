//! What the controller is like: its size, its limits, its features, as values and as text.
//!
//! Knows names and ranges of settings; must not know what the controller does with them.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use kiovec::spec::Status;
use kiovec::spec::identify::{ONCS_COMPARE, ONCS_DATASET_MANAGEMENT, ONCS_SAVE_SELECT, ONCS_WRITE_ZEROES};

use crate::faults::{Commands, Effect, Fault, Faults};

/// What the controller stores its blocks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// Nothing: writes are dropped, and a read succeeds without touching memory. For speed.
    Null,
    /// Memory, allocated as it is written. Blocks never written or deallocated read as zeros.
    Ram,
    /// A file or a block device, with all namespaces one after the other. A file is made, or made
    /// longer, if it has to be. Nobody else can use it meanwhile (flock).
    File(PathBuf),
}

impl FromStr for Media {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Media, ConfigError> {
        match text.split_once(':') {
            None if text == "null" => Ok(Media::Null),
            None if text == "ram" => Ok(Media::Ram),
            Some(("file", path)) if !path.is_empty() => Ok(Media::File(path.into())),
            _ => Err(ConfigError::BadValue { key: "media", value: text.to_owned(), allowed: MEDIA }),
        }
    }
}

impl fmt::Display for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Media::Null => f.write_str("null"),
            Media::Ram => f.write_str("ram"),
            Media::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

const MEDIA: &str = "null, ram or file:PATH";

/// How the controller supports SGLs (Base 2.0, section 5.17.2.1, SGLS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sgl {
    /// Not at all: PRPs only.
    Off,
    /// Without alignment requirement.
    On,
    /// Data blocks with dword alignment and granularity only.
    Dword,
}

/// The settings of an emulated controller.
///
/// ```
/// let config = kiovec_emulator::Config::parse("size=1G,block=512,media=ram,sgl=on")?;
/// assert_eq!((config.size, config.block), (1 << 30, 512));
/// # Ok::<(), kiovec_emulator::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The name of the function, for messages.
    pub name: String,
    /// `size`: bytes of each namespace, a multiple of the block size.
    pub size: u64,
    /// `block`: bytes of a logical block, a power of two from 512 to 65536.
    pub block: u32,
    /// `media`: what is behind the blocks.
    pub media: Media,
    /// `namespaces`: how many, all alike, with NSIDs from 1 on.
    pub namespaces: u32,
    /// `mdts`: 2^mdts pages of 2^(12 + mpsmin) bytes are the largest transfer; 0 is no limit.
    pub mdts: u8,
    /// `mqes`: CAP.MQES, so one less than the entries of the largest I/O queue.
    pub mqes: u16,
    /// `queues`: I/O queue pairs.
    pub queues: u16,
    /// `sgl`: SGLs in I/O commands.
    pub sgl: Sgl,
    /// `oncs`: optional NVM commands, a subset of [`Config::ONCS`].
    pub oncs: u16,
    /// `acl`: Abort commands that may be outstanding at a time, less one.
    pub acl: u8,
    /// `vwc`: whether a volatile write cache is reported.
    pub vwc: bool,
    /// `write_cache`: blocks that the volatile write cache holds, all namespaces together. A
    /// [loss of power](crate::Emulator::power_loss) takes back what was not flushed. 0: nothing is ever lost. Only
    /// with `vwc=on` and `media=ram`.
    pub write_cache: u32,
    /// `dbbuf`: whether it has shadow doorbells (Doorbell Buffer Config).
    pub dbbuf: bool,
    /// `wzsl`: 2^wzsl pages are the largest Write Zeroes; 0 is no limit.
    pub wzsl: u8,
    /// `dmrl`: ranges of a Dataset Management command; 0 is no limit but the 256 of the format.
    pub dmrl: u8,
    /// `dmrsl`: blocks of a range; 0 is no limit.
    pub dmrsl: u32,
    /// `dmsl`: blocks of all ranges together; 0 is no limit.
    pub dmsl: u64,
    /// `noiob`: optimal I/O boundary in blocks; 0 is none.
    pub noiob: u16,
    /// `awupf`: AWUPF, one less than the blocks that are written whole or not at all, whatever happens.
    pub awupf: u16,
    /// `nawupf`: NAWUPF, the same for a namespace; 0 is not reported.
    pub nawupf: u16,
    /// `nabspf`: NABSPF, one less than the blocks between boundaries that such a write cannot cross; 0
    /// is none.
    pub nabspf: u16,
    /// `mpsmin`: CAP.MPSMIN, memory pages of at least 2^(12 + mpsmin) bytes.
    pub mpsmin: u8,
    /// `to`: CAP.TO, in units of 500 ms.
    pub to: u8,
    /// `ready`: how long enabling takes.
    pub ready: Duration,
    /// `never_ready`: CSTS.RDY never follows CC.EN.
    pub never_ready: bool,
    /// `iova_bits`: width of the addresses that can be mapped for DMA.
    pub iova_bits: u8,
    /// `serial`: the serial number, up to 20 printable characters.
    pub serial: String,
    /// `core`: the processor that the controller's thread stays on.
    pub core: Option<usize>,
    /// `read_error`: blocks that cannot be read (Unrecovered Read Error), in every namespace.
    pub read_error: Option<RangeInclusive<u64>>,
    /// `write_error`: blocks that cannot be written (Write Fault), in every namespace.
    pub write_error: Option<RangeInclusive<u64>>,
    /// `random_order`: commands complete in any order ([`Faults::random_order`]).
    pub random_order: bool,
    /// `seed`: what that order follows from.
    pub seed: u64,
    /// `fatal_after`: I/O commands until there is a fatal status in place of a completion; 0 is never.
    pub fatal_after: u64,
    /// `unplug_after`: I/O commands until the device vanishes; 0 is never.
    pub unplug_after: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "emulated".to_owned(),
            size: 1 << 30,
            block: 4096,
            media: Media::Null,
            namespaces: 1,
            mdts: 5,
            mqes: 4095,
            queues: 64,
            sgl: Sgl::Off,
            oncs: Config::ONCS,
            acl: 0,
            vwc: true,
            write_cache: 0,
            dbbuf: false,
            wzsl: 0,
            dmrl: 0,
            dmrsl: 0,
            dmsl: 0,
            noiob: 0,
            awupf: 0,
            nawupf: 0,
            nabspf: 0,
            mpsmin: 0,
            to: 2,
            ready: Duration::ZERO,
            never_ready: false,
            iova_bits: 39,
            serial: "EMULATED0001".to_owned(),
            core: None,
            read_error: None,
            write_error: None,
            random_order: false,
            seed: 0,
            fatal_after: 0,
            unplug_after: 0,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A part of the text is no setting.
    #[error("{0:?} is not of the form key=value; keys are: {keys}", keys = keys())]
    NotASetting(String),
    /// There is no such setting.
    #[error("there is no setting {0:?}; there are: {keys}", keys = keys())]
    UnknownKey(String),
    /// A setting is there twice.
    #[error("{0} is set twice")]
    Twice(&'static str),
    /// A value is not one that the setting can have.
    #[error("{key}={value} is not possible; {key} is {allowed}")]
    BadValue {
        /// The setting.
        key: &'static str,
        /// The value given.
        value: String,
        /// What it can be.
        allowed: &'static str,
    },
}

fn keys() -> String {
    let keys: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    keys.join(", ")
}

struct Setting {
    key: &'static str,
    allowed: &'static str,
    /// Sets it from text; `None` if the text is not of its form.
    set: fn(&mut Config, &str) -> Option<()>,
    /// Whether the value is in its range.
    valid: fn(&Config) -> bool,
    get: fn(&Config) -> String,
}

/// One setting whose text is a number.
macro_rules! number {
    ($key:ident, $allowed:expr, $valid:expr) => {
        Setting {
            key: stringify!($key),
            allowed: $allowed,
            set: |config, text| {
                config.$key = number(text)?.try_into().ok()?;
                Some(())
            },
            valid: |config| $valid(config, config.$key),
            get: |config| config.$key.to_string(),
        }
    };
}

/// One setting whose text is on or off.
macro_rules! switch {
    ($key:ident) => {
        Setting {
            key: stringify!($key),
            allowed: "on or off",
            set: |config, text| {
                config.$key = on_off(text)?;
                Some(())
            },
            valid: |_| true,
            get: |config| if config.$key { "on".into() } else { "off".into() },
        }
    };
}

/// One setting whose text is a block or a range of blocks.
macro_rules! blocks {
    ($key:ident) => {
        Setting {
            key: stringify!($key),
            allowed: "a block or first-last, within the namespace",
            set: |config, text| {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                config.$key = Some(number(first)?..=number(last)?);
                Some(())
            },
            valid: |config| {
                let within = |lbas: &RangeInclusive<u64>| !lbas.is_empty() && *lbas.end() < config.blocks();
                config.$key.as_ref().is_none_or(within)
            },
            get: |config| match &config.$key {
                Some(lbas) => format!("{}-{}", lbas.start(), lbas.end()),
                None => "none".into(),
            },
        }
    };
}

const ANY_U8: &str = "a number from 0 to 255";

const SETTINGS: &[Setting] = &[
    number!(block, "a power of two from 512 to 65536", |_: &Config, block: u32| {
        block.is_power_of_two() && (512..=65536).contains(&block)
    }),
    number!(
        size,
        "a number of bytes, with K, M, G or T, that is a multiple of block and at most 4096T",
        |config: &Config, size: u64| {
            size > 0 && size <= 1 << 52 && config.block != 0 && size.is_multiple_of(config.block.into())
        }
    ),
    Setting {
        key: "media",
        allowed: MEDIA,
        set: |config, text| {
            config.media = text.parse().ok()?;
            Some(())
        },
        valid: |_| true,
        get: |config| config.media.to_string(),
    },
    number!(namespaces, "a number from 1 to 1024", |_: &Config, n: u32| (1..=1024).contains(&n)),
    number!(mdts, "a number from 0 (no limit) to 20", |_: &Config, n: u8| n <= 20),
    number!(mqes, "a number from 1 to 65535: entries less one", |_: &Config, n: u16| n >= 1),
    number!(queues, "a number from 1 to 1024", |_: &Config, n: u16| (1..=1024).contains(&n)),
    Setting {
        key: "sgl",
        allowed: "off, on or dword",
        set: |config, text| {
            config.sgl = match text {
                "off" => Sgl::Off,
                "on" => Sgl::On,
                "dword" => Sgl::Dword,
                _ => return None,
            };
            Some(())
        },
        valid: |_| true,
        get: |config| format!("{:?}", config.sgl).to_lowercase(),
    },
    number!(
        oncs,
        "a sum of 1 (compare), 4 (dataset management), 8 (write zeroes) and 16 (save and select)",
        |_: &Config, oncs: u16| oncs & !Config::ONCS == 0
    ),
    number!(acl, ANY_U8, |_: &Config, _| true),
    switch!(vwc),
    number!(
        write_cache,
        "a number of blocks, other than 0 only with vwc=on and media=ram",
        |config: &Config, n: u32| n == 0 || config.vwc && config.media == Media::Ram
    ),
    switch!(dbbuf),
    number!(wzsl, "a number from 0 (no limit) to 20", |_: &Config, n: u8| n <= 20),
    number!(dmrl, ANY_U8, |_: &Config, _| true),
    number!(dmrsl, "a number of blocks below 4G", |_: &Config, _| true),
    number!(dmsl, "a number of blocks", |_: &Config, _| true),
    number!(noiob, "a number of blocks up to 65535", |_: &Config, _| true),
    number!(awupf, "a number of blocks less one, up to 65535", |_: &Config, _| true),
    number!(nawupf, "a number of blocks less one, 0 (none) or not below awupf", |config: &Config, n: u16| {
        n == 0 || n >= config.awupf
    }),
    number!(
        nabspf,
        "a number of blocks less one, 0 (none) or not below awupf and nawupf",
        |config: &Config, n: u16| n == 0 || n >= config.awupf.max(config.nawupf)
    ),
    number!(mpsmin, "a number from 0 to 4", |_: &Config, n: u8| n <= 4),
    number!(to, ANY_U8, |_: &Config, _| true),
    Setting {
        key: "ready",
        allowed: "a number of milliseconds up to 600000",
        set: |config, text| {
            config.ready = Duration::from_millis(number(text)?);
            Some(())
        },
        valid: |config| config.ready <= Duration::from_secs(600),
        get: |config| config.ready.as_millis().to_string(),
    },
    switch!(never_ready),
    number!(iova_bits, "a number from 32 to 64", |_: &Config, n: u8| (32..=64).contains(&n)),
    Setting {
        key: "serial",
        allowed: "1 to 20 letters, digits, hyphens or underscores",
        set: |config, text| {
            config.serial = text.to_owned();
            Some(())
        },
        valid: |config| {
            let serial = config.serial.as_bytes();
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=20).contains(&serial.len()) && serial.iter().all(plain)
        },
        get: |config| config.serial.clone(),
    },
    Setting {
        key: "core",
        allowed: "the number of a processor, up to 1023",
        set: |config, text| {
            config.core = Some(number(text)?.try_into().ok()?);
            Some(())
        },
        valid: |config| config.core.is_none_or(|core| core < 1024),
        get: |config| config.core.map_or_else(|| "none".into(), |core| core.to_string()),
    },
    blocks!(read_error),
    blocks!(write_error),
    switch!(random_order),
    number!(seed, "a number", |_: &Config, _| true),
    number!(fatal_after, "a number of I/O commands, or 0 (never)", |_: &Config, _| true),
    number!(unplug_after, "a number of I/O commands, or 0 (never)", |_: &Config, _| true),
];

impl Config {
    /// The optional NVM commands that the controller can do.
    pub const ONCS: u16 = ONCS_COMPARE | ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES | ONCS_SAVE_SELECT;

    /// Reads settings as they follow `emulated:` in the name of a device: `size=1G,block=4096`.
    /// What is not there has its default.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let mut seen = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(ConfigError::NotASetting(part.to_owned()));
            };
            let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
                return Err(ConfigError::UnknownKey(key.to_owned()));
            };
            if seen.contains(&setting.key) {
                return Err(ConfigError::Twice(setting.key));
            }
            seen.push(setting.key);
            (setting.set)(&mut config, value).ok_or_else(|| setting.refuse(value.to_owned()))?;
        }
        config.check()?;
        if !text.is_empty() {
            config.name = format!("emulated:{text}");
        }
        Ok(config)
    }

    /// Whether every setting is in its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        match SETTINGS.iter().find(|setting| !(setting.valid)(self)) {
            Some(setting) => Err(setting.refuse((setting.get)(self))),
            None => Ok(()),
        }
    }

    /// The plan of faults that the settings describe.
    pub fn faults(&self) -> Faults {
        let error = |commands: Commands, lbas: &RangeInclusive<u64>, status| {
            Fault::new(commands.lbas(lbas.clone()), Effect::Status(status))
        };
        let end = |after, effect| (after > 0).then(|| Fault::new(Commands::io(), effect).after(after));
        let read_error = self.read_error.as_ref();
        let write_error = self.write_error.as_ref();
        let faults = [
            read_error.map(|lbas| error(Commands::reads(), lbas, Status::UNRECOVERED_READ_ERROR)),
            write_error.map(|lbas| error(Commands::writes(), lbas, Status::WRITE_FAULT)),
            end(self.fatal_after, Effect::Fatal),
            end(self.unplug_after, Effect::Unplug),
        ];
        let plan = Faults::seeded(self.seed);
        let plan = if self.random_order { plan.random_order() } else { plan };
        faults.into_iter().flatten().fold(plan, Faults::with)
    }

    /// Blocks of each namespace.
    pub fn blocks(&self) -> u64 {
        self.size / u64::from(self.block)
    }
}

impl Setting {
    fn refuse(&self, value: String) -> ConfigError {
        ConfigError::BadValue { key: self.key, value, allowed: self.allowed }
    }
}

/// A number, decimal or 0x, with a binary suffix.
fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let shift = match text.bytes().last()? {
        b'K' | b'k' => 10,
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        b'T' | b't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { text.get(..text.len() - 1)? };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn on_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn every_setting_is_read() {
        let text = "size=2G,block=512,media=ram,namespaces=2,mdts=0,mqes=255,queues=8,sgl=dword,oncs=0xc,acl=1,vwc=on,write_cache=35,dbbuf=on,\
                    wzsl=3,dmrl=4,dmrsl=5,dmsl=6,noiob=7,awupf=3,nawupf=7,nabspf=15,mpsmin=1,to=9,ready=10,never_ready=on,iova_bits=48,\
                    serial=A-1,core=0,read_error=8,write_error=16-31,random_order=on,seed=32,fatal_after=33,\
                    unplug_after=34";
        let expected = Config {
            name: format!("emulated:{text}"),
            size: 2 << 30,
            block: 512,
            media: Media::Ram,
            namespaces: 2,
            mdts: 0,
            mqes: 255,
            queues: 8,
            sgl: Sgl::Dword,
            oncs: 12,
            acl: 1,
            vwc: true,
            write_cache: 35,
            dbbuf: true,
            wzsl: 3,
            dmrl: 4,
            dmrsl: 5,
            dmsl: 6,
            noiob: 7,
            awupf: 3,
            nawupf: 7,
            nabspf: 15,
            mpsmin: 1,
            to: 9,
            ready: Duration::from_millis(10),
            never_ready: true,
            iova_bits: 48,
            serial: "A-1".into(),
            core: Some(0),
            read_error: Some(8..=8),
            write_error: Some(16..=31),
            random_order: true,
            seed: 32,
            fatal_after: 33,
            unplug_after: 34,
        };
        assert_eq!(Config::parse(text).unwrap(), expected);
        for setting in SETTINGS {
            assert!(text.contains(&format!("{}=", setting.key)), "{} is not tested", setting.key);
        }
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, size) in [("4096", 4096), ("8k", 8192), ("8K", 8192), ("3M", 3 << 20), ("2T", 2 << 40)] {
            assert_eq!(Config::parse(&format!("size={text}")).unwrap().size, size);
        }
        assert!(refused("size=99999999T").starts_with("size=99999999T is not possible"));
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        assert_eq!(
            refused("block=513"),
            "block=513 is not possible; block is a power of two from 512 to 65536"
        );
        assert_eq!(refused("media=tape"), "media=tape is not possible; media is null, ram or file:PATH");
        assert_eq!(refused("sgl=yes"), "sgl=yes is not possible; sgl is off, on or dword");
        assert_eq!(refused("queues=0"), "queues=0 is not possible; queues is a number from 1 to 1024");
        assert_eq!(refused("mdts=300"), "mdts=300 is not possible; mdts is a number from 0 (no limit) to 20");
        assert!(refused("size=5000,block=4096").starts_with("size=5000 is not possible"));
        assert!(refused("size=-1").starts_with("size=-1 is not possible"));
        assert!(refused("size=K").starts_with("size=K is not possible"));
        assert!(refused("serial=").starts_with("serial= is not possible"));
        assert!(refused("read_error=9-8").starts_with("read_error=9-8 is not possible"));
        assert!(refused("size=1M,write_error=256").starts_with("write_error=256-256 is not possible"));
        assert!(refused("read_error=1-2-3").starts_with("read_error=1-2-3 is not possible"));
        assert!(refused("awupf=7,nawupf=3").starts_with("nawupf=3 is not possible"));
        assert!(refused("nawupf=7,nabspf=3").starts_with("nabspf=3 is not possible"));
        assert!(refused("oncs=2").starts_with("oncs=2 is not possible; oncs is a sum of 1 (compare)"));
    }

    #[test]
    fn a_wrong_key_is_named_with_those_there_are() {
        assert!(
            refused("sise=1G").starts_with("there is no setting \"sise\"; there are: block, size, media")
        );
        assert!(refused("1G").starts_with("\"1G\" is not of the form key=value; keys are: block"));
        assert!(refused("block=512,").starts_with("\"\" is not of the form"));
        assert_eq!(refused("block=512,block=512"), "block is set twice");
    }
}

//! Features: Set Features (Base 2.0, section 5.27) and Get Features (section 5.15).
//!
//! Knows values and their ranges; must not know queues, except how many there may be.

use std::collections::BTreeMap;

use kiovec::spec::command::NSID_ALL;
use kiovec::spec::{Command, FeatureId, NumberOfQueues, Status};

use crate::config::Config;

/// CDW10 of Set Features: Save.
const SAVE: u32 = 1 << 31;
/// What Get Features with Select 3 says of a feature that can be changed.
const CHANGEABLE: u32 = 1 << 2;
/// The same: it is kept per namespace.
const PER_NAMESPACE: u32 = 1 << 1;
/// Thresholds in kelvins: what the over temperature threshold is without a host's doing.
const WARNING_KELVIN: u32 = 343;
/// Fields of Temperature Threshold: TMPSEL and THSEL, above the threshold itself.
const THRESHOLD_SELECT: u32 = 0x3f_0000;

/// The values that the host has set since the last reset; what is not there has its default.
#[derive(Debug)]
pub(crate) struct Features {
    /// By feature, and by what else selects a value: a namespace, a threshold or an interrupt vector.
    values: BTreeMap<(u8, u32), u32>,
    queues: u32,
    namespaces: u32,
    vwc: bool,
    /// Advanced Command Retry Enable, of Host Behavior Support (Base 2.0, section 5.27.1.18).
    pub(crate) advanced_retry: bool,
}

impl Features {
    pub(crate) fn new(config: &Config) -> Features {
        Features {
            values: BTreeMap::new(),
            queues: config.queues.into(),
            namespaces: config.namespaces,
            vwc: config.vwc,
            advanced_retry: false,
        }
    }

    /// I/O queues that the host may create: submission, completion.
    pub(crate) fn queues(&self) -> (u16, u16) {
        let counts = NumberOfQueues::decode(self.value(FeatureId::NUMBER_OF_QUEUES, 0));
        (counts.submission as u16, counts.completion as u16)
    }

    /// The events that are reported: Asynchronous Event Configuration (Base 2.0, section 5.27.1.8).
    pub(crate) fn events(&self) -> u32 {
        self.value(FeatureId::ASYNC_EVENT_CONFIGURATION, 0)
    }

    /// Whether there is a volatile write cache, and it is on.
    pub(crate) fn write_cache(&self) -> bool {
        self.vwc && self.value(FeatureId::VOLATILE_WRITE_CACHE, 0) & 1 != 0
    }

    /// Set Features. `started`: I/O queues were created since the last reset.
    pub(crate) fn set(&mut self, command: &Command, started: bool) -> Result<u32, Status> {
        let feature = FeatureId(command.cdw10 as u8);
        let value = command.cdw11;
        let select = self.select(feature, command)?;
        if command.cdw10 & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        if !is_per_namespace(feature) && command.nsid != 0 && command.nsid != NSID_ALL {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
        }
        let value = match feature {
            FeatureId::NUMBER_OF_QUEUES if started => {
                return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
            }
            FeatureId::NUMBER_OF_QUEUES => self.grant(value)?,
            FeatureId::WRITE_ATOMICITY | FeatureId::ASYNC_EVENT_CONFIGURATION => value,
            FeatureId::ARBITRATION => value & 0xffff_ff07,
            // There is one power state, 0, and no workload hint is used.
            FeatureId::POWER_MANAGEMENT if value & 0x1f == 0 => value & 0xe0,
            FeatureId::POWER_MANAGEMENT => return Err(Status::INVALID_FIELD.with_dnr()),
            FeatureId::TEMPERATURE_THRESHOLD => value & 0xffff,
            // Deallocated or Unwritten Logical Block Error Enable needs support in NSFEAT.
            FeatureId::ERROR_RECOVERY if value & 1 << 16 != 0 => {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            FeatureId::ERROR_RECOVERY => value & 0xffff,
            FeatureId::VOLATILE_WRITE_CACHE => value & 1,
            FeatureId::INTERRUPT_COALESCING => value & 0xffff,
            FeatureId::INTERRUPT_VECTOR => value & 0x1_ffff,
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        };
        self.values.insert((feature.0, select), value);
        Ok(if feature == FeatureId::NUMBER_OF_QUEUES { value } else { 0 })
    }

    /// Get Features: current, default, saved (which is the default) or capabilities.
    pub(crate) fn get(&self, command: &Command) -> Result<u32, Status> {
        let feature = FeatureId(command.cdw10 as u8);
        let select = self.select(feature, command)?;
        match command.cdw10 >> 8 & 7 {
            0 => Ok(self.value(feature, select)),
            1 | 2 => Ok(self.default_value(feature, select)),
            3 if is_per_namespace(feature) => Ok(CHANGEABLE | PER_NAMESPACE),
            3 => Ok(CHANGEABLE),
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    /// Temperature Threshold has a value per sensor and direction, Error Recovery per namespace,
    /// Interrupt Vector Configuration per vector.
    /// An error if the feature does not exist.
    fn select(&self, feature: FeatureId, command: &Command) -> Result<u32, Status> {
        match feature {
            FeatureId::TEMPERATURE_THRESHOLD => threshold(command.cdw11),
            FeatureId::ERROR_RECOVERY if (1..=self.namespaces).contains(&command.nsid) => Ok(command.nsid),
            FeatureId::ERROR_RECOVERY => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
            // There is a vector for each queue, and one for the Admin queue.
            FeatureId::INTERRUPT_VECTOR if command.cdw11 & 0xffff <= self.queues => {
                Ok(command.cdw11 & 0xffff)
            }
            FeatureId::VOLATILE_WRITE_CACHE if self.vwc => Ok(0),
            FeatureId::ARBITRATION
            | FeatureId::POWER_MANAGEMENT
            | FeatureId::NUMBER_OF_QUEUES
            | FeatureId::INTERRUPT_COALESCING
            | FeatureId::WRITE_ATOMICITY
            | FeatureId::ASYNC_EVENT_CONFIGURATION => Ok(0),
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    fn value(&self, feature: FeatureId, select: u32) -> u32 {
        let set = self.values.get(&(feature.0, select)).copied();
        set.unwrap_or_else(|| self.default_value(feature, select))
    }

    fn default_value(&self, feature: FeatureId, select: u32) -> u32 {
        match feature {
            FeatureId::NUMBER_OF_QUEUES => {
                NumberOfQueues { submission: self.queues, completion: self.queues }.encode()
            }
            // Arbitration Burst: no limit but the controller's own.
            FeatureId::ARBITRATION => 0b111,
            FeatureId::TEMPERATURE_THRESHOLD if select == 0 => WARNING_KELVIN,
            FeatureId::VOLATILE_WRITE_CACHE => 1,
            FeatureId::INTERRUPT_VECTOR => select,
            _ => 0,
        }
    }

    /// What is granted of the queues that were asked for.
    fn grant(&self, value: u32) -> Result<u32, Status> {
        let asked = NumberOfQueues::decode(value);
        if asked.submission > 65535 || asked.completion > 65535 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let granted = NumberOfQueues {
            submission: asked.submission.min(self.queues),
            completion: asked.completion.min(self.queues),
        };
        Ok(granted.encode())
    }
}

fn is_per_namespace(feature: FeatureId) -> bool {
    feature == FeatureId::ERROR_RECOVERY
}

/// TMPSEL 0 is the composite temperature, and there are no sensors. THSEL is over or under.
fn threshold(value: u32) -> Result<u32, Status> {
    match value & THRESHOLD_SELECT {
        select @ (0 | 0x10_0000) => Ok(select),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(text: &str) -> Features {
        Features::new(&Config::parse(text).unwrap())
    }

    fn set(features: &mut Features, feature: FeatureId, value: u32) -> Result<u32, Status> {
        features.set(&Command::set_features(feature, value), false)
    }

    fn get(features: &Features, feature: FeatureId, select: u32) -> Result<u32, Status> {
        let mut command = Command::get_features(feature);
        command.cdw10 |= select << 8;
        features.get(&command)
    }

    const INVALID_FIELD: Result<u32, Status> = Err(Status::INVALID_FIELD.with_dnr());

    #[test]
    fn the_number_of_queues_is_negotiated_once() {
        let mut features = features("queues=8");
        assert_eq!(features.queues(), (8, 8));
        let set = |features: &mut Features, value, started| {
            features.set(&Command::set_features(FeatureId::NUMBER_OF_QUEUES, value), started)
        };
        assert_eq!(set(&mut features, 0x0003_0001, false), Ok(0x0003_0001));
        assert_eq!(features.queues(), (2, 4));
        assert_eq!(set(&mut features, 0x00ff_00ff, false), Ok(0x0007_0007));
        assert_eq!(get(&features, FeatureId::NUMBER_OF_QUEUES, 0), Ok(0x0007_0007));
        assert_eq!(set(&mut features, 0xffff_0001, false), INVALID_FIELD);
        assert_eq!(set(&mut features, 0x0001_ffff, false), INVALID_FIELD);
        let late = set(&mut features, 0x0001_0001, true);
        assert_eq!(late, Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()));
        assert_eq!(features.queues(), (8, 8));
    }

    #[test]
    fn values_are_kept_and_defaults_remain() {
        let mut features = features("");
        for (feature, value) in [
            (FeatureId::ARBITRATION, 0x0102_0303),
            (FeatureId::VOLATILE_WRITE_CACHE, 0),
            (FeatureId::ASYNC_EVENT_CONFIGURATION, 0x1f),
            (FeatureId::INTERRUPT_COALESCING, 0x0507),
            (FeatureId::TEMPERATURE_THRESHOLD, 350),
            (FeatureId::WRITE_ATOMICITY, 1),
        ] {
            let default = get(&features, feature, 0).unwrap();
            assert_ne!(default, value);
            assert_eq!(set(&mut features, feature, value), Ok(0));
            assert_eq!(get(&features, feature, 0), Ok(value));
            assert_eq!(get(&features, feature, 1), Ok(default));
            assert_eq!(get(&features, feature, 2), Ok(default));
            assert_eq!(get(&features, feature, 3), Ok(CHANGEABLE));
            assert_eq!(get(&features, feature, 4), INVALID_FIELD);
        }
        assert_eq!(set(&mut features, FeatureId::POWER_MANAGEMENT, 1), INVALID_FIELD);
        assert_eq!(set(&mut features, FeatureId::TEMPERATURE_THRESHOLD, 1 << 16 | 300), INVALID_FIELD);
        assert_eq!(set(&mut features, FeatureId::TEMPERATURE_THRESHOLD, 1 << 20 | 270), Ok(0));
        assert_eq!(get(&features, FeatureId::TEMPERATURE_THRESHOLD, 0), Ok(350));
    }

    #[test]
    fn each_interrupt_vector_has_a_configuration() {
        let mut features = features("queues=4");
        assert_eq!(set(&mut features, FeatureId::INTERRUPT_VECTOR, 1 << 16 | 4), Ok(0));
        assert_eq!(set(&mut features, FeatureId::INTERRUPT_VECTOR, 5), INVALID_FIELD);
        let get = |vector| {
            let command = Command { cdw11: vector, ..Command::get_features(FeatureId::INTERRUPT_VECTOR) };
            features.get(&command)
        };
        assert_eq!((get(4), get(3), get(5)), (Ok(1 << 16 | 4), Ok(3), INVALID_FIELD));
    }

    #[test]
    fn the_write_cache_is_on_until_it_is_switched_off() {
        let mut on = features("");
        assert!(on.write_cache());
        assert_eq!(set(&mut on, FeatureId::VOLATILE_WRITE_CACHE, 0), Ok(0));
        assert!(!on.write_cache() && !features("vwc=off").write_cache());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut features = features("vwc=off");
        for feature in [FeatureId::VOLATILE_WRITE_CACHE, FeatureId::TIMESTAMP, FeatureId(0), FeatureId(0xff)]
        {
            assert_eq!(set(&mut features, feature, 0), INVALID_FIELD);
            assert_eq!(get(&features, feature, 0), INVALID_FIELD);
        }
    }

    #[test]
    fn saving_and_namespaces() {
        let mut features = features("namespaces=2");
        let mut command = Command::set_features(FeatureId::ARBITRATION, 0);
        command.nsid = 1;
        let refused = features.set(&command, false);
        assert_eq!(refused, Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr()));
        command.nsid = NSID_ALL;
        assert_eq!(features.set(&command, false), Ok(0));
        command.cdw10 |= SAVE;
        assert_eq!(features.set(&command, false), Err(Status::FEATURE_NOT_SAVEABLE.with_dnr()));

        let mut command = Command::set_features(FeatureId::ERROR_RECOVERY, 5);
        assert_eq!(features.set(&command, false), Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()));
        command.nsid = 2;
        assert_eq!(features.set(&command, false), Ok(0));
        assert_eq!(features.get(&command), Ok(5));
        command.nsid = 1;
        assert_eq!(features.get(&command), Ok(0));
        command.cdw11 = 1 << 16;
        assert_eq!(features.set(&command, false), INVALID_FIELD);
    }
}

//! Log pages (Base 2.0, section 5.16.1).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Status;

/// Log Page Identifier (Base 2.0, section 5.16.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogPage(pub u8);

impl LogPage {
    /// Supported Log Pages (Base 2.0, section 5.16.1.1).
    pub const SUPPORTED: LogPage = LogPage(0x00);
    /// Error Information (Base 2.0, section 5.16.1.2).
    pub const ERROR: LogPage = LogPage(0x01);
    /// SMART / Health Information (Base 2.0, section 5.16.1.3).
    pub const SMART: LogPage = LogPage(0x02);
    /// Firmware Slot Information (Base 2.0, section 5.16.1.4).
    pub const FIRMWARE_SLOT: LogPage = LogPage(0x03);
    /// Changed Namespace List (Base 2.0, section 5.16.1.5).
    pub const CHANGED_NAMESPACES: LogPage = LogPage(0x04);
    /// Commands Supported and Effects (Base 2.0, section 5.16.1.6).
    pub const COMMANDS_SUPPORTED: LogPage = LogPage(0x05);
    /// Device Self-test (Base 2.0, section 5.16.1.7).
    pub const DEVICE_SELF_TEST: LogPage = LogPage(0x06);
    /// Telemetry Host-Initiated (Base 2.0, section 5.16.1.8).
    pub const TELEMETRY_HOST: LogPage = LogPage(0x07);
    /// Telemetry Controller-Initiated (Base 2.0, section 5.16.1.9).
    pub const TELEMETRY_CONTROLLER: LogPage = LogPage(0x08);
    /// Endurance Group Information (Base 2.0, section 5.16.1.10).
    pub const ENDURANCE_GROUP: LogPage = LogPage(0x09);
    /// Asymmetric Namespace Access (Base 2.0, section 5.16.1.13).
    pub const ASYMMETRIC_ACCESS: LogPage = LogPage(0x0c);
    /// Persistent Event Log (Base 2.0, section 5.16.1.14).
    pub const PERSISTENT_EVENT: LogPage = LogPage(0x0d);
    /// Reservation Notification (Base 2.0, section 5.16.1.23).
    pub const RESERVATION_NOTIFICATION: LogPage = LogPage(0x80);
    /// Sanitize Status (Base 2.0, section 5.16.1.24).
    pub const SANITIZE_STATUS: LogPage = LogPage(0x81);
}

/// An entry of the Error Information log, 64 bytes (Base 2.0, section 5.16.1.2).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Error Count: unique in the life of the controller; 0 in an unused entry.
    pub error_count: u64,
    /// Submission Queue ID.
    pub sqid: u16,
    /// Command ID.
    pub cid: u16,
    /// Status field in bits 15:1, as in the completion; the phase may be in bit 0.
    pub status_phase: u16,
    /// Parameter Error Location: byte in bits 7:0, bit in bits 10:8; FFFFh if not specific.
    pub parameter_error_location: u16,
    /// First LBA that had the error.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
    /// Vendor Specific Information Available: a log page, or 0.
    pub vendor_information: u8,
    /// Transport Type.
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// Command Specific Information.
    pub command_specific: u64,
    /// Transport Type Specific Information.
    pub transport_specific: u16,
    /// Reserved.
    pub reserved42: [u8; 22],
}

const _: () = assert!(size_of::<ErrorLogEntry>() == 64);

impl ErrorLogEntry {
    /// The Status field (Base 2.0, section 5.16.1.2).
    pub const fn status(&self) -> Status {
        Status::from_phase_word(self.status_phase)
    }
}

/// The SMART / Health Information log, 512 bytes (Base 2.0, section 5.16.1.3).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SmartLog {
    /// Critical Warning, bits.
    pub critical_warning: u8,
    /// Composite Temperature in kelvins; see [`temperature_kelvin`](SmartLog::temperature_kelvin).
    pub composite_temperature: [u8; 2],
    /// Available Spare, percent.
    pub available_spare: u8,
    /// Available Spare Threshold, percent.
    pub available_spare_threshold: u8,
    /// Percentage Used; may exceed 100.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_group_critical_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data Units Read, in thousands of 512 bytes.
    pub data_units_read: [u8; 16],
    /// Data Units Written, in thousands of 512 bytes.
    pub data_units_written: [u8; 16],
    /// Host Read Commands.
    pub host_read_commands: [u8; 16],
    /// Host Write Commands.
    pub host_write_commands: [u8; 16],
    /// Controller Busy Time, minutes.
    pub controller_busy_time: [u8; 16],
    /// Power Cycles.
    pub power_cycles: [u8; 16],
    /// Power On Hours.
    pub power_on_hours: [u8; 16],
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: [u8; 16],
    /// Media and Data Integrity Errors.
    pub media_errors: [u8; 16],
    /// Number of Error Information Log Entries.
    pub error_log_entries: [u8; 16],
    /// Warning Composite Temperature Time, minutes.
    pub warning_temperature_time: u32,
    /// Critical Composite Temperature Time, minutes.
    pub critical_temperature_time: u32,
    /// Temperature Sensors 1 to 8 in kelvins; 0 where there is none.
    pub temperature_sensors: [u16; 8],
    /// Thermal Management Temperature 1 Transition Count.
    pub thermal_1_transitions: u32,
    /// Thermal Management Temperature 2 Transition Count.
    pub thermal_2_transitions: u32,
    /// Total Time For Thermal Management Temperature 1, seconds.
    pub thermal_1_time: u32,
    /// Total Time For Thermal Management Temperature 2, seconds.
    pub thermal_2_time: u32,
    /// Reserved.
    pub reserved232: [u8; 280],
}

const _: () = assert!(size_of::<SmartLog>() == 512);

impl SmartLog {
    /// Composite Temperature in kelvins (Base 2.0, section 5.16.1.3).
    pub const fn temperature_kelvin(&self) -> u16 {
        u16::from_le_bytes(self.composite_temperature)
    }
}

/// The Firmware Slot Information log, 512 bytes (Base 2.0, section 5.16.1.4).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active Firmware Info: the active slot in bits 2:0, the next one in bits 6:4.
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Firmware Revisions of slots 1 to 7.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

/// The Changed Namespace List log, 4096 bytes (Base 2.0, section 5.16.1.5).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ChangedNamespaces {
    /// NSIDs, ascending; the first 0 ends the list. FFFFFFFFh in the first entry: more changed than fit.
    pub nsids: [u32; 1024],
}

const _: () = assert!(size_of::<ChangedNamespaces>() == 4096);

impl ChangedNamespaces {
    /// Whether more namespaces have changed than the list has room for, so that none is named (Base 2.0,
    /// section 5.16.1.5).
    pub const fn overflowed(&self) -> bool {
        self.nsids[0] == u32::MAX
    }
}

/// Critical Warning: the available spare is below its threshold (Base 2.0, section 5.16.1.3).
pub const WARNING_SPARE: u8 = 1 << 0;
/// Critical Warning: a temperature is beyond a threshold (Base 2.0, section 5.16.1.3).
pub const WARNING_TEMPERATURE: u8 = 1 << 1;
/// Critical Warning: the NVM subsystem's reliability is degraded (Base 2.0, section 5.16.1.3).
pub const WARNING_RELIABILITY: u8 = 1 << 2;
/// Critical Warning: all media are read only (Base 2.0, section 5.16.1.3).
pub const WARNING_READ_ONLY: u8 = 1 << 3;
/// Critical Warning: the backup of volatile memory has failed (Base 2.0, section 5.16.1.3).
pub const WARNING_VOLATILE_BACKUP: u8 = 1 << 4;

/// What an Asynchronous Event Request completes with in dword 0 (Base 2.0, section 5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncEvent(pub u32);

impl AsyncEvent {
    /// Asynchronous Event Type: Error status (Base 2.0, section 5.2.1).
    pub const TYPE_ERROR: u8 = 0;
    /// Asynchronous Event Type: SMART / Health status (Base 2.0, section 5.2.1).
    pub const TYPE_SMART: u8 = 1;
    /// Asynchronous Event Type: Notice (Base 2.0, section 5.2.1).
    pub const TYPE_NOTICE: u8 = 2;
    /// Asynchronous Event Type: I/O Command Specific status (Base 2.0, section 5.2.1).
    pub const TYPE_IO_COMMAND: u8 = 6;
    /// Asynchronous Event Type: Vendor specific (Base 2.0, section 5.2.1).
    pub const TYPE_VENDOR: u8 = 7;
    /// Error status: Write to Invalid Doorbell Register (Base 2.0, section 5.2.1).
    pub const INVALID_DOORBELL_REGISTER: u8 = 0x00;
    /// Error status: Invalid Doorbell Write Value (Base 2.0, section 5.2.1).
    pub const INVALID_DOORBELL_VALUE: u8 = 0x01;
    /// Error status: Diagnostic Failure (Base 2.0, section 5.2.1).
    pub const DIAGNOSTIC_FAILURE: u8 = 0x02;
    /// Error status: Persistent Internal Error (Base 2.0, section 5.2.1).
    pub const PERSISTENT_INTERNAL_ERROR: u8 = 0x03;
    /// Error status: Transient Internal Error (Base 2.0, section 5.2.1).
    pub const TRANSIENT_INTERNAL_ERROR: u8 = 0x04;
    /// Error status: Firmware Image Load Error (Base 2.0, section 5.2.1).
    pub const FIRMWARE_IMAGE_LOAD_ERROR: u8 = 0x05;
    /// SMART / Health status: NVM subsystem Reliability (Base 2.0, section 5.2.1).
    pub const RELIABILITY: u8 = 0x00;
    /// SMART / Health status: Temperature Threshold (Base 2.0, section 5.2.1).
    pub const TEMPERATURE_THRESHOLD: u8 = 0x01;
    /// SMART / Health status: Spare Below Threshold (Base 2.0, section 5.2.1).
    pub const SPARE_BELOW_THRESHOLD: u8 = 0x02;
    /// Notice: Namespace Attribute Changed (Base 2.0, section 5.2.1).
    pub const NAMESPACE_ATTRIBUTE_CHANGED: u8 = 0x00;
    /// Notice: Firmware Activation Starting (Base 2.0, section 5.2.1).
    pub const FIRMWARE_ACTIVATION_STARTING: u8 = 0x01;

    /// An event of an error type, whose log page is the Error Information log (Base 2.0, section 5.2.1).
    pub const fn new(event_type: u8, info: u8, page: LogPage) -> AsyncEvent {
        AsyncEvent((event_type & 7) as u32 | (info as u32) << 8 | (page.0 as u32) << 16)
    }

    /// Asynchronous Event Type, bits 2:0 (Base 2.0, section 5.2.1).
    pub const fn event_type(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Asynchronous Event Information, bits 15:8 (Base 2.0, section 5.2.1).
    pub const fn info(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Log Page Identifier whose reading clears the event, bits 23:16 (Base 2.0, section 5.2.1).
    pub const fn log_page(self) -> LogPage {
        LogPage((self.0 >> 16) as u8)
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        assert_eq!(offset_of!(SmartLog, available_spare), 3);
        assert_eq!(offset_of!(SmartLog, data_units_read), 32);
        assert_eq!(offset_of!(SmartLog, error_log_entries), 176);
        assert_eq!(offset_of!(SmartLog, warning_temperature_time), 192);
        assert_eq!(offset_of!(SmartLog, temperature_sensors), 200);
        assert_eq!(offset_of!(SmartLog, thermal_2_time), 228);
        assert_eq!(offset_of!(ErrorLogEntry, status_phase), 12);
        assert_eq!(offset_of!(ErrorLogEntry, lba), 16);
        assert_eq!(offset_of!(ErrorLogEntry, nsid), 24);
        assert_eq!(offset_of!(ErrorLogEntry, command_specific), 32);
        assert_eq!(offset_of!(FirmwareSlotLog, frs), 8);
    }

    #[test]
    fn the_temperature_is_not_aligned() {
        let mut log = SmartLog::new_zeroed();
        log.as_mut_bytes()[1..3].copy_from_slice(&300u16.to_le_bytes());
        assert_eq!(log.temperature_kelvin(), 300);
    }

    #[test]
    fn an_event_names_its_log_page() {
        let event =
            AsyncEvent::new(AsyncEvent::TYPE_ERROR, AsyncEvent::INVALID_DOORBELL_VALUE, LogPage::ERROR);
        assert_eq!(event.0, 0x0001_0100);
        assert_eq!((event.event_type(), event.info(), event.log_page()), (0, 1, LogPage::ERROR));
    }
}

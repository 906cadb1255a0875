//! The Status field of a completion (Base 2.0, section 3.3.3.2.1; NVM Command Set 1.0, section 3.1.1).

use std::fmt;

/// Status Code Type: Generic Command Status (Base 2.0, section 3.3.3.2.1).
pub const SCT_GENERIC: u8 = 0;
/// Status Code Type: Command Specific Status (Base 2.0, section 3.3.3.2.1).
pub const SCT_COMMAND_SPECIFIC: u8 = 1;
/// Status Code Type: Media and Data Integrity Errors (Base 2.0, section 3.3.3.2.1).
pub const SCT_MEDIA: u8 = 2;
/// Status Code Type: Path Related Status (Base 2.0, section 3.3.3.2.1).
pub const SCT_PATH: u8 = 3;
/// Status Code Type: Vendor Specific (Base 2.0, section 3.3.3.2.1).
pub const SCT_VENDOR: u8 = 7;

const CODE: u16 = 0x07ff;
const CRD: u16 = 3 << 11;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;

/// The 15 bits of a Status field, without the phase: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14
/// (Base 2.0, section 3.3.3.2.1).
///
/// The constants have only SC and SCT; compare them with [`code`](Status::code).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

impl Status {
    /// The Status field from the word that also has the phase, in bit 0 (Base 2.0, section 3.3.3.2).
    pub const fn from_phase_word(word: u16) -> Status {
        Status(word >> 1)
    }

    /// A status of a type and a code alone (Base 2.0, section 3.3.3.2.1).
    pub const fn new(sct: u8, sc: u8) -> Status {
        Status(((sct & 7) as u16) << 8 | sc as u16)
    }

    /// Status Code (Base 2.0, section 3.3.3.2.1).
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Status Code Type (Base 2.0, section 3.3.3.2.1).
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Command Retry Delay: which of CRDT1 to CRDT3, or 0 (Base 2.0, section 3.3.3.2.1).
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// The same status with a Command Retry Delay, 0 to 3 (Base 2.0, section 3.3.3.2.1).
    pub const fn with_crd(self, crd: u8) -> Status {
        Status(self.0 & !CRD | (crd as u16 & 3) << 11)
    }

    /// More: the Error Information log has more about it (Base 2.0, section 3.3.3.2.1).
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Do Not Retry: the same command would fail again (Base 2.0, section 3.3.3.2.1).
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether the command succeeded: SC and SCT are both 0 (Base 2.0, section 3.3.3.2.1).
    pub const fn is_success(self) -> bool {
        self.0 & CODE == 0
    }

    /// SC and SCT alone, comparable with the constants (Base 2.0, section 3.3.3.2.1).
    pub const fn code(self) -> Status {
        Status(self.0 & CODE)
    }

    /// The same status with Do Not Retry set (Base 2.0, section 3.3.3.2.1).
    pub const fn with_dnr(self) -> Status {
        Status(self.0 | DNR)
    }

    /// The same status with More set (Base 2.0, section 3.3.3.2.1).
    pub const fn with_more(self) -> Status {
        Status(self.0 | MORE)
    }

    /// The name in the specification (Base 2.0, section 3.3.3.2.1; NVM Command Set 1.0, section 3.1.1).
    pub const fn name(self) -> &'static str {
        match self.code() {
            Status::SUCCESS => "Successful Completion",
            Status::INVALID_OPCODE => "Invalid Command Opcode",
            Status::INVALID_FIELD => "Invalid Field in Command",
            Status::COMMAND_ID_CONFLICT => "Command ID Conflict",
            Status::DATA_TRANSFER_ERROR => "Data Transfer Error",
            Status::ABORTED_POWER_LOSS => "Commands Aborted due to Power Loss Notification",
            Status::INTERNAL_ERROR => "Internal Error",
            Status::ABORT_REQUESTED => "Command Abort Requested",
            Status::ABORTED_SQ_DELETION => "Command Aborted due to SQ Deletion",
            Status::ABORTED_FAILED_FUSED => "Command Aborted due to Failed Fused Command",
            Status::ABORTED_MISSING_FUSED => "Command Aborted due to Missing Fused Command",
            Status::INVALID_NAMESPACE_OR_FORMAT => "Invalid Namespace or Format",
            Status::COMMAND_SEQUENCE_ERROR => "Command Sequence Error",
            Status::INVALID_SGL_SEGMENT_DESCRIPTOR => "Invalid SGL Segment Descriptor",
            Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS => "Invalid Number of SGL Descriptors",
            Status::DATA_SGL_LENGTH_INVALID => "Data SGL Length Invalid",
            Status::METADATA_SGL_LENGTH_INVALID => "Metadata SGL Length Invalid",
            Status::SGL_DESCRIPTOR_TYPE_INVALID => "SGL Descriptor Type Invalid",
            Status::INVALID_USE_OF_CMB => "Invalid Use of Controller Memory Buffer",
            Status::PRP_OFFSET_INVALID => "PRP Offset Invalid",
            Status::ATOMIC_WRITE_UNIT_EXCEEDED => "Atomic Write Unit Exceeded",
            Status::OPERATION_DENIED => "Operation Denied",
            Status::SGL_OFFSET_INVALID => "SGL Offset Invalid",
            Status::HOST_IDENTIFIER_INCONSISTENT => "Host Identifier Inconsistent Format",
            Status::KEEP_ALIVE_EXPIRED => "Keep Alive Timer Expired",
            Status::KEEP_ALIVE_TIMEOUT_INVALID => "Keep Alive Timeout Invalid",
            Status::ABORTED_PREEMPT => "Command Aborted due to Preempt and Abort",
            Status::SANITIZE_FAILED => "Sanitize Failed",
            Status::SANITIZE_IN_PROGRESS => "Sanitize In Progress",
            Status::SGL_DATA_BLOCK_GRANULARITY_INVALID => "SGL Data Block Granularity Invalid",
            Status::COMMAND_NOT_SUPPORTED_IN_CMB => "Command Not Supported for Queue in CMB",
            Status::NAMESPACE_WRITE_PROTECTED => "Namespace is Write Protected",
            Status::COMMAND_INTERRUPTED => "Command Interrupted",
            Status::TRANSIENT_TRANSPORT_ERROR => "Transient Transport Error",
            Status::PROHIBITED_BY_LOCKDOWN => "Command Prohibited by Command and Feature Lockdown",
            Status::ADMIN_MEDIA_NOT_READY => "Admin Command Media Not Ready",
            Status::LBA_OUT_OF_RANGE => "LBA Out of Range",
            Status::CAPACITY_EXCEEDED => "Capacity Exceeded",
            Status::NAMESPACE_NOT_READY => "Namespace Not Ready",
            Status::RESERVATION_CONFLICT => "Reservation Conflict",
            Status::FORMAT_IN_PROGRESS => "Format In Progress",
            Status::COMPLETION_QUEUE_INVALID => "Completion Queue Invalid",
            Status::INVALID_QUEUE_IDENTIFIER => "Invalid Queue Identifier",
            Status::INVALID_QUEUE_SIZE => "Invalid Queue Size",
            Status::ABORT_LIMIT_EXCEEDED => "Abort Command Limit Exceeded",
            Status::ASYNC_EVENT_LIMIT_EXCEEDED => "Asynchronous Event Request Limit Exceeded",
            Status::INVALID_FIRMWARE_SLOT => "Invalid Firmware Slot",
            Status::INVALID_FIRMWARE_IMAGE => "Invalid Firmware Image",
            Status::INVALID_INTERRUPT_VECTOR => "Invalid Interrupt Vector",
            Status::INVALID_LOG_PAGE => "Invalid Log Page",
            Status::INVALID_FORMAT => "Invalid Format",
            Status::FIRMWARE_NEEDS_CONVENTIONAL_RESET => "Firmware Activation Requires Conventional Reset",
            Status::INVALID_QUEUE_DELETION => "Invalid Queue Deletion",
            Status::FEATURE_NOT_SAVEABLE => "Feature Identifier Not Saveable",
            Status::FEATURE_NOT_CHANGEABLE => "Feature Not Changeable",
            Status::FEATURE_NOT_NAMESPACE_SPECIFIC => "Feature Not Namespace Specific",
            Status::FIRMWARE_NEEDS_SUBSYSTEM_RESET => "Firmware Activation Requires NVM Subsystem Reset",
            Status::FIRMWARE_NEEDS_CONTROLLER_RESET => "Firmware Activation Requires Controller Level Reset",
            Status::FIRMWARE_NEEDS_MAXIMUM_TIME => "Firmware Activation Requires Maximum Time Violation",
            Status::FIRMWARE_ACTIVATION_PROHIBITED => "Firmware Activation Prohibited",
            Status::OVERLAPPING_RANGE => "Overlapping Range",
            Status::NAMESPACE_INSUFFICIENT_CAPACITY => "Namespace Insufficient Capacity",
            Status::NAMESPACE_ID_UNAVAILABLE => "Namespace Identifier Unavailable",
            Status::NAMESPACE_ALREADY_ATTACHED => "Namespace Already Attached",
            Status::NAMESPACE_IS_PRIVATE => "Namespace Is Private",
            Status::NAMESPACE_NOT_ATTACHED => "Namespace Not Attached",
            Status::THIN_PROVISIONING_NOT_SUPPORTED => "Thin Provisioning Not Supported",
            Status::CONTROLLER_LIST_INVALID => "Controller List Invalid",
            Status::SELF_TEST_IN_PROGRESS => "Device Self-test In Progress",
            Status::BOOT_PARTITION_WRITE_PROHIBITED => "Boot Partition Write Prohibited",
            Status::INVALID_CONTROLLER_IDENTIFIER => "Invalid Controller Identifier",
            Status::INVALID_SECONDARY_CONTROLLER_STATE => "Invalid Secondary Controller State",
            Status::INVALID_NUMBER_OF_CONTROLLER_RESOURCES => "Invalid Number of Controller Resources",
            Status::INVALID_RESOURCE_IDENTIFIER => "Invalid Resource Identifier",
            Status::SANITIZE_PROHIBITED_PMR => {
                "Sanitize Prohibited While Persistent Memory Region is Enabled"
            }
            Status::ANA_GROUP_INVALID => "ANA Group Identifier Invalid",
            Status::ANA_ATTACH_FAILED => "ANA Attach Failed",
            Status::INSUFFICIENT_CAPACITY => "Insufficient Capacity",
            Status::NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED => "Namespace Attachment Limit Exceeded",
            Status::PROHIBITION_NOT_SUPPORTED => "Prohibition of Command Execution Not Supported",
            Status::COMMAND_SET_NOT_SUPPORTED => "I/O Command Set Not Supported",
            Status::COMMAND_SET_NOT_ENABLED => "I/O Command Set Not Enabled",
            Status::COMMAND_SET_COMBINATION_REJECTED => "I/O Command Set Combination Rejected",
            Status::INVALID_COMMAND_SET => "Invalid I/O Command Set",
            Status::IDENTIFIER_UNAVAILABLE => "Identifier Unavailable",
            Status::CONFLICTING_ATTRIBUTES => "Conflicting Attributes",
            Status::INVALID_PROTECTION_INFORMATION => "Invalid Protection Information",
            Status::WRITE_TO_READ_ONLY_RANGE => "Attempted Write to Read Only Range",
            Status::COMMAND_SIZE_LIMIT_EXCEEDED => "Command Size Limit Exceeded",
            Status::WRITE_FAULT => "Write Fault",
            Status::UNRECOVERED_READ_ERROR => "Unrecovered Read Error",
            Status::GUARD_CHECK_ERROR => "End-to-end Guard Check Error",
            Status::APPLICATION_TAG_CHECK_ERROR => "End-to-end Application Tag Check Error",
            Status::REFERENCE_TAG_CHECK_ERROR => "End-to-end Reference Tag Check Error",
            Status::COMPARE_FAILURE => "Compare Failure",
            Status::ACCESS_DENIED => "Access Denied",
            Status::DEALLOCATED_OR_UNWRITTEN => "Deallocated or Unwritten Logical Block",
            Status::STORAGE_TAG_CHECK_ERROR => "End-to-End Storage Tag Check Error",
            Status::INTERNAL_PATH_ERROR => "Internal Path Error",
            Status::ANA_PERSISTENT_LOSS => "Asymmetric Access Persistent Loss",
            Status::ANA_INACCESSIBLE => "Asymmetric Access Inaccessible",
            Status::ANA_TRANSITION => "Asymmetric Access Transition",
            Status::CONTROLLER_PATHING_ERROR => "Controller Pathing Error",
            Status::HOST_PATHING_ERROR => "Host Pathing Error",
            Status::ABORTED_BY_HOST => "Command Aborted By Host",
            other => unnamed(other.sct(), other.sc()),
        }
    }
}

/// What to call a code that has no name of its own (Base 2.0, section 3.3.3.2.1).
const fn unnamed(sct: u8, sc: u8) -> &'static str {
    match (sct, sc) {
        (SCT_VENDOR, _) | (_, 0xc0..) => "Vendor Specific Status",
        (SCT_GENERIC, _) => "Unknown Generic Status",
        (SCT_COMMAND_SPECIFIC, _) => "Unknown Command Specific Status",
        (SCT_MEDIA, _) => "Unknown Media Status",
        (SCT_PATH, _) => "Unknown Path Related Status",
        _ => "Unknown Status",
    }
}

/// Generic Command Status (Base 2.0, section 3.3.3.2.1.1).
impl Status {
    /// Successful Completion (Base 2.0, section 3.3.3.2.1.1).
    pub const SUCCESS: Status = Status::new(SCT_GENERIC, 0x00);
    /// Invalid Command Opcode (Base 2.0, section 3.3.3.2.1.1).
    pub const INVALID_OPCODE: Status = Status::new(SCT_GENERIC, 0x01);
    /// Invalid Field in Command (Base 2.0, section 3.3.3.2.1.1).
    pub const INVALID_FIELD: Status = Status::new(SCT_GENERIC, 0x02);
    /// Command ID Conflict (Base 2.0, section 3.3.3.2.1.1).
    pub const COMMAND_ID_CONFLICT: Status = Status::new(SCT_GENERIC, 0x03);
    /// Data Transfer Error (Base 2.0, section 3.3.3.2.1.1).
    pub const DATA_TRANSFER_ERROR: Status = Status::new(SCT_GENERIC, 0x04);
    /// Commands Aborted due to Power Loss Notification (Base 2.0, section 3.3.3.2.1.1).
    pub const ABORTED_POWER_LOSS: Status = Status::new(SCT_GENERIC, 0x05);
    /// Internal Error (Base 2.0, section 3.3.3.2.1.1).
    pub const INTERNAL_ERROR: Status = Status::new(SCT_GENERIC, 0x06);
    /// Command Abort Requested (Base 2.0, section 3.3.3.2.1.1).
    pub const ABORT_REQUESTED: Status = Status::new(SCT_GENERIC, 0x07);
    /// Command Aborted due to SQ Deletion (Base 2.0, section 3.3.3.2.1.1).
    pub const ABORTED_SQ_DELETION: Status = Status::new(SCT_GENERIC, 0x08);
    /// Command Aborted due to Failed Fused Command (Base 2.0, section 3.3.3.2.1.1).
    pub const ABORTED_FAILED_FUSED: Status = Status::new(SCT_GENERIC, 0x09);
    /// Command Aborted due to Missing Fused Command (Base 2.0, section 3.3.3.2.1.1).
    pub const ABORTED_MISSING_FUSED: Status = Status::new(SCT_GENERIC, 0x0a);
    /// Invalid Namespace or Format (Base 2.0, section 3.3.3.2.1.1).
    pub const INVALID_NAMESPACE_OR_FORMAT: Status = Status::new(SCT_GENERIC, 0x0b);
    /// Command Sequence Error (Base 2.0, section 3.3.3.2.1.1).
    pub const COMMAND_SEQUENCE_ERROR: Status = Status::new(SCT_GENERIC, 0x0c);
    /// Invalid SGL Segment Descriptor (Base 2.0, section 3.3.3.2.1.1).
    pub const INVALID_SGL_SEGMENT_DESCRIPTOR: Status = Status::new(SCT_GENERIC, 0x0d);
    /// Invalid Number of SGL Descriptors (Base 2.0, section 3.3.3.2.1.1).
    pub const INVALID_NUMBER_OF_SGL_DESCRIPTORS: Status = Status::new(SCT_GENERIC, 0x0e);
    /// Data SGL Length Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const DATA_SGL_LENGTH_INVALID: Status = Status::new(SCT_GENERIC, 0x0f);
    /// Metadata SGL Length Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const METADATA_SGL_LENGTH_INVALID: Status = Status::new(SCT_GENERIC, 0x10);
    /// SGL Descriptor Type Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const SGL_DESCRIPTOR_TYPE_INVALID: Status = Status::new(SCT_GENERIC, 0x11);
    /// Invalid Use of Controller Memory Buffer (Base 2.0, section 3.3.3.2.1.1).
    pub const INVALID_USE_OF_CMB: Status = Status::new(SCT_GENERIC, 0x12);
    /// PRP Offset Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const PRP_OFFSET_INVALID: Status = Status::new(SCT_GENERIC, 0x13);
    /// Atomic Write Unit Exceeded (Base 2.0, section 3.3.3.2.1.1).
    pub const ATOMIC_WRITE_UNIT_EXCEEDED: Status = Status::new(SCT_GENERIC, 0x14);
    /// Operation Denied (Base 2.0, section 3.3.3.2.1.1).
    pub const OPERATION_DENIED: Status = Status::new(SCT_GENERIC, 0x15);
    /// SGL Offset Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const SGL_OFFSET_INVALID: Status = Status::new(SCT_GENERIC, 0x16);
    /// Host Identifier Inconsistent Format (Base 2.0, section 3.3.3.2.1.1).
    pub const HOST_IDENTIFIER_INCONSISTENT: Status = Status::new(SCT_GENERIC, 0x18);
    /// Keep Alive Timer Expired (Base 2.0, section 3.3.3.2.1.1).
    pub const KEEP_ALIVE_EXPIRED: Status = Status::new(SCT_GENERIC, 0x19);
    /// Keep Alive Timeout Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const KEEP_ALIVE_TIMEOUT_INVALID: Status = Status::new(SCT_GENERIC, 0x1a);
    /// Command Aborted due to Preempt and Abort (Base 2.0, section 3.3.3.2.1.1).
    pub const ABORTED_PREEMPT: Status = Status::new(SCT_GENERIC, 0x1b);
    /// Sanitize Failed (Base 2.0, section 3.3.3.2.1.1).
    pub const SANITIZE_FAILED: Status = Status::new(SCT_GENERIC, 0x1c);
    /// Sanitize In Progress (Base 2.0, section 3.3.3.2.1.1).
    pub const SANITIZE_IN_PROGRESS: Status = Status::new(SCT_GENERIC, 0x1d);
    /// SGL Data Block Granularity Invalid (Base 2.0, section 3.3.3.2.1.1).
    pub const SGL_DATA_BLOCK_GRANULARITY_INVALID: Status = Status::new(SCT_GENERIC, 0x1e);
    /// Command Not Supported for Queue in CMB (Base 2.0, section 3.3.3.2.1.1).
    pub const COMMAND_NOT_SUPPORTED_IN_CMB: Status = Status::new(SCT_GENERIC, 0x1f);
    /// Namespace is Write Protected (Base 2.0, section 3.3.3.2.1.1).
    pub const NAMESPACE_WRITE_PROTECTED: Status = Status::new(SCT_GENERIC, 0x20);
    /// Command Interrupted (Base 2.0, section 3.3.3.2.1.1).
    pub const COMMAND_INTERRUPTED: Status = Status::new(SCT_GENERIC, 0x21);
    /// Transient Transport Error (Base 2.0, section 3.3.3.2.1.1).
    pub const TRANSIENT_TRANSPORT_ERROR: Status = Status::new(SCT_GENERIC, 0x22);
    /// Command Prohibited by Command and Feature Lockdown (Base 2.0, section 3.3.3.2.1.1).
    pub const PROHIBITED_BY_LOCKDOWN: Status = Status::new(SCT_GENERIC, 0x23);
    /// Admin Command Media Not Ready (Base 2.0, section 3.3.3.2.1.1).
    pub const ADMIN_MEDIA_NOT_READY: Status = Status::new(SCT_GENERIC, 0x24);
    /// LBA Out of Range (NVM Command Set 1.0, section 3.1.1).
    pub const LBA_OUT_OF_RANGE: Status = Status::new(SCT_GENERIC, 0x80);
    /// Capacity Exceeded (NVM Command Set 1.0, section 3.1.1).
    pub const CAPACITY_EXCEEDED: Status = Status::new(SCT_GENERIC, 0x81);
    /// Namespace Not Ready (NVM Command Set 1.0, section 3.1.1).
    pub const NAMESPACE_NOT_READY: Status = Status::new(SCT_GENERIC, 0x82);
    /// Reservation Conflict (NVM Command Set 1.0, section 3.1.1).
    pub const RESERVATION_CONFLICT: Status = Status::new(SCT_GENERIC, 0x83);
    /// Format In Progress (NVM Command Set 1.0, section 3.1.1).
    pub const FORMAT_IN_PROGRESS: Status = Status::new(SCT_GENERIC, 0x84);
}

/// Command Specific Status (Base 2.0, section 3.3.3.2.1.2).
impl Status {
    /// Completion Queue Invalid (Base 2.0, section 3.3.3.2.1.2).
    pub const COMPLETION_QUEUE_INVALID: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x00);
    /// Invalid Queue Identifier (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_QUEUE_IDENTIFIER: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x01);
    /// Invalid Queue Size (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_QUEUE_SIZE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x02);
    /// Abort Command Limit Exceeded (Base 2.0, section 3.3.3.2.1.2).
    pub const ABORT_LIMIT_EXCEEDED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x03);
    /// Asynchronous Event Request Limit Exceeded (Base 2.0, section 3.3.3.2.1.2).
    pub const ASYNC_EVENT_LIMIT_EXCEEDED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x05);
    /// Invalid Firmware Slot (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_FIRMWARE_SLOT: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x06);
    /// Invalid Firmware Image (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_FIRMWARE_IMAGE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x07);
    /// Invalid Interrupt Vector (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_INTERRUPT_VECTOR: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x08);
    /// Invalid Log Page (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_LOG_PAGE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x09);
    /// Invalid Format (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_FORMAT: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x0a);
    /// Firmware Activation Requires Conventional Reset (Base 2.0, section 3.3.3.2.1.2).
    pub const FIRMWARE_NEEDS_CONVENTIONAL_RESET: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x0b);
    /// Invalid Queue Deletion (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_QUEUE_DELETION: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x0c);
    /// Feature Identifier Not Saveable (Base 2.0, section 3.3.3.2.1.2).
    pub const FEATURE_NOT_SAVEABLE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x0d);
    /// Feature Not Changeable (Base 2.0, section 3.3.3.2.1.2).
    pub const FEATURE_NOT_CHANGEABLE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x0e);
    /// Feature Not Namespace Specific (Base 2.0, section 3.3.3.2.1.2).
    pub const FEATURE_NOT_NAMESPACE_SPECIFIC: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x0f);
    /// Firmware Activation Requires NVM Subsystem Reset (Base 2.0, section 3.3.3.2.1.2).
    pub const FIRMWARE_NEEDS_SUBSYSTEM_RESET: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x10);
    /// Firmware Activation Requires Controller Level Reset (Base 2.0, section 3.3.3.2.1.2).
    pub const FIRMWARE_NEEDS_CONTROLLER_RESET: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x11);
    /// Firmware Activation Requires Maximum Time Violation (Base 2.0, section 3.3.3.2.1.2).
    pub const FIRMWARE_NEEDS_MAXIMUM_TIME: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x12);
    /// Firmware Activation Prohibited (Base 2.0, section 3.3.3.2.1.2).
    pub const FIRMWARE_ACTIVATION_PROHIBITED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x13);
    /// Overlapping Range (Base 2.0, section 3.3.3.2.1.2).
    pub const OVERLAPPING_RANGE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x14);
    /// Namespace Insufficient Capacity (Base 2.0, section 3.3.3.2.1.2).
    pub const NAMESPACE_INSUFFICIENT_CAPACITY: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x15);
    /// Namespace Identifier Unavailable (Base 2.0, section 3.3.3.2.1.2).
    pub const NAMESPACE_ID_UNAVAILABLE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x16);
    /// Namespace Already Attached (Base 2.0, section 3.3.3.2.1.2).
    pub const NAMESPACE_ALREADY_ATTACHED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x18);
    /// Namespace Is Private (Base 2.0, section 3.3.3.2.1.2).
    pub const NAMESPACE_IS_PRIVATE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x19);
    /// Namespace Not Attached (Base 2.0, section 3.3.3.2.1.2).
    pub const NAMESPACE_NOT_ATTACHED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x1a);
    /// Thin Provisioning Not Supported (Base 2.0, section 3.3.3.2.1.2).
    pub const THIN_PROVISIONING_NOT_SUPPORTED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x1b);
    /// Controller List Invalid (Base 2.0, section 3.3.3.2.1.2).
    pub const CONTROLLER_LIST_INVALID: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x1c);
    /// Device Self-test In Progress (Base 2.0, section 3.3.3.2.1.2).
    pub const SELF_TEST_IN_PROGRESS: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x1d);
    /// Boot Partition Write Prohibited (Base 2.0, section 3.3.3.2.1.2).
    pub const BOOT_PARTITION_WRITE_PROHIBITED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x1e);
    /// Invalid Controller Identifier (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_CONTROLLER_IDENTIFIER: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x1f);
    /// Invalid Secondary Controller State (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_SECONDARY_CONTROLLER_STATE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x20);
    /// Invalid Number of Controller Resources (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_NUMBER_OF_CONTROLLER_RESOURCES: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x21);
    /// Invalid Resource Identifier (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_RESOURCE_IDENTIFIER: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x22);
    /// Sanitize Prohibited While Persistent Memory Region is Enabled (Base 2.0, section 3.3.3.2.1.2).
    pub const SANITIZE_PROHIBITED_PMR: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x23);
    /// ANA Group Identifier Invalid (Base 2.0, section 3.3.3.2.1.2).
    pub const ANA_GROUP_INVALID: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x24);
    /// ANA Attach Failed (Base 2.0, section 3.3.3.2.1.2).
    pub const ANA_ATTACH_FAILED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x25);
    /// Insufficient Capacity (Base 2.0, section 3.3.3.2.1.2).
    pub const INSUFFICIENT_CAPACITY: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x26);
    /// Namespace Attachment Limit Exceeded (Base 2.0, section 3.3.3.2.1.2).
    pub const NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x27);
    /// Prohibition of Command Execution Not Supported (Base 2.0, section 3.3.3.2.1.2).
    pub const PROHIBITION_NOT_SUPPORTED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x28);
    /// I/O Command Set Not Supported (Base 2.0, section 3.3.3.2.1.2).
    pub const COMMAND_SET_NOT_SUPPORTED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x29);
    /// I/O Command Set Not Enabled (Base 2.0, section 3.3.3.2.1.2).
    pub const COMMAND_SET_NOT_ENABLED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x2a);
    /// I/O Command Set Combination Rejected (Base 2.0, section 3.3.3.2.1.2).
    pub const COMMAND_SET_COMBINATION_REJECTED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x2b);
    /// Invalid I/O Command Set (Base 2.0, section 3.3.3.2.1.2).
    pub const INVALID_COMMAND_SET: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x2c);
    /// Identifier Unavailable (Base 2.0, section 3.3.3.2.1.2).
    pub const IDENTIFIER_UNAVAILABLE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x2d);
    /// Conflicting Attributes (NVM Command Set 1.0, section 3.1.1).
    pub const CONFLICTING_ATTRIBUTES: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x80);
    /// Invalid Protection Information (NVM Command Set 1.0, section 3.1.1).
    pub const INVALID_PROTECTION_INFORMATION: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x81);
    /// Attempted Write to Read Only Range (NVM Command Set 1.0, section 3.1.1).
    pub const WRITE_TO_READ_ONLY_RANGE: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x82);
    /// Command Size Limit Exceeded (NVM Command Set 1.0, section 3.1.1).
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Status = Status::new(SCT_COMMAND_SPECIFIC, 0x83);
}

/// Media and Data Integrity Errors (Base 2.0, section 3.3.3.2.1.3).
impl Status {
    /// Write Fault (Base 2.0, section 3.3.3.2.1.3).
    pub const WRITE_FAULT: Status = Status::new(SCT_MEDIA, 0x80);
    /// Unrecovered Read Error (Base 2.0, section 3.3.3.2.1.3).
    pub const UNRECOVERED_READ_ERROR: Status = Status::new(SCT_MEDIA, 0x81);
    /// End-to-end Guard Check Error (Base 2.0, section 3.3.3.2.1.3).
    pub const GUARD_CHECK_ERROR: Status = Status::new(SCT_MEDIA, 0x82);
    /// End-to-end Application Tag Check Error (Base 2.0, section 3.3.3.2.1.3).
    pub const APPLICATION_TAG_CHECK_ERROR: Status = Status::new(SCT_MEDIA, 0x83);
    /// End-to-end Reference Tag Check Error (Base 2.0, section 3.3.3.2.1.3).
    pub const REFERENCE_TAG_CHECK_ERROR: Status = Status::new(SCT_MEDIA, 0x84);
    /// Compare Failure (Base 2.0, section 3.3.3.2.1.3).
    pub const COMPARE_FAILURE: Status = Status::new(SCT_MEDIA, 0x85);
    /// Access Denied (Base 2.0, section 3.3.3.2.1.3).
    pub const ACCESS_DENIED: Status = Status::new(SCT_MEDIA, 0x86);
    /// Deallocated or Unwritten Logical Block (Base 2.0, section 3.3.3.2.1.3).
    pub const DEALLOCATED_OR_UNWRITTEN: Status = Status::new(SCT_MEDIA, 0x87);
    /// End-to-End Storage Tag Check Error (Base 2.0, section 3.3.3.2.1.3).
    pub const STORAGE_TAG_CHECK_ERROR: Status = Status::new(SCT_MEDIA, 0x88);
}

/// Path Related Status (Base 2.0, section 3.3.3.2.1.4).
impl Status {
    /// Internal Path Error (Base 2.0, section 3.3.3.2.1.4).
    pub const INTERNAL_PATH_ERROR: Status = Status::new(SCT_PATH, 0x00);
    /// Asymmetric Access Persistent Loss (Base 2.0, section 3.3.3.2.1.4).
    pub const ANA_PERSISTENT_LOSS: Status = Status::new(SCT_PATH, 0x01);
    /// Asymmetric Access Inaccessible (Base 2.0, section 3.3.3.2.1.4).
    pub const ANA_INACCESSIBLE: Status = Status::new(SCT_PATH, 0x02);
    /// Asymmetric Access Transition (Base 2.0, section 3.3.3.2.1.4).
    pub const ANA_TRANSITION: Status = Status::new(SCT_PATH, 0x03);
    /// Controller Pathing Error (Base 2.0, section 3.3.3.2.1.4).
    pub const CONTROLLER_PATHING_ERROR: Status = Status::new(SCT_PATH, 0x60);
    /// Host Pathing Error (Base 2.0, section 3.3.3.2.1.4).
    pub const HOST_PATHING_ERROR: Status = Status::new(SCT_PATH, 0x70);
    /// Command Aborted By Host (Base 2.0, section 3.3.3.2.1.4).
    pub const ABORTED_BY_HOST: Status = Status::new(SCT_PATH, 0x71);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sct {} sc {:02x}h", self.name(), self.sct(), self.sc())?;
        if self.more() {
            f.write_str(", M")?;
        }
        if self.dnr() {
            f.write_str(", DNR")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        assert_eq!(Status(0x00ff).sc(), 0xff);
        assert_eq!(Status(0x0700).sct(), 7);
        assert_eq!(Status(0x1800).crd(), 3);
        assert!(Status(0x2000).more() && !Status(0x2000).dnr());
        assert!(Status(0x4000).dnr() && !Status(0x4000).more());
        assert_eq!(Status::from_phase_word(0x0001), Status::SUCCESS);
        assert_eq!(Status::from_phase_word(0xffff), Status(0x7fff));
    }

    #[test]
    fn success_is_code_and_type_only() {
        assert!(Status(0x7800).is_success());
        assert!(!Status::new(SCT_COMMAND_SPECIFIC, 0).is_success());
        assert_eq!(Status::LBA_OUT_OF_RANGE.with_dnr().with_more().code(), Status::LBA_OUT_OF_RANGE);
    }

    #[test]
    fn a_status_reads_as_text() {
        assert_eq!(Status::LBA_OUT_OF_RANGE.with_dnr().to_string(), "LBA Out of Range (sct 0 sc 80h, DNR)");
        assert_eq!(Status::INVALID_QUEUE_SIZE.to_string(), "Invalid Queue Size (sct 1 sc 02h)");
        assert_eq!(Status::new(SCT_VENDOR, 3).name(), "Vendor Specific Status");
        assert_eq!(format!("{:?}", Status::SUCCESS), "Status(Successful Completion (sct 0 sc 00h))");
    }

    #[test]
    fn every_word_has_a_name() {
        for word in 0..=u16::MAX {
            assert!(!Status::from_phase_word(word).to_string().is_empty());
        }
    }
}

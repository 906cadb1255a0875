//! Features (Base 2.0, section 5.27.1).

/// Feature Identifier (Base 2.0, section 5.27.1, Feature Identifiers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FeatureId(pub u8);

impl FeatureId {
    /// Arbitration (Base 2.0, section 5.27.1.1).
    pub const ARBITRATION: FeatureId = FeatureId(0x01);
    /// Power Management (Base 2.0, section 5.27.1.2).
    pub const POWER_MANAGEMENT: FeatureId = FeatureId(0x02);
    /// LBA Range Type (NVM Command Set 1.0, section 4.1.3.1).
    pub const LBA_RANGE_TYPE: FeatureId = FeatureId(0x03);
    /// Temperature Threshold (Base 2.0, section 5.27.1.3).
    pub const TEMPERATURE_THRESHOLD: FeatureId = FeatureId(0x04);
    /// Error Recovery (NVM Command Set 1.0, section 4.1.3.2).
    pub const ERROR_RECOVERY: FeatureId = FeatureId(0x05);
    /// Volatile Write Cache (Base 2.0, section 5.27.1.4).
    pub const VOLATILE_WRITE_CACHE: FeatureId = FeatureId(0x06);
    /// Number of Queues (Base 2.0, section 5.27.1.5).
    pub const NUMBER_OF_QUEUES: FeatureId = FeatureId(0x07);
    /// Interrupt Coalescing (Base 2.0, section 5.27.1.6).
    pub const INTERRUPT_COALESCING: FeatureId = FeatureId(0x08);
    /// Interrupt Vector Configuration (Base 2.0, section 5.27.1.7).
    pub const INTERRUPT_VECTOR: FeatureId = FeatureId(0x09);
    /// Write Atomicity Normal (NVM Command Set 1.0, section 4.1.3.3).
    pub const WRITE_ATOMICITY: FeatureId = FeatureId(0x0a);
    /// Asynchronous Event Configuration (Base 2.0, section 5.27.1.8).
    pub const ASYNC_EVENT_CONFIGURATION: FeatureId = FeatureId(0x0b);
    /// Autonomous Power State Transition (Base 2.0, section 5.27.1.9).
    pub const AUTONOMOUS_POWER_STATE: FeatureId = FeatureId(0x0c);
    /// Host Memory Buffer (Base 2.0, section 5.27.1.10).
    pub const HOST_MEMORY_BUFFER: FeatureId = FeatureId(0x0d);
    /// Timestamp (Base 2.0, section 5.27.1.11).
    pub const TIMESTAMP: FeatureId = FeatureId(0x0e);
    /// Keep Alive Timer (Base 2.0, section 5.27.1.12).
    pub const KEEP_ALIVE_TIMER: FeatureId = FeatureId(0x0f);
    /// Host Controlled Thermal Management (Base 2.0, section 5.27.1.13).
    pub const THERMAL_MANAGEMENT: FeatureId = FeatureId(0x10);
    /// Non-Operational Power State Config (Base 2.0, section 5.27.1.14).
    pub const NON_OPERATIONAL_POWER_STATE: FeatureId = FeatureId(0x11);
    /// Read Recovery Level Config (Base 2.0, section 5.27.1.15).
    pub const READ_RECOVERY_LEVEL: FeatureId = FeatureId(0x12);
    /// Predictable Latency Mode Config (Base 2.0, section 5.27.1.16).
    pub const PREDICTABLE_LATENCY_CONFIG: FeatureId = FeatureId(0x13);
    /// Predictable Latency Mode Window (Base 2.0, section 5.27.1.17).
    pub const PREDICTABLE_LATENCY_WINDOW: FeatureId = FeatureId(0x14);
    /// Host Behavior Support (Base 2.0, section 5.27.1.18).
    pub const HOST_BEHAVIOR: FeatureId = FeatureId(0x16);
    /// Sanitize Config (Base 2.0, section 5.27.1.19).
    pub const SANITIZE_CONFIG: FeatureId = FeatureId(0x17);
    /// Endurance Group Event Configuration (Base 2.0, section 5.27.1.20).
    pub const ENDURANCE_GROUP_EVENTS: FeatureId = FeatureId(0x18);
    /// I/O Command Set Profile (Base 2.0, section 5.27.1.21).
    pub const COMMAND_SET_PROFILE: FeatureId = FeatureId(0x19);
    /// Software Progress Marker (Base 2.0, section 5.27.1.23).
    pub const SOFTWARE_PROGRESS_MARKER: FeatureId = FeatureId(0x80);
    /// Host Identifier (Base 2.0, section 5.27.1.24).
    pub const HOST_IDENTIFIER: FeatureId = FeatureId(0x81);
    /// Reservation Notification Mask (Base 2.0, section 5.27.1.25).
    pub const RESERVATION_NOTIFICATION_MASK: FeatureId = FeatureId(0x82);
    /// Reservation Persistence (Base 2.0, section 5.27.1.26).
    pub const RESERVATION_PERSISTENCE: FeatureId = FeatureId(0x83);
    /// Namespace Write Protection Config (Base 2.0, section 5.27.1.27).
    pub const NAMESPACE_WRITE_PROTECTION: FeatureId = FeatureId(0x84);
}

/// Counts of I/O queues, as true counts; on the wire they are 0's based (Base 2.0, section
/// 5.27.1.5). Dword 11 of the command and dword 0 of its completion have the same form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues.
    pub submission: u32,
    /// I/O completion queues.
    pub completion: u32,
}

impl NumberOfQueues {
    /// The dword (Base 2.0, section 5.27.1.5). Counts are brought into 1 to 65535, the range that
    /// the field can express.
    pub fn encode(self) -> u32 {
        let zeroes_based = |count: u32| count.clamp(1, 65535) - 1;
        zeroes_based(self.completion) << 16 | zeroes_based(self.submission)
    }

    /// The counts from a dword (Base 2.0, section 5.27.1.5).
    pub const fn decode(dword: u32) -> NumberOfQueues {
        NumberOfQueues { submission: (dword & 0xffff) + 1, completion: (dword >> 16) + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_are_zeroes_based() {
        let four = NumberOfQueues { submission: 4, completion: 2 };
        assert_eq!(four.encode(), 0x0001_0003);
        assert_eq!(NumberOfQueues::decode(0x0001_0003), four);
        assert_eq!(NumberOfQueues { submission: 0, completion: 70000 }.encode(), 0xfffe_0000);
        assert_eq!(NumberOfQueues::decode(u32::MAX).submission, 65536);
    }
}

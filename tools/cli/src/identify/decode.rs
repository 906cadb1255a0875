//! What fields mean: bits by name, names of a namespace as they are written.

use kiovec::spec::identify::{self as spec, Controller, NamespaceDescriptor, SglSupport};

const ONCS: &[(u16, &str)] = &[
    (spec::ONCS_COMPARE, "Compare"),
    (spec::ONCS_WRITE_UNCORRECTABLE, "Write Uncorrectable"),
    (spec::ONCS_DATASET_MANAGEMENT, "Dataset Management"),
    (spec::ONCS_WRITE_ZEROES, "Write Zeroes"),
    (spec::ONCS_SAVE_SELECT, "Save and Select"),
    (spec::ONCS_RESERVATIONS, "Reservations"),
    (spec::ONCS_TIMESTAMP, "Timestamp"),
    (spec::ONCS_VERIFY, "Verify"),
    (spec::ONCS_COPY, "Copy"),
];

const OACS: &[(u16, &str)] = &[
    (spec::OACS_SECURITY, "Security Send/Receive"),
    (spec::OACS_FORMAT, "Format NVM"),
    (spec::OACS_FIRMWARE, "Firmware Download/Commit"),
    (spec::OACS_NAMESPACE_MANAGEMENT, "Namespace Management"),
    (spec::OACS_SELF_TEST, "Device Self-test"),
    (spec::OACS_DIRECTIVES, "Directives"),
    (spec::OACS_NVME_MI, "NVMe-MI Send/Receive"),
    (spec::OACS_VIRTUALIZATION, "Virtualization Management"),
    (spec::OACS_DOORBELL_BUFFER, "Doorbell Buffer Config"),
];

pub fn oncs(controller: &Controller) -> Vec<&'static str> {
    names(controller.oncs, ONCS)
}

pub fn oacs(controller: &Controller) -> Vec<&'static str> {
    names(controller.oacs, OACS)
}

fn names(bits: u16, table: &[(u16, &'static str)]) -> Vec<&'static str> {
    table.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

pub fn sgl_support(controller: &Controller) -> &'static str {
    match controller.sgl_support() {
        SglSupport::None => "none",
        SglSupport::Bytes => "bytes",
        SglSupport::Dwords => "dwords",
        SglSupport::Reserved => "reserved",
    }
}

pub fn controller_type(controller: &Controller) -> &'static str {
    match controller.cntrltype {
        0 => "not reported",
        1 => "I/O",
        2 => "discovery",
        3 => "administrative",
        _ => "reserved",
    }
}

/// A name of a namespace: its kind, and its value as it is written.
pub fn descriptor(descriptor: &NamespaceDescriptor) -> (&'static str, String) {
    match descriptor {
        NamespaceDescriptor::Eui64(id) => ("eui64", hex(id)),
        NamespaceDescriptor::Nguid(id) => ("nguid", hex(id)),
        NamespaceDescriptor::Uuid(id) => ("uuid", uuid(id)),
        NamespaceDescriptor::Csi(csi) => ("csi", csi.to_string()),
        NamespaceDescriptor::Unknown { nidt, nidl } => ("unknown", format!("type {nidt:#x} of {nidl} bytes")),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 9562, section 4.
fn uuid(id: &[u8; 16]) -> String {
    let parts = [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]];
    parts.map(hex).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_five_parts() {
        let id = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(uuid(&id), "12345678-9abc-def0-0102-030405060708");
    }

    #[test]
    fn bits_have_names() {
        assert_eq!(names(spec::ONCS_COPY | spec::ONCS_COMPARE, ONCS), ["Compare", "Copy"]);
        assert!(names(1 << 15, ONCS).is_empty());
    }
}

//! Namespaces as Identify describes them.

use crate::spec::command::CSI_NVM;
use crate::spec::identify::{self, FLBAS_EXTENDED, NamespaceDescriptor};

/// An active namespace of a controller.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Identifies the controller among all of this process.
    pub(super) controller: u64,
    pub(super) nsid: u32,
    pub(super) identity: Box<identify::Namespace>,
    pub(super) descriptors: Vec<NamespaceDescriptor>,
}

impl Namespace {
    /// Namespace Identifier.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Identify Namespace data (NVM Command Set 1.0, section 4.1.5.1).
    pub fn identity(&self) -> &identify::Namespace {
        &self.identity
    }

    /// Namespace Identification Descriptors (Base 2.0, section 5.17.2.3); empty before version 1.3.
    pub fn descriptors(&self) -> &[NamespaceDescriptor] {
        &self.descriptors
    }

    /// Size in logical blocks (NSZE).
    pub fn blocks(&self) -> u64 {
        self.identity.nsze
    }

    /// Bytes of a logical block, `None` if the controller reports a size that cannot be.
    pub fn block_size(&self) -> Option<u32> {
        self.identity.format().block_size()
    }

    /// Bytes of metadata with each block.
    pub fn metadata_size(&self) -> u16 {
        self.identity.format().ms()
    }

    /// Whether this driver can read and write it, or why not.
    pub(crate) fn usable(&self) -> Result<u32, String> {
        let Some(block_size) = self.block_size() else {
            return Err(format!(
                "namespace {}: LBADS {} is no block size",
                self.nsid,
                self.identity.format().lbads()
            ));
        };
        let other = self.descriptors.iter().find_map(|descriptor| match descriptor {
            NamespaceDescriptor::Csi(csi) if *csi != CSI_NVM => Some(*csi),
            _ => None,
        });
        if let Some(csi) = other {
            return Err(format!("namespace {} has command set {csi}; only NVM (0) is supported", self.nsid));
        }
        if self.metadata_size() > 0 {
            let place = if self.identity.flbas & FLBAS_EXTENDED != 0 { "interleaved" } else { "separate" };
            return Err(format!(
                "namespace {} is formatted with {} bytes of {place} metadata; format it without (nvme format)",
                self.nsid,
                self.metadata_size()
            ));
        }
        match self.blocks().checked_mul(u64::from(block_size)) {
            Some(1..) => Ok(block_size),
            _ => Err(format!("namespace {}: a size of {} blocks cannot be", self.nsid, self.blocks())),
        }
    }
}

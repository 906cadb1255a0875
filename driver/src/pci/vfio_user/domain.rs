//! What a server reaches of our memory: one translation table for each connection.
//!
//! Knows what a server must be told, and when it has let go; must not know regions or devices.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::Capabilities;
use super::connection::{Connection, Failure};
use super::message::{DMA_READABLE, DMA_WRITEABLE, DmaMap, DmaUnmap, command};
use crate::memory::{Access, Domain, Mapping};
use crate::{Error, Result};

/// The translation table of a connection.
///
/// A server that is no longer there may have left its mappings to a child, so only its own word ends a
/// mapping: what it had when the connection was lost cannot be unmapped, and what it never heard of can
/// always be. Mapping more for a lost connection is nothing to do, and so it succeeds.
#[derive(Debug)]
pub(super) struct PeerDomain {
    connection: Arc<Connection>,
    capabilities: Capabilities,
}

impl PeerDomain {
    pub(super) fn new(connection: Arc<Connection>, capabilities: Capabilities) -> PeerDomain {
        PeerDomain { connection, capabilities }
    }

    fn cannot(&self, mapping: &Mapping<'_>, reason: impl std::fmt::Display) -> Error {
        let (iova, len) = (mapping.iova(), mapping.len());
        let name = self.connection.name();
        Error::InvalidInput(format!("{name}: cannot map {len:#x} bytes at IOVA {iova:#x}: {reason}"))
    }

    /// The smallest page that the server maps.
    fn page_size(&self) -> u64 {
        1u64.checked_shl(self.capabilities.page_sizes().trailing_zeros()).unwrap_or(u64::MAX)
    }
}

impl Domain for PeerDomain {
    fn name(&self) -> String {
        self.connection.name().to_owned()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        std::iter::once(0..=u64::MAX).collect()
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<()> {
        let Some((file, offset)) = mapping.file() else {
            return Err(self.cannot(
                mapping,
                "it has no file, and memory is shared with another process by its file; use memory of the space's \
                 own (allocate), or a guest's RAM with its files (register_guest)",
            ));
        };
        let page = self.page_size();
        if !(mapping.iova() | mapping.len() | offset).is_multiple_of(page) {
            return Err(self.cannot(mapping, format_args!("the server maps whole pages of {page:#x} bytes, and some memory of the driver's has 4 KiB; \
                 start it with smaller pages")));
        }
        let channel = &mut *self.connection.channel();
        if self.connection.is_lost() {
            return Ok(());
        }
        if channel.mappings.len() as u64 >= self.capabilities.dma_maps() {
            let most = self.capabilities.dma_maps();
            return Err(self.cannot(
                mapping,
                format_args!(
                    "the server takes {most} mappings, two for each region of memory; use less memory"
                ),
            ));
        }
        // Before it is sent: the server may ask for the memory by message before it replies.
        if !channel.mappings.insert(mapping) {
            return Err(self.cannot(mapping, "something is mapped there"));
        }
        let writeable = if mapping.access() == Access::ReadWrite { DMA_WRITEABLE } else { 0 };
        let payload = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: DMA_READABLE | writeable,
            offset,
            address: mapping.iova(),
            size: mapping.len(),
        };
        match self.connection.request_in(channel, command::DMA_MAP, payload.as_bytes(), &[file]) {
            // Lost between question and answer, the server may have it: it counts as mapped.
            Ok(_) | Err(Failure::Lost) => Ok(()),
            Err(refused) => {
                channel.mappings.remove(mapping.iova(), mapping.len());
                Err(self.connection.error(command::DMA_MAP, refused))
            }
        }
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<()> {
        let channel = &mut *self.connection.channel();
        if !channel.mappings.contains(iova, len) {
            let name = self.connection.name();
            return match self.connection.is_lost() {
                true => Ok(()),
                false => Err(Error::InvalidInput(format!("{name}: nothing is mapped at IOVA {iova:#x}"))),
            };
        }
        let payload = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, address: iova, size: len };
        match self.connection.request_in(channel, command::DMA_UNMAP, payload.as_bytes(), &[]) {
            Ok(_) => {
                channel.mappings.remove(iova, len);
                Ok(())
            }
            Err(failure) => Err(self.connection.error(command::DMA_UNMAP, failure)),
        }
    }
}

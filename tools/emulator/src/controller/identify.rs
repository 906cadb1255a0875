//! Identify data (Base 2.0, section 5.17; NVM Command Set 1.0, section 4.1.5).
//!
//! Knows how settings look on the wire; must not know queues or memory.

use kiovec::spec::command::{CSI_NVM, NSID_ALL};
use kiovec::spec::identify::{
    ActiveNamespaces, Controller, NSFEAT_ATOMICS, Namespace, NvmController, OACS_DOORBELL_BUFFER,
    OAES_FIRMWARE_ACTIVATION, OAES_NAMESPACE_ATTRIBUTE, SGLS_BIT_BUCKET, VWC_PRESENT,
};
use kiovec::spec::{Cns, Command, LbaFormat, Status, Version};
use zerocopy::{FromZeros, IntoBytes};

use super::log::{ERROR_ENTRIES, EVENT_REQUESTS};
use super::namespaces::Namespaces;
use crate::config::{Config, Sgl};
use crate::pci_config::VENDOR;

/// The version of the specification that the controller follows.
pub(super) const VERSION: Version = Version::new().with_mjr(2).with_mnr(0);
/// The firmware in its only slot.
pub(super) const FIRMWARE: &[u8; 8] = b"2.0     ";
/// IEEE extended unique identifiers of namespaces: locally administered, NSID at the end.
const EUI64: [u8; 4] = [0x02, 0x4b, 0x56, 0x45];

/// Answers an Identify command: 4096 bytes.
pub(super) fn identify(
    config: &Config,
    namespaces: &Namespaces,
    command: &Command,
) -> Result<Box<[u8; 4096]>, Status> {
    let cns = Cns(command.cdw10 as u8);
    let csi = (command.cdw11 >> 24) as u8;
    // The broadcast value names no namespace without namespace management.
    let active = namespaces.active(command.nsid).is_some();
    let page = match cns {
        Cns::NAMESPACE => match namespaces.active(command.nsid) {
            Some((_, blocks)) => bytes(&namespace(config, command.nsid, blocks)),
            None => return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
        },
        Cns::CONTROLLER => bytes(&controller(config)),
        Cns::ACTIVE_NAMESPACES => bytes(&active_after(namespaces, command.nsid)?),
        Cns::NAMESPACE_DESCRIPTORS if active => descriptors(command.nsid),
        // The NVM command set says nothing here that is not zero without protection information.
        Cns::COMMAND_SET_NAMESPACE if csi == CSI_NVM && active => zeros(),
        Cns::COMMAND_SET_CONTROLLER if csi == CSI_NVM => bytes(&nvm_controller(config)),
        Cns::COMMAND_SET_ACTIVE_NAMESPACES if csi == CSI_NVM => {
            bytes(&active_after(namespaces, command.nsid)?)
        }
        Cns::INDEPENDENT_NAMESPACE if active => independent(),
        Cns::INDEPENDENT_NAMESPACE => return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
        Cns::NAMESPACE_DESCRIPTORS => return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
        Cns::COMMAND_SET_NAMESPACE if csi == CSI_NVM => {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        }
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    Ok(page)
}

fn controller(config: &Config) -> Controller {
    let mut data = Controller::new_zeroed();
    data.vid = VENDOR;
    data.ssvid = VENDOR;
    data.sn = padded(config.serial.as_bytes());
    data.mn = padded(b"kiovec emulator");
    data.fr = *FIRMWARE;
    data.mdts = config.mdts;
    data.acl = config.acl;
    data.cntlid = 1;
    data.ver = VERSION.into_bits();
    // A shutdown may take a second.
    data.rtd3e = 1_000_000;
    data.oaes = OAES_NAMESPACE_ATTRIBUTE | OAES_FIRMWARE_ACTIVATION;
    data.cntrltype = 1;
    data.oacs = if config.dbbuf { OACS_DOORBELL_BUFFER } else { 0 };
    data.aerl = EVENT_REQUESTS as u8 - 1;
    // One firmware slot, read only.
    data.frmw = 0b11;
    // Log page offsets.
    data.lpa = 1 << 2;
    data.elpe = (ERROR_ENTRIES - 1) as u8;
    data.wctemp = 343;
    data.cctemp = 353;
    data.tnvmcap = (u128::from(config.size) * u128::from(config.namespaces)).to_le_bytes();
    data.sqes = 0x66;
    data.cqes = 0x44;
    data.nn = config.namespaces;
    data.mnan = config.namespaces;
    data.oncs = config.oncs;
    // What is atomic when power fails is atomic in normal operation.
    (data.awun, data.awupf) = (config.awupf, config.awupf);
    // Flush takes the broadcast NSID; there is a cache or not.
    data.vwc = 0b11 << 1 | if config.vwc { VWC_PRESENT } else { 0 };
    data.sgls = match config.sgl {
        Sgl::Off => 0,
        Sgl::On => 0b01 | SGLS_BIT_BUCKET,
        Sgl::Dword => 0b10 | SGLS_BIT_BUCKET,
    };
    let nqn = format!("nqn.2024-01.invalid.kiovec:{}", config.serial);
    let len = nqn.len().min(data.subnqn_bytes.len() - 1);
    data.subnqn_bytes[..len].copy_from_slice(&nqn.as_bytes()[..len]);
    data
}

fn namespace(config: &Config, nsid: u32, blocks: u64) -> Namespace {
    let mut data = Namespace::new_zeroed();
    (data.nsze, data.ncap, data.nuse) = (blocks, blocks, blocks);
    // Format 0 is always 512 bytes, so that the one in use has another index more often than not.
    data.lbaf[0] = LbaFormat::new().with_lbads(9);
    if config.block != 512 {
        data.lbaf[1] = LbaFormat::new().with_lbads(config.block.trailing_zeros() as u8);
        (data.nlbaf, data.flbas) = (1, 1);
    }
    // Deallocated blocks read as zeros, and Write Zeroes may deallocate.
    data.dlfeat = 0b0_1001;
    data.noiob = config.noiob;
    if config.nawupf != 0 || config.nabspf != 0 {
        data.nsfeat |= NSFEAT_ATOMICS;
    }
    (data.nawun, data.nawupf, data.nabspf) = (config.nawupf, config.nawupf, config.nabspf);
    data.nvmcap = (u128::from(blocks) * u128::from(config.block)).to_le_bytes();
    data.nguid = nguid(nsid);
    data.eui64 = eui64(nsid);
    data
}

fn nvm_controller(config: &Config) -> NvmController {
    let mut data = NvmController::new_zeroed();
    data.wzsl = config.wzsl;
    (data.dmrl, data.dmrsl, data.dmsl) = (config.dmrl, config.dmrsl, config.dmsl);
    data
}

/// The active NSIDs above one; FFFFFFFEh and FFFFFFFFh have none above (Base 2.0, section 5.17.2.2).
fn active_after(namespaces: &Namespaces, nsid: u32) -> Result<ActiveNamespaces, Status> {
    if nsid >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let mut list = ActiveNamespaces::new_zeroed();
    for (entry, nsid) in list.nsids.iter_mut().zip(namespaces.active_after(nsid)) {
        *entry = nsid;
    }
    Ok(list)
}

/// The Namespace Identification Descriptor list: EUI64, NGUID and command set.
fn descriptors(nsid: u32) -> Box<[u8; 4096]> {
    let mut page = zeros();
    let mut at = 0;
    let mut add = |nidt: u8, id: &[u8]| {
        page[at..at + 2].copy_from_slice(&[nidt, id.len() as u8]);
        page[at + 4..at + 4 + id.len()].copy_from_slice(id);
        at += 4 + id.len();
    };
    add(1, &eui64(nsid));
    add(2, &nguid(nsid));
    add(4, &[CSI_NVM]);
    page
}

/// What a namespace says whatever its command set: it is ready (NSTAT), and nothing else.
fn independent() -> Box<[u8; 4096]> {
    let mut page = zeros();
    page[14] = 1;
    page
}

fn eui64(nsid: u32) -> [u8; 8] {
    let mut id = [0; 8];
    id[..4].copy_from_slice(&EUI64);
    id[4..].copy_from_slice(&nsid.to_be_bytes());
    id
}

fn nguid(nsid: u32) -> [u8; 16] {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&eui64(nsid));
    id
}

/// Text padded with spaces (Base 2.0, section 1.4.2, ASCII strings).
fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [b' '; N];
    let len = text.len().min(N);
    field[..len].copy_from_slice(&text[..len]);
    field
}

fn zeros() -> Box<[u8; 4096]> {
    Box::new([0; 4096])
}

fn bytes<T: IntoBytes + zerocopy::Immutable>(data: &T) -> Box<[u8; 4096]> {
    let mut page = zeros();
    page.copy_from_slice(data.as_bytes());
    page
}

#[cfg(test)]
mod tests {
    use kiovec::spec::identify::{NamespaceDescriptor, NamespaceDescriptors, SglSupport};
    use zerocopy::FromBytes;

    use super::*;

    fn ask(text: &str, cns: Cns, nsid: u32) -> Result<Box<[u8; 4096]>, Status> {
        let config = Config::parse(text).unwrap();
        identify(&config, &Namespaces::new(&config), &Command::identify(cns, nsid, 0))
    }

    const NO_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();

    #[test]
    fn the_controller_tells_its_settings() {
        let page = ask("namespaces=3,mdts=7,sgl=dword,serial=X1,vwc=off", Cns::CONTROLLER, 0).unwrap();
        let data = Controller::read_from_bytes(&page[..]).unwrap();
        assert_eq!((data.serial(), data.model()), ("X1".into(), "kiovec emulator".into()));
        assert_eq!((data.nn, data.mdts, data.sgl_support()), (3, 7, SglSupport::Dwords));
        assert_eq!(data.version().to_string(), "2.0.0");
        assert!(!data.has_volatile_write_cache());
        assert_eq!(data.total_capacity(), 3 << 30);
        assert_eq!(data.subnqn(), "nqn.2024-01.invalid.kiovec:X1");
    }

    #[test]
    fn a_namespace_tells_its_format() {
        for (block, index) in [(512, 0), (4096, 1), (65536, 1)] {
            let page = ask(&format!("block={block},size=1M"), Cns::NAMESPACE, 1).unwrap();
            let data = Namespace::read_from_bytes(&page[..]).unwrap();
            assert_eq!((data.format_index(), data.format().block_size()), (index, Some(block)));
            assert_eq!(data.nsze, (1 << 20) / u64::from(block));
        }
    }

    #[test]
    fn namespaces_that_are_not_there() {
        for nsid in [0, 3, NSID_ALL] {
            for cns in [
                Cns::NAMESPACE,
                Cns::NAMESPACE_DESCRIPTORS,
                Cns::COMMAND_SET_NAMESPACE,
                Cns::INDEPENDENT_NAMESPACE,
            ] {
                assert_eq!(ask("namespaces=2", cns, nsid), Err(NO_NAMESPACE));
            }
        }
    }

    #[test]
    fn active_namespaces_are_listed_from_any_start() {
        let list = |nsid| {
            let page = ask("namespaces=1024", Cns::ACTIVE_NAMESPACES, nsid)?;
            Ok(ActiveNamespaces::read_from_bytes(&page[..]).unwrap().iter().collect::<Vec<_>>())
        };
        assert_eq!(list(0).unwrap().len(), 1024);
        assert_eq!(list(1022), Ok(vec![1023, 1024]));
        assert_eq!(list(5000), Ok(vec![]));
        assert_eq!(list(NSID_ALL - 1), Err(NO_NAMESPACE));
        assert_eq!(list(NSID_ALL), Err(NO_NAMESPACE));
    }

    #[test]
    fn descriptors_name_a_namespace_as_its_own_page_does() {
        let list = ask("namespaces=2", Cns::NAMESPACE_DESCRIPTORS, 2).unwrap();
        let all: Vec<_> = NamespaceDescriptors::new(&list).collect();
        let page = ask("namespaces=2", Cns::NAMESPACE, 2).unwrap();
        let data = Namespace::read_from_bytes(&page[..]).unwrap();
        let expected = [
            NamespaceDescriptor::Eui64(data.eui64),
            NamespaceDescriptor::Nguid(data.nguid),
            NamespaceDescriptor::Csi(0),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_namespace_is_ready_whatever_its_command_set() {
        let page = ask("", Cns::INDEPENDENT_NAMESPACE, 1).unwrap();
        // NSTAT.
        assert_eq!(page.iter().position(|byte| *byte != 0), Some(14));
        assert_eq!(page[14], 1);
    }

    #[test]
    fn atomic_write_units() {
        let units = |text| {
            let data = ask(text, Cns::CONTROLLER, 0).unwrap();
            let data = Controller::read_from_bytes(&data[..]).unwrap();
            let page = ask(text, Cns::NAMESPACE, 1).unwrap();
            let page = Namespace::read_from_bytes(&page[..]).unwrap();
            assert!(data.awun >= data.awupf && page.nawun >= page.nawupf);
            (data.awupf, page.nsfeat & NSFEAT_ATOMICS != 0, page.nawupf, page.nabspf)
        };
        assert_eq!(units(""), (0, false, 0, 0));
        assert_eq!(units("awupf=3"), (3, false, 0, 0));
        assert_eq!(units("awupf=3,nawupf=7"), (3, true, 7, 0));
        assert_eq!(units("nabspf=15"), (0, true, 0, 15));
    }

    #[test]
    fn limits_of_the_command_set() {
        let page = ask("wzsl=3,dmrl=8,dmrsl=9,dmsl=10", Cns::COMMAND_SET_CONTROLLER, 0).unwrap();
        let data = NvmController::read_from_bytes(&page[..]).unwrap();
        assert_eq!((data.wzsl, data.dmrl, data.dmrsl, data.dmsl), (3, 8, 9, 10));
    }

    #[test]
    fn other_structures_and_command_sets_are_refused() {
        let refused = Err(Status::INVALID_FIELD.with_dnr());
        assert_eq!(ask("", Cns::COMMAND_SETS, 0), refused);
        assert_eq!(ask("", Cns(0x10), 0), refused);
        let mut zoned = Command::identify(Cns::COMMAND_SET_CONTROLLER, 0, 0);
        zoned.cdw11 = 2 << 24;
        let config = Config::default();
        assert_eq!(identify(&config, &Namespaces::new(&config), &zoned), refused);
    }
}

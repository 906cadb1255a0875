//! The server of the crate `vfio_user`: somebody else's reading of the same specification.

use std::fs::File;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use kiovec::memory::DmaSpace;
use kiovec::pci::Function;
use kiovec::pci::vfio_user::{DoorbellPath, VfioUser};
use vfio_bindings::bindings::vfio::{vfio_region_info, vfio_region_sparse_mmap_area};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea};

use super::peer::{LONG, file, options};

#[derive(Default)]
struct Seen {
    config: Vec<u8>,
    bar0: Vec<u8>,
    mapped: Vec<(DmaMapFlags, u64, u64, bool)>,
    unmapped: usize,
    resets: usize,
}

struct Backend(Arc<Mutex<Seen>>);

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        let seen = self.0.lock().unwrap();
        let memory = if region == 7 { &seen.config } else { &seen.bar0 };
        let at = offset as usize;
        let from = memory.get(at..at + data.len()).ok_or(IoError::other("no such register"))?;
        data.copy_from_slice(from);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let mut seen = self.0.lock().unwrap();
        let at = offset as usize;
        let memory = if region == 7 { &mut seen.config } else { &mut seen.bar0 };
        memory[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        _offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> Result<(), IoError> {
        self.0.lock().unwrap().mapped.push((flags, address, size, fd.is_some()));
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> Result<(), IoError> {
        self.0.lock().unwrap().unmapped += 1;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), IoError> {
        self.0.lock().unwrap().resets += 1;
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> Result<(), IoError> {
        Ok(())
    }
}

#[test]
fn it_and_the_client_understand_each_other() {
    let doorbells = file(0x2000);
    let region = |index: u32| {
        let size = match index {
            0 => 0x2000,
            7 => 256,
            _ => 0,
        };
        let flags = if index == 0 { 7 } else { 3 };
        let region_info = vfio_region_info { argsz: 32, flags, index, cap_offset: 0, size, offset: 0 };
        let area = vfio_region_sparse_mmap_area { offset: 0x1000, size: 0x1000 };
        let mapped = index == 0;
        ServerRegion {
            region_info,
            sparse_areas: if mapped { vec![SparseArea { area }] } else { vec![] },
            mmap_fd: mapped.then(|| doorbells.as_raw_fd()),
        }
    };
    let irqs = (0..5).map(|index| IrqInfo { index, flags: 1, count: index + 1 }).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = Server::new(&path, true, irqs, (0..9).map(region).collect()).unwrap();
    let seen = Arc::new(Mutex::new(Seen {
        config: (0..=255).collect(),
        bar0: (0..0x2000).map(|at| at as u8).collect(),
        ..Seen::default()
    }));
    let mut backend = Backend(Arc::clone(&seen));
    let thread = std::thread::spawn(move || server.run(&mut backend).map_err(|error| error.to_string()));

    let function = VfioUser::open_with(&path, options(LONG)).unwrap();
    assert_eq!(function.doorbell_path(), DoorbellPath::Mapped { sealed: false });
    assert_eq!(function.read64(8).unwrap(), 0x0f0e_0d0c_0b0a_0908);
    function.write32(0x14, 0xdead_beef).unwrap();
    assert_eq!(function.read32(0x14).unwrap(), 0xdead_beef);
    assert_eq!(function.irq_info(2).unwrap().count, 3);
    function.set_bus_master(true).unwrap();
    // It refuses what its device refuses, and goes on.
    let error = function.irq_info(9).unwrap_err().to_string();
    assert!(error.contains("refused DEVICE_GET_IRQ_INFO"), "{error}");
    function.reset().unwrap();
    function.doorbells(16).unwrap().doorbell(12).unwrap().ring(0x1234);
    let mut word = [0; 4];
    rustix::io::pread(&doorbells, &mut word, 0x100c).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0x1234);
    let space = DmaSpace::new().unwrap();
    let memory = space.allocate(3 << 20).unwrap();
    drop(space.attach(function.domain()).unwrap());
    drop((memory, function));
    thread.join().unwrap().unwrap();

    let seen = seen.lock().unwrap();
    assert_eq!((seen.mapped.len(), seen.unmapped, seen.resets), (2, 2, 1));
    assert!(seen.mapped.iter().all(|(.., file)| *file), "each mapping came with its file");
    assert_eq!(seen.mapped[0].0, DmaMapFlags::READ_WRITE);
    assert_eq!(seen.mapped[1].0, DmaMapFlags::READ);
    assert_eq!(seen.config[4] & 6, 2, "bus master is off when the client has gone");
}

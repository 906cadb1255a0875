//! Identify data and registers that are absurd, contradict each other or change: each gives an error for what
//! it concerns, or a limit, and everything else stays usable.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use kiovec::controller::Namespace;
use kiovec::memory::DmaSpace;
use kiovec::spec::registers::{CAP, CC, CRTO, CSTS, VS};
use kiovec::spec::{Cns, Status};
use kiovec::{Cause, Controller, Error, IoContainer, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator, Faults, Register};
use proptest::prelude::*;

/// Steps and polls in which everything is over, however the requests are cut.
const PATIENCE: usize = 2_000;

fn emulator(settings: &str, faults: Faults) -> Emulator {
    let settings = format!("size=1M,block=4096,{settings}");
    let emulator = Emulator::stepped(Config::parse(settings.trim_end_matches(',')).unwrap()).unwrap();
    emulator.set_faults(faults);
    emulator
}

fn open(settings: &str, faults: Faults) -> (Emulator, DmaSpace, Result<Arc<Controller>, Error>) {
    let (emulator, space) = (emulator(settings, faults), DmaSpace::new().unwrap());
    let controller = Controller::open(emulator.function(), &space);
    (emulator, space, controller)
}

/// What came of some requests to a namespace.
#[derive(Debug, Default)]
struct Outcome {
    succeeded: usize,
    failed: usize,
    refused: usize,
    /// Neither, in all that time.
    stuck: usize,
}

/// Sends one request of each kind, at both ends of the namespace.
fn exercise(
    emulator: &Emulator,
    space: &DmaSpace,
    controller: &Arc<Controller>,
    namespace: &Namespace,
) -> Result<Outcome, Error> {
    let mut poller = Poller::new(64);
    let queue = poller.add_queue(controller, QueueOptions::default().depth(4))?;
    let target = poller.add_namespace(queue, namespace)?;
    let (blocks, geometry) = (namespace.blocks(), poller.geometry(target).unwrap());
    let size = geometry.block_size();
    let mut outcome = Outcome::default();
    for lba in [0, blocks / 2, blocks.saturating_sub(3), blocks - 1, blocks, u64::MAX] {
        let memory = |blocks: usize| space.allocate(blocks * size).unwrap();
        let most = (4 << 20) / size;
        for io in [
            IoContainer::read(lba, memory(1)),
            IoContainer::write(lba, memory(3)),
            IoContainer::read(lba, memory(most.clamp(1, 70))),
            IoContainer::write(lba, memory(2)).atomic(true),
            IoContainer::write_zeroes(lba, 100),
            IoContainer::deallocate(lba, 7),
            IoContainer::flush(),
        ] {
            outcome.refused += usize::from(poller.submit(target, io).is_err());
        }
        for _ in 0..PATIENCE {
            poller.poll(|done| match done.result() {
                Ok(()) => outcome.succeeded += 1,
                Err(failure) => {
                    assert!(matches!(failure.cause, Cause::Status(_)), "{failure}");
                    outcome.failed += 1;
                }
            });
            emulator.step();
            if poller.outstanding() == 0 {
                break;
            }
        }
        outcome.stuck = poller.outstanding();
    }
    Ok(outcome)
}

/// Everything that one does with a controller.
fn use_all(
    emulator: &Emulator,
    space: &DmaSpace,
    controller: &Arc<Controller>,
) -> Vec<Result<Outcome, Error>> {
    let nsids = controller.active_namespaces().unwrap_or_default();
    assert!(nsids.is_sorted_by(|a, b| a < b) && !nsids.contains(&0) && !nsids.contains(&u32::MAX));
    let tried = nsids.iter().take(3).map(|nsid| {
        let namespace = controller.namespace(*nsid)?;
        exercise(emulator, space, controller, &namespace)
    });
    tried.collect()
}

/// One namespace of two is absurd: it is refused, and the other one works.
fn refused(faults: Faults, expected: &str) {
    let (emulator, space, controller) = open("namespaces=2", faults);
    let mut results = use_all(&emulator, &space, &controller.unwrap());
    assert_eq!(results.len(), 2);
    assert!(results.pop().unwrap().unwrap().succeeded > 0);
    let error = results.pop().unwrap().unwrap_err().to_string();
    assert!(error.contains(expected) && error.contains("namespace 1"), "{error}");
}

fn namespace(offset: usize, bytes: impl Into<Vec<u8>>) -> Faults {
    Faults::default().identify(Cns::NAMESPACE, 1, offset, bytes)
}

fn controller(offset: usize, bytes: impl Into<Vec<u8>>) -> Faults {
    Faults::default().identify(Cns::CONTROLLER, 0, offset, bytes)
}

/// It does not matter: everything works.
fn works(faults: Faults) -> Outcome {
    let (emulator, space, controller) = open("", faults);
    let controller = controller.unwrap();
    let outcome = exercise(&emulator, &space, &controller, &controller.namespace(1).unwrap()).unwrap();
    assert!(outcome.succeeded > 0 && outcome.failed + outcome.stuck == 0, "{outcome:?}");
    outcome
}

#[test]
fn block_sizes_that_cannot_be() {
    // The format in use is number 1.
    for lbads in [0, 1, 8, 32, 40, 63, 64, 255] {
        refused(namespace(134, [lbads]), &format!("LBADS {lbads} is no block size"));
    }
    for lbads in [17, 24, 31] {
        let (emulator, space, controller) = open("", namespace(134, [lbads]));
        let error = use_all(&emulator, &space, &controller.unwrap()).remove(0).unwrap_err();
        assert!(
            error.to_string().contains("a block of") || error.to_string().contains("cannot be"),
            "{error}"
        );
    }
}

#[test]
fn sizes_that_cannot_be() {
    for nsze in [0, u64::MAX, u64::MAX - 1, 1 << 52, 1 << 63] {
        refused(namespace(0, nsze.to_le_bytes()), "cannot be");
    }
    // All that can be expressed: what is beyond the end fails, by the controller's word.
    let (emulator, space, controller) = open("", namespace(0, (u64::MAX >> 12).to_le_bytes()));
    let results = use_all(&emulator, &space, &controller.unwrap());
    let outcome = results[0].as_ref().unwrap();
    assert!(outcome.succeeded > 0 && outcome.failed > 0, "{outcome:?}");
    // NCAP and NUSE beyond NSZE.
    works(namespace(8, [0xff; 16]));
}

#[test]
fn formats_that_are_not_there() {
    refused(namespace(26, [2]), "its LBA format is number 2, and the last is 1");
    let (_emulator, _space, controller) = open("", namespace(26, [2]));
    assert_eq!(controller.unwrap().namespace(1).unwrap().block_size(), None);
    refused(namespace(25, [0]), "its LBA format is number 1, and the last is 0");
    refused(namespace(25, [[63, 0xff]].concat()), "no block size");
    refused(namespace(132, [8, 0]), "8 bytes of separate metadata");
}

#[test]
fn limits_of_a_namespace() {
    // NOIOB: odd, one block, more than a transfer.
    for noiob in [1u16, 7, 0xffff] {
        works(namespace(46, noiob.to_le_bytes()));
    }
    // Everything from NPWG to MSRC.
    works(namespace(64, [0xff; 17]));
    // NSFEAT with atomic units: NAWUPF below AWUPF, NABSPF below NAWUPF, NABO beyond NABSPF.
    let units = [
        [0xff; 12],
        [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        [9, 0, 2, 0, 0, 0, 1, 0, 0xff, 0xff, 1, 0],
        [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0, 0],
    ];
    for units in units {
        for awupf in [0u16, 0xffff] {
            let faults = namespace(24, [0xff]).identify(Cns::NAMESPACE, 1, 34, units);
            works(faults.identify(Cns::CONTROLLER, 0, 528, awupf.to_le_bytes()));
        }
    }
}

#[test]
fn limits_of_a_controller() {
    // MDTS is what the emulator itself keeps to: 128 KiB.
    for mdts in [1, 2] {
        works(controller(77, [mdts]));
    }
    for mdts in [0, 20, 51, 52, 63, 64, 255] {
        let (emulator, space, controller) = open("mdts=0", controller(77, [mdts]));
        let results = use_all(&emulator, &space, &controller.unwrap());
        assert!(results[0].as_ref().unwrap().succeeded > 0);
    }
    // ACL and AERL, RTD3E, OAES, NN, MNAN, MAXCMD, SGLS of a reserved form, strings.
    works(controller(258, [0xff; 2]));
    works(controller(84, [0xff; 12]));
    works(controller(516, [0; 4]));
    works(controller(516, [0xff; 4]));
    works(controller(514, [1, 0]));
    works(controller(536, [3, 0, 0, 0]));
    works(controller(4, [0x9b; 68]));
    // Limits of Write Zeroes and Dataset Management.
    for (wzsl, dmrl, dmrsl, dmsl) in
        [(255, 255, u32::MAX, u64::MAX), (63, 1, 1, 1), (52, 0, 0, 1), (51, 1, 9, 0)]
    {
        let mut page = vec![255, wzsl, 255, dmrl];
        page.extend(u32::to_le_bytes(dmrsl));
        page.extend(u64::to_le_bytes(dmsl));
        works(Faults::default().identify(Cns::COMMAND_SET_CONTROLLER, 0, 0, page));
    }
}

#[test]
fn queue_entries_of_another_size() {
    for (offset, sizes, works) in [
        (512, 0x77, false),
        (512, 0x55, false),
        (512, 0x64, true),
        (512, 0x76, true),
        (512, 0x46, false),
        (512, 0x00, true),
        (513, 0x33, false),
        (513, 0x55, false),
        (513, 0xff, false),
        (513, 0x00, true),
    ] {
        let (_emulator, _space, controller) = open("", controller(offset, [sizes]));
        match controller {
            Ok(_) => assert!(works, "{sizes:#x}"),
            Err(error) => {
                assert!(!works && error.to_string().contains("queue entries"), "{sizes:#x}: {error}")
            }
        }
    }
}

fn list(nsids: &[u32]) -> Faults {
    let mut bytes: Vec<u8> = nsids.iter().flat_map(|nsid| nsid.to_le_bytes()).collect();
    bytes.resize(4096, 0);
    Faults::default().identify(Cns::ACTIVE_NAMESPACES, 0, 0, bytes)
}

#[test]
fn namespace_lists_that_are_out_of_order() {
    for (there, expected) in [
        (&[3, 1, 2][..], &[1, 2, 3][..]),
        (&[1, 1, 1, 2], &[1, 2]),
        (&[1, u32::MAX, 2], &[1, 2]),
        (&[u32::MAX; 1024], &[]),
        (&[1, 0, 2], &[1]),
        (&[0], &[]),
        (&[2, u32::MAX - 1], &[2, u32::MAX - 1]),
        // Full pages that lead nowhere, or back.
        (&[7; 1024], &[7]),
    ] {
        let (emulator, space, controller) = open("namespaces=3", list(there));
        let controller = controller.unwrap();
        assert_eq!(controller.active_namespaces().unwrap(), expected);
        for (nsid, result) in expected.iter().zip(use_all(&emulator, &space, &controller)) {
            match result {
                Ok(outcome) => assert!(*nsid <= 3 && outcome.succeeded > 0),
                // One that is listed and cannot be identified.
                Err(Error::Command { status, .. }) => {
                    assert!(*nsid > 3 && status.code() == Status::INVALID_NAMESPACE_OR_FORMAT.code());
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Every page is full and gets nowhere much: the list ends all the same.
#[test]
fn a_namespace_list_without_end() {
    let faults = (0..200).fold(Faults::default(), |faults, after: u32| {
        let bytes: Vec<u8> = std::iter::repeat_n((after + 1).to_le_bytes(), 1024).flatten().collect();
        faults.identify(Cns::ACTIVE_NAMESPACES, after, 0, bytes)
    });
    let (emulator, _space, controller) = open("", faults);
    let controller = controller.unwrap();
    emulator.step();
    let before = emulator.counters().admin_commands;
    assert!(controller.active_namespaces().unwrap().iter().copied().eq(1..=16));
    assert_eq!(emulator.counters().admin_commands - before, 16);
    let error = controller.namespace(100).unwrap_err().to_string();
    assert!(error.ends_with("14, 15, 16"), "{error}");
}

#[test]
fn an_error_names_some_of_many_namespaces() {
    let (_emulator, _space, controller) = open("namespaces=1024", Faults::default());
    let error = controller.unwrap().namespace(2000).unwrap_err().to_string();
    assert!(error.ends_with("15, 16 and 1008 more"), "{error}");
}

#[test]
fn descriptors_of_other_command_sets_and_lengths() {
    let descriptors = |bytes: &[u8]| {
        let mut page = [0; 4096];
        page[..bytes.len()].copy_from_slice(bytes);
        Faults::default().identify(Cns::NAMESPACE_DESCRIPTORS, 1, 0, page)
    };
    refused(descriptors(&[4, 1, 0, 0, 2]), "command set 2");
    for odd in [&[][..], &[1, 255], &[4, 0, 0, 0, 2], &[4, 2, 0, 0, 9, 9], &[99, 1, 0, 0, 1]] {
        works(descriptors(odd));
    }
    works(Faults::default().identify(Cns::NAMESPACE_DESCRIPTORS, 1, 0, [0xff; 4096]));
}

fn register(offset: u64, mask: u32, value: u32) -> Faults {
    Faults::default().register(Register::new(offset, mask, value))
}

fn message(settings: &str, faults: Faults) -> String {
    open(settings, faults).2.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn registers_that_cannot_be() {
    let error = message("", register(CAP, 0xffff, 0));
    assert!(error.contains("CAP.MQES is 0"), "{error}");
    let error = message("", register(VS, u32::MAX, 0));
    assert!(error.contains("version register is 0"), "{error}");
    // MPSMIN, with MPSMAX below it.
    let error = message("", register(CAP + 4, 0xff << 16, 0x01 << 20 | 0x0f << 16));
    assert!(error.contains("smallest memory page"), "{error}");
    let error = message("", register(CAP + 4, 0xff << 5, 0));
    assert!(error.contains("no NVM command set"), "{error}");
    // CAP.TO is 0, and CRTO is 0 or all ones.
    for crto in [0, u32::MAX] {
        let faults = register(CAP, 0xff << 24, 0).register(Register::new(CRTO, u32::MAX, crto));
        works(faults.clone());
        let error = message("never_ready=on", faults);
        let millis = if crto == 0 { "500 ms" } else { "600000 ms" };
        assert!(error.contains(millis), "{error}");
    }
    // A stride of doorbells that are not there, and a wrong one.
    let error = message("", register(CAP + 4, 0xf, 0xf));
    assert!(error.contains("doorbells") || error.contains("no completion"), "{error}");
    // The controller learns of no completion that was consumed: when its queue is full, it waits.
    let (emulator, space, controller) = open("", register(CAP + 4, 0xf, 0));
    let controller = controller.unwrap();
    let error = (0..100).find_map(|_| controller.active_namespaces().err()).unwrap();
    assert!(error.to_string().contains("no completion"), "{error}");
    drop((emulator, space));
    // An NSSRS, CMB and PMR that nobody asked about.
    works(register(CAP + 4, 0b111 << 24 | 0b10_0001 << 4, !(1 << 5 | 0xff << 16)));
}

#[test]
fn registers_that_change() {
    let changing = |offset, mask, value, after| {
        Faults::default().register(Register::new(offset, mask, value).after(after))
    };
    // CAP and CRTO are read once.
    for offset in [CAP, CAP + 4, CRTO] {
        works(changing(offset, u32::MAX, 0xdead_beef, 1));
        works(changing(offset, u32::MAX, 0, 1));
    }
    // All ones, fatal, not ready, never disabled: at any of the first times that it is read.
    for after in 0..8 {
        for (offset, mask, value) in [
            (CSTS, u32::MAX, u32::MAX),
            (CSTS, 0b10, 0b10),
            (CSTS, 1, 0),
            (CSTS, 1, 1),
            (CC, u32::MAX, u32::MAX),
            (CC, 1, 1),
            (CC, 1, 0),
            (VS, u32::MAX, 0),
            (VS, u32::MAX, u32::MAX),
        ] {
            let (emulator, space, controller) = open("", changing(offset, mask, value, after));
            if let Ok(controller) = controller {
                for outcome in use_all(&emulator, &space, &controller) {
                    assert!(outcome.is_ok_and(|outcome| outcome.failed + outcome.stuck == 0));
                }
            }
        }
    }
}

/// Bytes that differ from valid ones at some places, or everywhere.
fn overlays() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let byte = || prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    let some = proptest::collection::vec(
        (
            prop_oneof![0..132usize, 256..300usize, 512..540usize, 0..4096usize],
            proptest::collection::vec(byte(), 1..9),
        ),
        1..12,
    );
    let all = proptest::collection::vec(any::<u8>(), 4096).prop_map(|bytes| vec![(0, bytes)]);
    prop_oneof![4 => some, 1 => all]
}

fn page() -> impl Strategy<Value = (Cns, u32)> {
    prop_oneof![
        Just((Cns::CONTROLLER, 0)),
        Just((Cns::NAMESPACE, 1)),
        Just((Cns::NAMESPACE, 2)),
        Just((Cns::ACTIVE_NAMESPACES, 0)),
        Just((Cns::NAMESPACE_DESCRIPTORS, 1)),
        Just((Cns::COMMAND_SET_CONTROLLER, 0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever Identify says, everything ends, with results or errors.
    #[test]
    fn any_identify_data(pages in proptest::collection::vec((page(), overlays()), 1..4), grown in any::<bool>()) {
        let faults = pages.into_iter().fold(Faults::default(), |faults, ((cns, nsid), overlays)| {
            let add = |faults: Faults, (offset, bytes)| faults.identify(cns, nsid, offset, bytes);
            overlays.into_iter().fold(faults, add)
        });
        let (emulator, space, controller) = open("namespaces=2", if grown { Faults::default() } else { faults.clone() });
        if let Ok(controller) = controller {
            let handles: Vec<_> = [1, 2].iter().filter_map(|nsid| controller.namespace(*nsid).ok()).collect();
            // The same while namespaces are in use.
            emulator.set_faults(faults);
            emulator.namespace_changed(1);
            emulator.namespace_changed(2);
            for _ in 0..20 {
                emulator.step();
                let _ = controller.events().count();
            }
            for namespace in &handles {
                if let Ok(outcome) = exercise(&emulator, &space, &controller, namespace) {
                    prop_assert_eq!(outcome.stuck, 0);
                }
            }
            for outcome in use_all(&emulator, &space, &controller).into_iter().flatten() {
                prop_assert_eq!(outcome.stuck, 0);
            }
            let identity = controller.identity();
            let _ = (identity.serial(), identity.model(), identity.firmware(), identity.subnqn());
        }
    }

    /// The same of registers.
    #[test]
    fn any_registers(
        patches in proptest::collection::vec(
            (prop_oneof![Just(CAP), Just(CAP + 4), Just(VS), Just(CC), Just(CSTS), Just(CRTO)],
                prop_oneof![any::<u32>(), (0..32u32).prop_map(|bit| 1 << bit)], any::<u32>(), 0..40u64, 1..5u64),
            1..4,
        ),
    ) {
        let faults = patches.into_iter().fold(Faults::default(), |faults, (offset, mask, value, after, times)| {
            faults.register(Register::new(offset, mask, value).after(after).times(times))
        });
        let (emulator, space, controller) = open("", faults);
        if let Ok(controller) = controller {
            use_all(&emulator, &space, &controller);
        }
    }
}

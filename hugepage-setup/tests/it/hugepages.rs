//! Reserving hugepages and giving them back.

use hugepage_setup::{Error, Reservation, Reserved, Result, hugepage_pools};

use crate::fake::{Fake, machine};

const MIB: u64 = 1 << 20;
const SMALL: &str = "2048kB";

fn reserve(fake: &mut Fake, pages: u64, node: Option<u32>) -> Result<Reserved> {
    fake.run(|machine| machine.reserve(&Reservation { size: 2 * MIB, pages, node }))
}

fn restore(fake: &mut Fake) {
    fake.run(|machine| machine.restore_hugepages()).unwrap();
}

#[test]
fn reserve_on_all_nodes_and_restore() {
    let mut fake = machine();
    let before = fake.snapshot();
    let reserved = reserve(&mut fake, 40, None).unwrap();
    assert_eq!(reserved, Reserved { size: 2 * MIB, node: None, before: 0, pages: 40, free: 40 });
    assert_eq!((fake.count(SMALL, Some(0), "nr"), fake.count(SMALL, Some(1), "nr")), (20, 20));
    restore(&mut fake);
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
}

#[test]
fn reserve_on_one_node() {
    let mut fake = machine();
    reserve(&mut fake, 10, Some(1)).unwrap();
    assert_eq!((fake.count(SMALL, Some(0), "nr"), fake.count(SMALL, Some(1), "nr")), (0, 10));
    assert_eq!(
        fake.log.last().unwrap(),
        "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages <- 10"
    );
}

#[test]
fn the_count_is_written_down_before_it_is_changed() {
    let mut fake = machine();
    reserve(&mut fake, 10, None).unwrap();
    assert_eq!(
        fake.log,
        [
            "run/hugepage-setup/state.json.new created",
            "run/hugepage-setup/state.json replaced",
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages <- 10",
        ]
    );
}

#[test]
fn too_few_pages_is_an_error_and_the_pool_is_put_back() {
    let mut fake = machine();
    let before = fake.snapshot();
    let error = reserve(&mut fake, 100, None).unwrap_err();
    assert!(matches!(error, Error::TooFewPages { asked: 100, got: 96, back: 0, node: None, .. }), "{error}");
    assert!(
        error.to_string().starts_with("asked for 100 hugepages of 2 MiB, the kernel found memory for 96;")
    );
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
}

/// The failure puts back what was there before it, `restore` what was there before the first reservation.
#[test]
fn too_few_pages_after_a_reservation_keeps_that() {
    let mut fake = machine();
    let before = fake.snapshot();
    reserve(&mut fake, 10, Some(1)).unwrap();
    let reserved = fake.snapshot();
    let error = reserve(&mut fake, 33, Some(1)).unwrap_err();
    assert!(matches!(error, Error::TooFewPages { got: 32, back: 10, node: Some(1), .. }), "{error}");
    assert_eq!(fake.snapshot(), reserved);
    assert!(reserve(&mut fake, 1000, None).is_err());
    assert_eq!(fake.snapshot(), reserved);
    restore(&mut fake);
    assert_eq!(fake.snapshot(), before);
}

/// Node by node: taking pages away evenly would leave the wrong node with them.
#[test]
fn restore_gives_each_node_its_count() {
    let mut fake = machine();
    reserve(&mut fake, 12, Some(0)).unwrap();
    fake.file(
        "/run/hugepage-setup/state.json",
        "{\"version\":1,\"boot_id\":null,\"devices\":{},\"groups\":{},\"hugepages\":[]}",
    );
    let before = fake.snapshot();
    reserve(&mut fake, 60, None).unwrap();
    restore(&mut fake);
    assert_eq!(fake.snapshot(), before);
    assert_eq!((fake.count(SMALL, Some(0), "nr"), fake.count(SMALL, Some(1), "nr")), (12, 0));
}

#[test]
fn a_pool_is_never_made_smaller() {
    let mut fake = machine();
    reserve(&mut fake, 20, None).unwrap();
    fake.log.clear();
    let again = reserve(&mut fake, 8, None).unwrap();
    assert_eq!((again.before, again.pages), (20, 20));
    assert_eq!(fake.log, [""; 0]);
}

#[test]
fn pages_in_use_stay_until_they_are_freed() {
    let mut fake = machine();
    reserve(&mut fake, 20, Some(0)).unwrap();
    fake.use_pages(SMALL, 0, 5);
    let restored = fake.run(|machine| machine.restore_hugepages()).unwrap();
    assert_eq!((restored.len(), restored[0].pages, restored[0].surplus), (1, 0, 5));
    assert!(fake.remembers_nothing());
    // Surplus is not reserved: it will be gone.
    let reserved = reserve(&mut fake, 3, Some(0)).unwrap();
    assert_eq!((reserved.before, reserved.pages), (0, 3));
}

#[test]
fn a_smaller_pool_than_before_is_not_our_doing() {
    let mut fake = machine();
    reserve(&mut fake, 4, Some(0)).unwrap();
    fake.file(
        "/run/hugepage-setup/state.json",
        &fake.read("/run/hugepage-setup/state.json").replace("\"pages\": 0", "\"pages\": 9"),
    );
    fake.log.clear();
    restore(&mut fake);
    assert_eq!(fake.count(SMALL, Some(0), "nr"), 4);
    assert_eq!(fake.log, ["run/hugepage-setup/state.json removed"]);
}

#[test]
fn a_node_that_went_offline_does_not_stand_in_the_way() {
    let mut fake = machine();
    reserve(&mut fake, 20, None).unwrap();
    std::fs::remove_dir_all(fake.at("/sys/devices/system/node/node1")).unwrap();
    let restored = fake.run(|machine| machine.restore_hugepages()).unwrap();
    assert_eq!(restored.iter().map(|pool| (pool.node, pool.pages)).collect::<Vec<_>>(), [(Some(0), 0)]);
    assert!(fake.remembers_nothing());
}

#[test]
fn a_machine_without_nodes() {
    let mut fake = machine();
    std::fs::rename(fake.at("/sys/devices/system"), fake.at("/elsewhere")).unwrap();
    fake.file("/sys/devices/system/cpu/online", "0\n");
    fake.file("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "7\n");
    let reserved = reserve(&mut fake, 7, None).unwrap();
    assert_eq!(reserved.pages, 7);
    let error = reserve(&mut fake, 7, Some(0)).unwrap_err().to_string();
    assert_eq!(error, "there is no NUMA node 0; this machine has: none");
}

#[test]
fn sizes_and_nodes_that_are_not_there() {
    let mut fake = machine();
    let error = reserve(&mut fake, 1, Some(7)).unwrap_err().to_string();
    assert_eq!(error, "there is no NUMA node 7; this machine has: 0, 1");
    for size in [0, 1, 4096, 2 * MIB + 1, u64::MAX] {
        let wanted = Reservation { size, pages: 1, node: None };
        let error = fake.run(|machine| machine.reserve(&wanted)).unwrap_err().to_string();
        assert!(error.ends_with("it has: 2 MiB, 1 GiB"), "{error}");
    }
    assert_eq!(fake.log, [""; 0]);
}

#[test]
fn pools_with_nonsense_in_them_are_an_error_that_names_the_file() {
    let fake = machine();
    fake.file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "many\n");
    let error = hugepage_pools(&fake.sysfs()).unwrap_err().to_string();
    assert!(error.contains("free_hugepages holds \"many\", which is not a number"), "{error}");
}

#[test]
fn pools_are_listed_by_size_then_node() {
    let fake = machine();
    let pools = hugepage_pools(&fake.sysfs()).unwrap();
    let keys: Vec<_> = pools.iter().map(|pool| (pool.size / MIB, pool.node, pool.reserved)).collect();
    let of = |size| [(size, None, Some(0)), (size, Some(0), None), (size, Some(1), None)];
    assert_eq!(keys, [of(2), of(1024)].concat());
}

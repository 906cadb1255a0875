//! Runs that are killed at any step, and steps that fail.

use hugepage_setup::{BindOptions, Reservation, User};
use proptest::prelude::*;

use crate::fake::{FIRST, Fake, SECOND, bdf, machine_with, nvme};

/// What a user may ask for.
#[derive(Debug, Clone, Copy)]
enum Command {
    Bind { address: &'static str, joe: bool },
    Unbind(&'static str),
    Restore(&'static str),
    Reserve { pages: u64, node: Option<u32> },
    RestoreAll,
}

const BIND: Command = Command::Bind { address: FIRST, joe: true };

fn run(fake: &mut Fake, command: Command) -> Result<(), String> {
    let user = User { name: "joe".to_owned(), uid: 1000 };
    fake.run(|machine| match command {
        Command::Bind { address, joe } => {
            let options = BindOptions { user: joe.then_some(user), force: false };
            machine.bind(bdf(address), &options).map(|_| ())
        }
        Command::Unbind(address) => machine.unbind(bdf(address), false).map(|_| ()),
        Command::Restore(address) => machine.restore(bdf(address)).map(|_| ()),
        Command::Reserve { pages, node } => {
            machine.reserve(&Reservation { size: 2 << 20, pages, node }).map(|_| ())
        }
        Command::RestoreAll => {
            for function in machine.changed_functions() {
                machine.restore(function)?;
            }
            machine.restore_hugepages().map(|_| ())
        }
    })
    .map_err(|error| error.to_string())
}

/// Both functions in one group, so that they share its device file; vfio-pci had the second before us.
fn pair() -> Fake {
    let mut fake =
        machine_with(vec![nvme(FIRST, 12, "nvme0", "nvme0n1"), nvme(SECOND, 12, "nvme1", "nvme1n1")]);
    // Little memory: every page of it is a handful of files to write.
    fake.memory = [(0, 6), (1, 4)].into();
    fake.rebind(SECOND, "vfio-pci");
    fake.file("/sys/bus/pci/devices/0000:02:00.0/driver_override", "vfio-pci\n");
    fake
}

/// How many steps the command takes after the others.
fn steps(before: &[Command], command: Command) -> usize {
    let mut fake = pair();
    before.iter().for_each(|&command| run(&mut fake, command).unwrap());
    fake.revive();
    run(&mut fake, command).unwrap();
    fake.log.len()
}

/// Kills the last command at each of its steps; calls `then` with the machine and how it was at the start.
fn killed_at_each_step(before: &[Command], command: Command, then: impl Fn(&mut Fake, usize)) {
    let steps = steps(before, command);
    assert!(steps >= 2, "{command:?} does something");
    for step in 0..steps {
        let mut fake = pair();
        let original = fake.snapshot();
        before.iter().for_each(|&command| run(&mut fake, command).unwrap());
        fake.revive();
        fake.dies_after = Some(step);
        run(&mut fake, command).expect_err("killed");
        fake.revive();
        then(&mut fake, step);
        run(&mut fake, Command::RestoreAll).unwrap();
        assert_eq!(fake.snapshot(), original, "killed at step {step} of {command:?} after {before:?}");
        assert!(fake.remembers_nothing());
    }
}

#[test]
fn restore_repairs_a_killed_bind() {
    killed_at_each_step(&[], BIND, |_, _| ());
    killed_at_each_step(&[], Command::Bind { address: SECOND, joe: true }, |_, _| ());
}

#[test]
fn a_killed_bind_can_be_run_again() {
    killed_at_each_step(&[], BIND, |fake, step| {
        run(fake, BIND).unwrap();
        assert_eq!(fake.driver_of(FIRST).as_deref(), Some("vfio-pci"), "after step {step}");
        assert_eq!(fake.snapshot()["owner of dev/vfio/12"], "(1000, 0)");
    });
}

#[test]
fn a_killed_restore_can_be_run_again() {
    killed_at_each_step(&[BIND], Command::Restore(FIRST), |_, _| ());
    killed_at_each_step(&[BIND], Command::Restore(FIRST), |fake, _| run(fake, BIND).unwrap());
}

#[test]
fn a_killed_unbind_can_be_run_again_or_restored() {
    killed_at_each_step(&[BIND], Command::Unbind(FIRST), |_, _| ());
    killed_at_each_step(&[], Command::Unbind(FIRST), |_, _| ());
    killed_at_each_step(&[BIND], Command::Unbind(FIRST), |fake, step| {
        run(fake, Command::Unbind(FIRST)).unwrap();
        assert_eq!(fake.driver_of(FIRST), None);
        let only = fake.read("/sys/bus/pci/devices/0000:01:00.0/driver_override");
        assert_eq!(only, "(null)", "after step {step}");
    });
}

#[test]
fn a_killed_reserve_is_restored() {
    let reserve = |pages, node| Command::Reserve { pages, node };
    killed_at_each_step(&[], reserve(8, None), |_, _| ());
    killed_at_each_step(&[reserve(2, Some(1))], reserve(8, None), |_, _| ());
    killed_at_each_step(&[reserve(8, None)], Command::RestoreAll, |_, _| ());
}

#[test]
fn a_bind_with_one_failing_step_leaves_all_as_it_was() {
    for step in 1..=steps(&[], BIND) {
        let mut fake = pair();
        let original = fake.snapshot();
        fake.fails_at = Some(step);
        run(&mut fake, BIND).expect_err("a step failed");
        assert_eq!(fake.snapshot(), original, "step {step} failed");
        assert!(fake.remembers_nothing(), "step {step} failed");
    }
}

#[test]
fn a_restore_with_one_failing_step_can_be_run_again() {
    for step in 1..=steps(&[BIND], Command::RestoreAll) {
        let mut fake = pair();
        let original = fake.snapshot();
        run(&mut fake, BIND).unwrap();
        fake.revive();
        fake.fails_at = Some(step);
        run(&mut fake, Command::RestoreAll).expect_err("a step failed");
        run(&mut fake, Command::RestoreAll).unwrap();
        assert_eq!(fake.snapshot(), original, "step {step} failed");
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let address = || prop::sample::select(vec![FIRST, SECOND]);
    let node = prop::option::of(0..2u32);
    prop_oneof![
        4 => (address(), any::<bool>()).prop_map(|(address, joe)| Command::Bind { address, joe }),
        2 => address().prop_map(Command::Unbind),
        2 => address().prop_map(Command::Restore),
        2 => (1..14u64, node).prop_map(|(pages, node)| Command::Reserve { pages, node }),
        1 => Just(Command::RestoreAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is asked for, wherever it is killed or fails: in the end all is as it was.
    #[test]
    fn any_history_is_undone(
        history in prop::collection::vec((any_command(), prop::option::of(1..14usize), any::<bool>()), 1..8)
    ) {
        let mut fake = pair();
        let original = fake.snapshot();
        for (command, disturbed_at, killed) in history {
            fake.revive();
            let step = if killed { &mut fake.dies_after } else { &mut fake.fails_at };
            *step = disturbed_at;
            let _ = run(&mut fake, command);
        }
        fake.revive();
        run(&mut fake, Command::RestoreAll).unwrap();
        prop_assert_eq!(fake.snapshot(), original);
        prop_assert!(fake.remembers_nothing());
    }
}

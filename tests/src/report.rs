//! The lines in which a guest tells its results, and the exit codes that go with them.
//!
//! `CASE name ok 12 ms`, `CASE name FAILED 12 ms: why`, at the very end `END n passed, n failed`. In between, `ASK what`
//! is for the machine's operator, whose answer, `DONE` or `REFUSED why`, goes the other way. Everything else on the
//! line is talk. QEMU's exit code has to agree: a guest that dies, or that powers off, exits 0.

use std::fmt;
use std::time::Duration;

/// The I/O port of QEMU's isa-debug-exit device.
pub const EXIT_PORT: u16 = 0xf4;
/// What the guest writes there when every case passed.
pub const PASS: u8 = 0x10;
/// What the guest writes there otherwise.
pub const FAIL: u8 = 0x20;

/// The exit code of QEMU after a write of `value` to the port.
pub const fn exit_code(value: u8) -> i32 {
    value as i32 * 2 + 1
}

/// How one case went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The case's name.
    pub name: String,
    /// How long it took in the guest.
    pub took: Duration,
    /// Why it failed, in one line, if it did.
    pub failure: Option<String>,
}

/// A line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A case is over.
    Case(Outcome),
    /// All cases are over.
    End {
        /// How many passed.
        passed: usize,
        /// How many failed.
        failed: usize,
    },
    /// Something is to be done from outside.
    Ask(Ask),
}

/// What only somebody outside of a machine can do to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A namespace finishes no more I/O, until its controller was reset.
    Stall {
        /// The controller's serial number.
        serial: String,
        /// The namespace.
        nsid: u32,
    },
    /// Nothing, but the answer comes when no namespace is stalled any more.
    Recovered,
    /// The guest's kernel is asked to let go of a controller in a slot.
    Unplug {
        /// Its serial number.
        serial: String,
    },
}

/// The answer: nothing, or why it was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer(pub Option<String>);

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ask::Stall { serial, nsid } => write!(f, "ASK stall {serial} {nsid}"),
            Ask::Recovered => f.write_str("ASK recovered"),
            Ask::Unplug { serial } => write!(f, "ASK unplug {serial}"),
        }
    }
}

impl Ask {
    fn parse(line: &str) -> Option<Ask> {
        let words: Vec<&str> = line.strip_prefix("ASK ")?.split(' ').collect();
        match words[..] {
            ["stall", serial, nsid] => Some(Ask::Stall { serial: serial.into(), nsid: nsid.parse().ok()? }),
            ["recovered"] => Some(Ask::Recovered),
            ["unplug", serial] => Some(Ask::Unplug { serial: serial.into() }),
            _ => None,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("DONE"),
            Some(why) => write!(f, "REFUSED {}", why.replace(['\n', '\r'], " ")),
        }
    }
}

impl Answer {
    /// Reads a line; `None` if it is no answer.
    pub fn parse(line: &str) -> Option<Answer> {
        match line.trim_end() {
            "DONE" => Some(Answer(None)),
            line => line.strip_prefix("REFUSED ").map(|why| Answer(Some(why.to_owned()))),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.took.as_millis();
        match &self.failure {
            None => write!(f, "CASE {} ok {millis} ms", self.name),
            // One line per case: a message of several lines must not be able to look like another case.
            Some(why) => {
                write!(f, "CASE {} FAILED {millis} ms: {}", self.name, why.replace(['\n', '\r'], " | "))
            }
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Case(outcome) => outcome.fmt(f),
            Line::End { passed, failed } => write!(f, "END {passed} passed, {failed} failed"),
            Line::Ask(ask) => ask.fmt(f),
        }
    }
}

impl Line {
    /// Reads a line; `None` if it is none of the report's.
    pub fn parse(line: &str) -> Option<Line> {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("END ") {
            let (passed, failed) = rest.strip_suffix(" failed")?.split_once(" passed, ")?;
            return Some(Line::End { passed: passed.parse().ok()?, failed: failed.parse().ok()? });
        }
        if let Some(ask) = Ask::parse(line) {
            return Some(Line::Ask(ask));
        }
        let (name, rest) = line.strip_prefix("CASE ")?.split_once(' ')?;
        let (verdict, rest) = rest.split_once(' ')?;
        let (millis, failure) = match verdict {
            "ok" => (rest.strip_suffix(" ms")?, None),
            "FAILED" => rest.split_once(" ms: ").map(|(millis, why)| (millis, Some(why.to_owned())))?,
            _ => return None,
        };
        let took = Duration::from_millis(millis.parse().ok()?);
        Some(Line::Case(Outcome { name: name.to_owned(), took, failure }))
    }
}

fn cases(lines: &[Line]) -> impl Iterator<Item = &Outcome> {
    lines.iter().filter_map(|line| match line {
        Line::Case(outcome) => Some(outcome),
        Line::End { .. } | Line::Ask(_) => None,
    })
}

/// What the host makes of a guest's report: one outcome for each expected case, in order, and those that came
/// unasked. A case that was never reported failed.
pub fn settle(expected: &[&str], lines: &[Line], machine_fault: Option<&str>) -> Vec<Outcome> {
    let failed = |name: &str, why: &str| Outcome {
        name: name.into(),
        took: Duration::ZERO,
        failure: Some(why.into()),
    };
    let mut outcomes: Vec<Outcome> = expected
        .iter()
        .map(|name| match cases(lines).filter(|outcome| outcome.name == *name).collect::<Vec<_>>()[..] {
            [one] => one.clone(),
            [] => failed(name, "not reached"),
            _ => failed(name, "reported more than once"),
        })
        .collect();
    let unasked = cases(lines).filter(|outcome| !expected.contains(&outcome.name.as_str()));
    outcomes.extend(unasked.map(|outcome| failed(&outcome.name, "reported, but no case of this machine")));
    outcomes.extend(machine_fault.map(|why| failed("machine", why)));
    outcomes
}

/// How QEMU ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal: it crashed, or somebody killed it.
    Signal(i32),
    /// Not in the time that the machine has.
    TooLong,
}

/// What is wrong with the end of a run, if anything: the marker, its counts and the exit code must all agree.
pub fn fault(lines: &[Line], ending: Ending) -> Option<String> {
    let counted = |ok: bool| cases(lines).filter(|outcome| outcome.failure.is_none() == ok).count();
    let exit = match ending {
        Ending::Code(exit) => exit,
        Ending::Signal(signal) => return Some(format!("QEMU died by signal {signal}")),
        Ending::TooLong => return Some("the machine did not end in its time and was killed".into()),
    };
    let Some(Line::End { passed, failed }) = lines.last() else {
        return Some(format!("no END marker; QEMU's exit code is {exit}"));
    };
    let expected = exit_code(if *failed == 0 { PASS } else { FAIL });
    if (*passed, *failed) != (counted(true), counted(false)) {
        return Some(format!(
            "the guest counts {passed} passed and {failed} failed, its lines say otherwise"
        ));
    }
    (exit != expected)
        .then(|| format!("QEMU's exit code is {exit}, after this report it should be {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, failure: Option<&str>) -> Line {
        let took = Duration::from_millis(12);
        Line::Case(Outcome { name: name.into(), took, failure: failure.map(Into::into) })
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        let end = Line::End { passed: 3, failed: 1 };
        let serial = || "KIOVEC".to_owned();
        let asks =
            [Ask::Stall { serial: serial(), nsid: 2 }, Ask::Recovered, Ask::Unplug { serial: serial() }];
        let cases = [case("bind", None), case("perf-odd", Some("exit code 0: no error")), end];
        for line in cases.into_iter().chain(asks.map(Line::Ask)) {
            assert_eq!(Line::parse(&format!("{line}\r\n")), Some(line));
        }
        for answer in [Answer(None), Answer(Some("no such device".into()))] {
            assert_eq!(Answer::parse(&format!("{answer}\n")), Some(answer));
        }
    }

    #[test]
    fn a_failure_stays_on_its_line() {
        let text = case("a", Some("x\nCASE b ok 1 ms")).to_string();
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn talk_is_not_a_result() {
        for talk in [
            "",
            "CASE",
            "CASE x",
            "CASE x maybe 1 ms",
            "END",
            "END 1 passed",
            "[    0.1] CASE x ok 1 ms",
            "ASK x",
            "ASK stall y",
        ] {
            assert_eq!(Line::parse(talk), None, "{talk:?}");
        }
    }

    #[test]
    fn silence_is_failure() {
        let outcomes = settle(
            &["a", "b", "c"],
            &[case("a", None), case("c", None), case("c", None), case("d", None)],
            None,
        );
        let failures: Vec<_> = outcomes.iter().map(|o| (o.name.as_str(), o.failure.is_some())).collect();
        assert_eq!(failures, [("a", false), ("b", true), ("c", true), ("d", true)]);
    }

    #[test]
    fn marker_counts_and_exit_code_must_agree() {
        let good = [case("a", None), Line::End { passed: 1, failed: 0 }];
        let bad = [case("a", Some("x")), Line::End { passed: 0, failed: 1 }];
        assert_eq!(fault(&good, Ending::Code(exit_code(PASS))), None);
        assert_eq!(fault(&bad, Ending::Code(exit_code(FAIL))), None);
        assert!(fault(&good, Ending::Code(0)).is_some(), "a power-off exits 0");
        assert!(fault(&good, Ending::Code(exit_code(FAIL))).is_some());
        assert!(fault(&good, Ending::TooLong).is_some());
        assert!(fault(&good, Ending::Signal(6)).is_some());
        assert!(fault(&good[..1], Ending::Code(exit_code(PASS))).is_some(), "no marker");
        assert!(
            fault(&[case("a", None), Line::End { passed: 2, failed: 0 }], Ending::Code(exit_code(PASS)))
                .is_some()
        );
    }
}

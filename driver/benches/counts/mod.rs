//! A table of counts: what callgrind counts now, beside what it was last and what it may be at most.
//!
//! A file has the counts as they were last, a line each: the count, `over` if it was over its budget, and the
//! name. A table fails where a count has grown by more than 2 %, or is over its budget and was not before.
//! `KIOVEC_BENCH_UPDATE=1` writes the file anew.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

pub type Failure = Box<dyn std::error::Error>;

/// Writes the file anew.
const UPDATE: &str = "KIOVEC_BENCH_UPDATE";
/// What a count may grow by.
const GROWTH: f64 = 1.02;

/// A line of a table.
pub struct Row {
    pub name: &'static str,
    pub value: f64,
    /// Behind the point.
    pub digits: usize,
    /// The most that it may be; `None` where it is only there for others to refer to.
    pub budget: Option<f64>,
}

/// Prints the rows, and compares them with the file. Each is made when it is its turn, from the values of those
/// before it as they were shown.
pub fn table<L>(
    file: &Path,
    heading: &str,
    lines: &[L],
    mut row: impl FnMut(&L, &HashMap<&'static str, f64>) -> Result<Row, Failure>,
) -> Result<(), Failure> {
    let before = last(file)?;
    let mut values = HashMap::from([("", 0.0)]);
    let (mut text, mut wrong, mut over) = (String::new(), Vec::new(), 0);
    println!("{heading:<48} {:>10} {:>10} {:>10}", "counted", "last", "budget");
    for line in lines {
        let Row { name, value, digits, budget } = row(line, &values)?;
        // As it is shown and kept.
        let shown = format!("{value:.digits$}");
        let value = shown.parse()?;
        values.insert(name, value);
        let is_over = budget.is_some_and(|budget| value > budget);
        let (last, was_over) = before.get(name).copied().unzip();
        let mut notes = String::new();
        if is_over {
            notes += if was_over == Some(true) { "  not within its budget yet" } else { "  OVER ITS BUDGET" };
            over += 1;
        }
        if last.is_some_and(|last: f64| value > last * GROWTH + 0.05) {
            notes += "  HAS GROWN";
        }
        if last.is_none() {
            notes += "  NEW";
        }
        let column = |number: Option<f64>| number.map_or("-".into(), |number| format!("{number:.digits$}"));
        println!("{name:<48} {shown:>10} {:>10} {:>10}{notes}", column(last), column(budget));
        if notes.contains(char::is_uppercase) {
            wrong.push(format!("{name}:{notes}"));
        }
        text += &format!("{shown:>8} {:<5}{name}\n", if is_over { "over" } else { "" });
    }
    println!("{over} lines are not within their budgets");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(file, text)?;
        println!("written to {}", file.display());
        return Ok(());
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => {
            Err(format!("{}\nif that is meant to be so, run it with {UPDATE}=1", wrong.join("\n")).into())
        }
    }
}

fn last(file: &Path) -> Result<HashMap<String, (f64, bool)>, Failure> {
    let mut counts = HashMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        let (number, rest) = line
            .trim_start()
            .split_once(' ')
            .ok_or_else(|| format!("{}: a line without a name", file.display()))?;
        let rest = rest.trim_start();
        let (over, name) = rest.strip_prefix("over ").map_or((false, rest), |name| (true, name));
        counts.insert(name.to_string(), (number.parse()?, over));
    }
    Ok(counts)
}

/// Runs this program again under callgrind, with a variable that tells it what to do. Each of these functions
/// switches counting on, or off if it is on, with everything that it calls; they are named whole, since a
/// pattern would match their closures too.
pub fn collected(functions: &[&str], variable: &str, value: &str) -> Result<u64, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(functions.iter().map(|name| format!("--toggle-collect={name}")))
        .arg(std::env::current_exe()?)
        .env(variable, value)
        .output()
        .map_err(|e| format!("valgrind: {e}; install it with: apt-get install valgrind"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, number)) if output.status.success() => Ok(number.trim().parse()?),
        _ => Err(format!("{value}: no count:\n{text}").into()),
    }
}

//! The machine that a run was made on, as far as it says.

use std::fs;

use hugepage_setup::Bytes;

use crate::perf::cores;

/// Names and values.
pub fn facts() -> Vec<(String, String)> {
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        facts.extend(value.filter(|value| !value.is_empty()).map(|value| (name.to_owned(), value)));
    };
    add("Processor", after("/proc/cpuinfo", "model name").or_else(|| after("/proc/cpuinfo", "Processor")));
    let allowed = cores::allowed().unwrap_or_default();
    add("Cores allowed", Some(format!("{} ({})", allowed.len(), cores::ranges(&allowed))));
    add("Memory", kib("MemTotal"));
    add("2 MiB hugepages", after("/proc/meminfo", "HugePages_Total"));
    let kernel = rustix::system::uname();
    let kernel = [kernel.sysname(), kernel.release(), kernel.machine()]
        .map(|text| text.to_string_lossy().into_owned());
    add("Kernel", Some(kernel.join(" ")));
    add("Clock source", line("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
    add("Frequency governor", line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
    facts
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// What is behind a name and a colon.
fn after(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut values = text.lines().filter_map(|line| line.split_once(':'));
    values.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn kib(name: &str) -> Option<String> {
    let number: u64 = after("/proc/meminfo", name)?.split_whitespace().next()?.parse().ok()?;
    Some(Bytes(number.saturating_mul(1024)).to_string())
}

/// The command line, so that it can be typed again.
pub fn command_line(words: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quote = |word: String| match !word.is_empty() && word.chars().all(plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let words = ["kiovec", "perf", "mirror(a,b)", "it's", ""].map(str::to_owned);
        assert_eq!(command_line(words.into_iter()), r"kiovec perf 'mirror(a,b)' 'it'\''s' ''");
    }

    #[test]
    fn every_machine_has_a_kernel() {
        assert!(facts().iter().any(|(name, value)| name == "Kernel" && value.contains("Linux")));
    }
}

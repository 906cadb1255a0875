//! Pictures in a terminal: a histogram of bars and a line of blocks, or plain characters where nobody said
//! that more can be shown.

use std::io::IsTerminal;
use std::ops::RangeInclusive;

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Unicode,
    Plain,
}

/// Columns of the widest bar, and of the longest line.
const BAR: usize = 40;
const LINE: usize = 60;
/// Lines of a histogram.
const ROWS: usize = 12;

impl Style {
    /// What standard output can show.
    pub fn of_stdout() -> Style {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| std::env::var(name).ok());
        let locale = locale.filter(|value| !value.is_empty()).map(|value| value.to_lowercase());
        let wide = locale.take(1).any(|value| value.contains("utf-8") || value.contains("utf8"));
        if wide && std::io::stdout().is_terminal() { Style::Unicode } else { Style::Plain }
    }

    /// From nothing to everything.
    fn levels(self) -> &'static [char] {
        match self {
            Style::Unicode => &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Style::Plain => &['_', '.', ':', '-', '=', '+', '*', '#'],
        }
    }

    /// A bar for a share of the largest.
    fn bar(self, share: f64) -> String {
        let share = share.clamp(0.0, 1.0);
        match self {
            Style::Plain => "#".repeat((share * BAR as f64).round() as usize),
            Style::Unicode => {
                let eighths = (share * BAR as f64 * 8.0).round() as usize;
                let rest =
                    ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"].get(eighths % 8).copied().unwrap_or_default();
                "█".repeat(eighths / 8) + rest
            }
        }
    }
}

/// Values from the lowest to the highest, one column each, or fewer columns of their means.
pub fn sparkline(style: Style, values: &[f64]) -> String {
    let values = condense(values, LINE);
    let highest = values.iter().copied().fold(0.0, f64::max);
    let levels = style.levels();
    let level = |value: &f64| {
        // From zero on: what stays the same looks the same.
        let share = if highest > 0.0 { value / highest } else { 0.0 };
        let index = (share * levels.len() as f64).ceil() as usize;
        levels.get(index.saturating_sub(1).min(levels.len() - 1)).copied().unwrap_or(' ')
    };
    values.iter().map(level).collect()
}

/// At most so many values, each the mean of some.
fn condense(values: &[f64], most: usize) -> Vec<f64> {
    let n = values.len().min(most);
    let part = |index: usize| {
        let (from, to) = (index * values.len() / n, (index + 1) * values.len() / n);
        let part = values.get(from..to).unwrap_or_default();
        part.iter().sum::<f64>() / part.len().max(1) as f64
    };
    (0..n).map(part).collect()
}

/// A line of a histogram: from, to (not included), how many, and its bar.
pub type Row = (u64, u64, u64, String);

/// Cells that follow one another, joined to a few lines. What is below or above `body` is one line each.
pub fn histogram(style: Style, cells: &[(u64, u64, u64)], body: RangeInclusive<u64>) -> Vec<Row> {
    let inside: Vec<_> = cells.iter().copied().filter(|cell| body.contains(&cell.0)).collect();
    let (Some(low), Some(high)) = (inside.first().map(|cell| cell.0), inside.last().map(|cell| cell.1))
    else {
        return vec![];
    };
    let mut rows: Vec<(u64, u64, u64)> = bounds(low, high).windows(2).map(|b| (b[0], b[1], 0)).collect();
    // The first and the last bound are round; what is there is not.
    rows.first_mut().into_iter().for_each(|row| row.0 = low);
    rows.last_mut().into_iter().for_each(|row| row.1 = high);
    if let Some((first, ..)) = cells.first().filter(|cell| cell.0 < low) {
        rows.insert(0, (*first, low, 0));
    }
    if let Some((_, end, _)) = cells.last().filter(|cell| cell.1 > high) {
        rows.push((high, *end, 0));
    }
    for (from, _, count) in cells {
        if let Some(row) = rows.iter_mut().find(|row| *from < row.1) {
            row.2 += count;
        }
    }
    let most = rows.iter().map(|row| row.2).max().unwrap_or(0).max(1);
    rows.into_iter().map(|(from, to, n)| (from, to, n, style.bar(n as f64 / most as f64))).collect()
}

/// Round numbers from below `low` to above `high`, at most [`ROWS`] steps.
fn bounds(low: u64, high: u64) -> Vec<u64> {
    if high <= low + 1 {
        return vec![low, high];
    }
    let wanted = (high - low).div_ceil(ROWS as u64).max(1);
    let ratio = high as f64 / low.max(1) as f64;
    // Over a wide range, each line is as much wider as it is slower.
    if ratio > 8.0 {
        let step = ratio.powf(1.0 / ROWS as f64);
        let mut bounds: Vec<u64> =
            (0..ROWS as i32).map(|row| round(low.max(1) as f64 * step.powi(row))).collect();
        bounds.push(high);
        bounds.dedup();
        bounds.retain(|bound| *bound <= high);
        return bounds;
    }
    let power = 10u64.pow(wanted.ilog10());
    let step = [1, 2, 5, 10].map(|n| n * power).into_iter().find(|step| *step >= wanted).unwrap_or(wanted);
    let first = low / step * step;
    (0..).map(|n| first + n * step).take_while(|bound| *bound < high + step).collect()
}

/// Two digits are enough for a bound.
fn round(value: f64) -> u64 {
    let unit = 10f64.powi((value.max(1.0).log10().floor() as i32 - 1).max(0));
    (value / unit).floor() as u64 * unit as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_stays_the_same_looks_the_same() {
        assert_eq!(sparkline(Style::Plain, &[5.0; 4]), "####");
        assert_eq!(sparkline(Style::Unicode, &[0.0, 1.0, 4.0, 8.0]), "▁▁▄█");
        assert_eq!(sparkline(Style::Unicode, &[1.0; 1000]).chars().count(), LINE);
        assert_eq!(sparkline(Style::Plain, &[]), "");
        assert_eq!(sparkline(Style::Plain, &[0.0]), "_");
    }

    #[test]
    fn bars_are_as_long_as_their_share() {
        let cells = [(10, 11, 2), (100, 110, 10), (110, 120, 20), (500, 510, 1)];
        let rows = histogram(Style::Plain, &cells, 100..=200);
        assert_eq!(rows.iter().map(|row| row.2).sum::<u64>(), 33);
        let longest = rows.iter().find(|row| row.2 == 20).map(|row| row.3.len());
        assert_eq!(longest, Some(BAR));
        assert_eq!(rows.first().map(|row| (row.0, row.1, row.2)), Some((10, 100, 2)));
        assert_eq!(rows.last().map(|row| (row.0, row.1, row.2)), Some((120, 510, 1)));
        assert!(histogram(Style::Unicode, &[], 0..=0).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost(mut from in prop::collection::vec(0u64..1 << 50, 1..60), a: usize, b: usize) {
            from.sort_unstable();
            from.dedup();
            let cells: Vec<_> = from.iter().map(|from| (*from, from + 1, 3)).collect();
            let (a, b) = (from[a % from.len()], from[b % from.len()]);
            let rows = histogram(Style::Unicode, &cells, a.min(b)..=a.max(b));
            prop_assert_eq!(rows.iter().map(|row| row.2).sum::<u64>(), 3 * cells.len() as u64);
            prop_assert!(rows.len() <= ROWS + 4, "{:?}", rows);
            prop_assert!(rows.windows(2).all(|pair| pair[0].1 == pair[1].0), "{:?}", rows);
        }
    }
}

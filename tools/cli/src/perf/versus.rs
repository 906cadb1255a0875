//! `--versus`: two devices in turns, round by round, and the ratio of each round.
//!
//! What disturbs one round disturbs both devices in it, so ratios say more than figures; and their spread
//! says how much they say.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::options::Options;
use super::random;
use super::report::{TOOL, latencies, micros};
use super::run::Run;
use super::subject::Subject;
use crate::output::{self, Format};
use crate::{Error, Result};

const ROUNDS: u32 = 9;

/// What a device did in one round.
type Figures = Vec<f64>;

/// What is compared: name in JSON, name for people. The first is the rate, the others are latencies.
const FIGURES: [(&str, &str); 6] = [
    ("iops", "IOPS"),
    ("mean", "average us"),
    ("p50", "50% us"),
    ("p99", "99% us"),
    ("p99_9", "99.9% us"),
    ("max", "max us"),
];

/// The rounds that were completed.
struct Duel {
    names: [String; 2],
    rounds: Vec<[Figures; 2]>,
    interrupted: bool,
}

pub fn run(options: &Options, other: &Subject, interrupted: &AtomicBool) -> Result<()> {
    // The same places for both.
    let mut options = options.clone();
    options.seed.get_or_insert_with(random::seed);
    let jobs = match &options.devices[..] {
        [] => options.on(&Subject::default()),
        [device] => options.on(device),
        _ => {
            let what = "--versus compares one device with another, and more are named";
            return Err(Error::Usage(format!("{what}; name one before it")));
        }
    };
    let sides = [jobs.clone(), jobs.on(other)];
    sides.iter().try_for_each(Options::check)?;
    let duel = fight(&sides, interrupted)?;
    match options.format() {
        Format::Text => output::print(&duel.text(&options)),
        Format::Json => output::print_json(&duel.json(&options)),
    }
}

/// All rounds, or those until the user has had enough. Who is first takes turns as well.
fn fight(sides: &[Options; 2], interrupted: &AtomicBool) -> Result<Duel> {
    let rounds = sides[0].rounds.unwrap_or(ROUNDS);
    let names = [sides[0].device.to_string(), sides[1].device.to_string()];
    let mut duel = Duel { names, rounds: vec![], interrupted: false };
    let mut said = Vec::new();
    for round in 0..rounds {
        let mut figures = [vec![], vec![]];
        for turn in 0..2 {
            let side = (round as usize + turn) % 2;
            let label = format!("round {} of {rounds}, {}", round + 1, duel.names[side]);
            figures[side] = turn_of(&sides[side], &label, &mut said, interrupted)?;
            if interrupted.load(Ordering::Relaxed) {
                duel.interrupted = true;
                return duel.or_nothing();
            }
        }
        duel.rounds.push(figures);
    }
    Ok(duel)
}

/// One device, alone on the machine. What was `said` is not said again.
fn turn_of(side: &Options, label: &str, said: &mut Vec<String>, interrupted: &AtomicBool) -> Result<Figures> {
    let (sides, outcome) = super::measure(side.jobs()?, label, interrupted)?;
    for advice in super::advice(&sides) {
        if !said.contains(&advice) {
            output::note(format_args!("note: {advice}"));
            said.push(advice);
        }
    }
    let run = Run::new(&sides, outcome);
    if let Some(what) = run.failure() {
        return Err(Error::Failed(what));
    }
    let times = latencies(&run.latency());
    let figure = |(name, _): (&str, &str)| match name {
        "iops" => run.iops(),
        name => times.get(name).and_then(Value::as_f64).unwrap_or(0.0),
    };
    Ok(FIGURES.into_iter().map(figure).collect())
}

impl Duel {
    /// Rounds that were completed are worth something.
    fn or_nothing(self) -> Result<Duel> {
        match self.rounds.is_empty() {
            true => Err(Error::Failed("--versus: interrupted before the first round was over".into())),
            false => Ok(self),
        }
    }

    fn of(&self, side: usize, figure: usize) -> Spread {
        Spread::of(self.rounds.iter().map(|round| round[side][figure]).collect())
    }

    /// The first device's figure over the second one's.
    fn ratio(&self, figure: usize) -> Spread {
        let ratio = |round: &[Figures; 2]| round[0][figure] / round[1][figure];
        Spread::of(self.rounds.iter().map(ratio).collect())
    }

    fn text(&self, options: &Options) -> String {
        let [a, b] = &self.names;
        let (n, cut) = (self.rounds.len(), if self.interrupted { ", interrupted" } else { "" });
        let each = match options.number_ios {
            Some(ios) => format!("{ios} I/Os"),
            None => format!("{:.2} s", options.time.as_secs_f64()),
        };
        let mut text = format!(
            "A: {a}\nB: {b}\n{}, {} bytes, depth {}, {n} rounds of {each} each, in turns{cut}, seed {}\n\n",
            options.io_pattern.name(),
            options.io_size,
            options.io_depth,
            options.seed.unwrap_or_default(),
        );
        let head = ["", "A", "B", "A/B", "quartiles", "min", "max"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (figure, (name, title)) in FIGURES.into_iter().enumerate() {
            let value = |side| {
                let median = self.of(side, figure).median;
                if name == "iops" { format!("{median:.1}") } else { micros(median) }
            };
            let ratio = self.ratio(figure);
            let [median, q1, q3, min, max] =
                [ratio.median, ratio.q1, ratio.q3, ratio.min, ratio.max].map(|ratio| format!("{ratio:.3}"));
            rows.push(vec![title.into(), value(0), value(1), median, format!("{q1} to {q3}"), min, max]);
        }
        text += &output::table(&rows, &[1, 2, 3, 4, 5, 6]);
        let more = self.rounds.iter().filter(|round| round[0][0] > round[1][0]).count();
        text += "\nmedians of the rounds; A/B is the median of each round's ratio\n";
        text += &format!("A had more IOPS than B in {more} of {n} rounds\n");
        text
    }

    fn json(&self, options: &Options) -> Value {
        let side = |side: usize| {
            let mut document = json!({ "device": self.names[side] });
            for (figure, (name, _)) in FIGURES.into_iter().enumerate() {
                document[key(name)] = json!(self.of(side, figure).median);
            }
            document
        };
        let round = |round: &[Figures; 2]| {
            let side = |side: usize| {
                let figures = FIGURES.into_iter().zip(&round[side]);
                figures.map(|((name, _), figure)| (key(name), json!(figure))).collect::<Value>()
            };
            json!({ "a": side(0), "b": side(1) })
        };
        let ratios = FIGURES.into_iter().enumerate();
        let ratios = ratios.map(|(figure, (name, _))| {
            let name = if name == "iops" { name.to_owned() } else { format!("latency_{name}") };
            (name, self.ratio(figure).json())
        });
        json!({
            "tool": TOOL,
            "version": env!("CARGO_PKG_VERSION"),
            "workload": options.io_pattern.name(),
            "io_size": options.io_size,
            "queue_depth": options.io_depth,
            "seconds": options.time.as_secs_f64(),
            "seed": options.seed,
            "interrupted": self.interrupted,
            "versus": {
                "a": side(0),
                "b": side(1),
                "ratios": ratios.collect::<Value>(),
                "rounds": self.rounds.iter().map(round).collect::<Vec<_>>(),
            },
        })
    }
}

fn key(name: &str) -> String {
    if name == "iops" { name.to_owned() } else { format!("latency_{name}_ns") }
}

/// Where values lie.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    q1: f64,
    q3: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Ratios of nothing to nothing are left out.
    fn of(mut values: Vec<f64>) -> Spread {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let place = quantile * values.len().saturating_sub(1) as f64;
            let value = |place: f64| values.get(place as usize).copied().unwrap_or(0.0);
            let (below, above) = (value(place.floor()), value(place.ceil()));
            below + (above - below) * place.fract()
        };
        Spread { median: at(0.5), q1: at(0.25), q3: at(0.75), min: at(0.0), max: at(1.0) }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "q1": self.q1, "q3": self.q3, "iqr": self.q3 - self.q1,
                "min": self.min, "max": self.max })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_spread_of_few() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0, f64::NAN, f64::INFINITY]);
        assert_eq!(spread, Spread { median: 2.5, q1: 1.75, q3: 3.25, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of(vec![7.0]).q1, 7.0);
        assert_eq!(Spread::of(vec![]).median, 0.0);
    }

    #[test]
    fn ratios_are_of_rounds_not_of_medians() {
        let round = |a: f64, b: f64| [vec![a; 6], vec![b; 6]];
        let rounds = vec![round(10.0, 5.0), round(100.0, 200.0), round(9.0, 3.0)];
        let duel = Duel { names: ["x".into(), "y".into()], rounds, interrupted: false };
        assert_eq!((duel.of(0, 0).median, duel.of(1, 0).median), (10.0, 5.0));
        assert_eq!((duel.ratio(0).median, duel.ratio(0).min, duel.ratio(0).max), (2.0, 0.5, 3.0));
        let options = Options::from_line("");
        assert!(duel.text(&options).contains("in 2 of 3 rounds"), "{}", duel.text(&options));
        assert_eq!(duel.json(&options)["versus"]["rounds"][1]["b"]["latency_p99_ns"], 200.0);
    }

    proptest! {
        #[test]
        fn spreads_are_ordered(values in prop::collection::vec(-1e9f64..1e9, 1..40)) {
            let Spread { median, q1, q3, min, max } = Spread::of(values.clone());
            prop_assert!(min <= q1 && q1 <= median && median <= q3 && q3 <= max);
            let below = values.iter().filter(|value| **value <= median).count();
            prop_assert!(2 * below >= values.len());
        }
    }
}

//! What the layers of a stack have counted, from the first request of a run to the last.
//!
//! Knows which layers count what; must not know how they do.

use std::time::Duration;

use kiovec::layer::{Plan, Stack};
use serde_json::{Value, json};

/// What one layer has counted, in one worker or in all.
#[derive(Debug, Clone)]
pub struct Counted {
    /// The layer as it is written, with what is below it.
    layer: String,
    /// What was counted, by the names that the layer has for it.
    counts: Vec<(String, u64)>,
    /// For a layer that takes times: their sum, and the longest.
    times: Option<(Duration, Duration)>,
}

impl Counted {
    /// What a layer has counted; `None` for one that does not count.
    pub fn by(plan: &Plan, layer: &Stack) -> Option<Counted> {
        let mut times = None;
        let named = |counts: &[(&str, u64)]| counts.iter().map(|(name, n)| ((*name).into(), *n)).collect();
        let counts: Vec<(String, u64)> = match layer {
            Stack::Trace(trace) => {
                let counts = trace.filter().counts();
                times = Some((counts.total, counts.longest));
                named(&[
                    ("reads", counts.reads),
                    ("writes", counts.writes),
                    ("others", counts.others),
                    ("failed", counts.failed),
                ])
            }
            Stack::Retry(retry) => {
                let retries = retry.retries();
                named(&[
                    ("retried", retries.retried),
                    ("cured", retries.cured),
                    ("given_up", retries.given_up),
                ])
            }
            Stack::Verify(verify) => {
                let checks = verify.filter().checks();
                named(&[
                    ("stamped", checks.stamped),
                    ("checked", checks.checked),
                    ("unchecked", checks.unchecked),
                    ("mismatches", checks.mismatches),
                ])
            }
            Stack::Cache(cache) => {
                let counts = cache.counts();
                named(&[
                    ("hits", counts.hits),
                    ("hit_bytes", counts.hit_bytes),
                    ("misses", counts.misses),
                    ("shared", counts.shared),
                    ("bypassed", counts.bypassed),
                    ("retried", counts.retried),
                    ("invalidated", counts.invalidated),
                ])
            }
            Stack::Mirror(mirror) => {
                let counts = mirror.counts();
                let mut all: Vec<(String, u64)> = named(&[
                    ("failovers", counts.failovers),
                    ("hedges", counts.hedges),
                    ("hedge_wins", counts.hedge_wins),
                ]);
                let legs = (0..mirror.legs().len()).map_while(|leg| mirror.leg_counts(leg));
                for (leg, counts) in legs.enumerate() {
                    all.push((format!("leg{leg}_reads"), counts.reads));
                    all.push((format!("leg{leg}_failed_reads"), counts.failed_reads));
                    // Of so many workers.
                    all.push((format!("leg{leg}_ejected"), u64::from(counts.ejected.is_some())));
                }
                all
            }
            Stack::Disk(_) | Stack::Partition(_) | Stack::Stripe(_) => return None,
        };
        Some(Counted { layer: plan.to_string(), counts, times })
    }

    /// The same layers in all workers, each summed up.
    pub fn sum<'a>(workers: impl Iterator<Item = &'a [Counted]>) -> Vec<Counted> {
        let mut workers = workers.filter(|layers| !layers.is_empty());
        let mut sum = workers.next().map(<[Counted]>::to_vec).unwrap_or_default();
        for more in workers {
            sum.iter_mut().zip(more).for_each(|(sum, more)| sum.add(more));
        }
        sum
    }

    fn add(&mut self, more: &Counted) {
        self.counts.iter_mut().zip(&more.counts).for_each(|((_, sum), (_, more))| *sum += more);
        if let (Some((total, longest)), Some((more, other))) = (&mut self.times, more.times) {
            (*total, *longest) = (*total + more, other.max(*longest));
        }
    }

    /// The average time, and the longest.
    fn latency(&self) -> Option<(Duration, Duration)> {
        let (total, longest) = self.times?;
        // Those that failed are among the others.
        let all = self.counts.iter().filter(|(name, _)| *name != "failed").map(|(_, count)| count).sum();
        Some((Duration::from_nanos(nanos(total) / u64::max(all, 1)), longest))
    }

    pub fn text(&self) -> String {
        let counts = self.counts.iter().map(|(name, count)| format!("{count} {}", name.replace('_', " ")));
        let counts = counts.collect::<Vec<_>>().join(", ");
        let latency = self.latency().map_or_else(String::new, |(mean, longest)| {
            format!("; {} us on average, {} us at most", micros(mean), micros(longest))
        });
        format!("{}: {counts}{latency}", self.layer)
    }

    pub fn json(&self) -> Value {
        let mut document = json!({ "layer": self.layer });
        for (name, count) in &self.counts {
            document[name.as_str()] = json!(count);
        }
        if let Some((mean, longest)) = self.latency() {
            document["latency_ns"] = json!({ "mean": nanos(mean), "max": nanos(longest) });
        }
        document
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(layer: &str, reads: u64, total: u64, longest: u64) -> Counted {
        let times = Some((Duration::from_nanos(total), Duration::from_nanos(longest)));
        Counted { layer: layer.into(), counts: vec![("reads".into(), reads), ("failed".into(), 1)], times }
    }

    #[test]
    fn the_same_layers_of_all_workers_are_one() {
        let retried = Counted { layer: "retry(B)".into(), counts: vec![("given_up".into(), 7)], times: None };
        let workers = [
            vec![traced("trace(A)", 1, 1000, 1000), retried.clone()],
            vec![traced("trace(A)", 3, 7000, 4000), retried],
        ];
        let sum = Counted::sum(workers.iter().map(Vec::as_slice));
        let text: Vec<String> = sum.iter().map(Counted::text).collect();
        let first = "trace(A): 4 reads, 2 failed; 2.00 us on average, 4.00 us at most";
        assert_eq!(text, [first, "retry(B): 14 given up"]);
        assert_eq!(sum[0].json()["latency_ns"], json!({ "mean": 2000, "max": 4000 }));
        assert_eq!(sum[1].json(), json!({ "layer": "retry(B)", "given_up": 14 }));
        assert!(Counted::sum(std::iter::empty()).is_empty());
    }
}

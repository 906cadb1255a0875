//! What the layers of a stack have counted, from the first request of a run to the last.
//!
//! Knows which layers count what; must not know how they do.

use std::time::Duration;

use kiovec::layer::{Counts, Plan, Stack};
use serde_json::{Value, json};

/// What one layer has counted, in one worker or in all.
#[derive(Debug, Clone)]
pub struct Counted {
    /// The layer as it is written, with what is below it.
    layer: String,
    by: By,
}

#[derive(Debug, Clone)]
enum By {
    Trace(Box<Counts>),
}

impl Counted {
    /// What a layer has counted; `None` for one that does not count.
    pub fn by(plan: &Plan, layer: &Stack) -> Option<Counted> {
        let by = match layer {
            Stack::Trace(trace) => By::Trace(Box::new(*trace.filter().counts())),
            _ => return None,
        };
        Some(Counted { layer: plan.to_string(), by })
    }

    /// The same layers in all workers, each summed up.
    pub fn sum<'a>(workers: impl Iterator<Item = &'a [Counted]>) -> Vec<Counted> {
        let add = |mut sum: Vec<Counted>, more: &[Counted]| {
            sum.iter_mut().zip(more).for_each(|(sum, more)| sum.by.add(&more.by));
            sum
        };
        let mut workers = workers.filter(|layers| !layers.is_empty());
        let first = workers.next().map(<[Counted]>::to_vec).unwrap_or_default();
        workers.fold(first, add)
    }

    pub fn text(&self) -> String {
        let By::Trace(counts) = &self.by;
        let Counts { reads, writes, others, failed, .. } = **counts;
        let others = if others > 0 { format!(", {others} others") } else { String::new() };
        let (mean, most) = (micros(mean(counts)), micros(counts.longest));
        format!(
            "{}: {reads} reads, {writes} writes{others}, {failed} failed; {mean} us on average, {most} us at most",
            self.layer
        )
    }

    pub fn json(&self) -> Value {
        let By::Trace(counts) = &self.by;
        json!({
            "layer": self.layer,
            "reads": counts.reads,
            "writes": counts.writes,
            "others": counts.others,
            "failed": counts.failed,
            "blocks": counts.blocks,
            "mean_latency_ns": nanos(mean(counts)),
            "max_latency_ns": nanos(counts.longest),
        })
    }
}

impl By {
    fn add(&mut self, more: &By) {
        let (By::Trace(sum), By::Trace(more)) = (self, more);
        sum.reads += more.reads;
        sum.writes += more.writes;
        sum.others += more.others;
        sum.failed += more.failed;
        sum.blocks += more.blocks;
        sum.total += more.total;
        sum.longest = sum.longest.max(more.longest);
        sum.by_log2.iter_mut().zip(more.by_log2).for_each(|(sum, more)| *sum += more);
    }
}

fn mean(counts: &Counts) -> Duration {
    let all = counts.reads + counts.writes + counts.others;
    Duration::from_nanos(nanos(counts.total) / all.max(1))
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
        let (total, longest) = (Duration::from_nanos(total), Duration::from_nanos(longest));
        let counts = Counts { reads, total, longest, ..Counts::default() };
        Counted { layer: layer.into(), by: By::Trace(Box::new(counts)) }
    }

    #[test]
    fn the_same_layers_of_all_workers_are_one() {
        let workers = [
            vec![traced("trace(A)", 1, 1000, 1000), traced("trace(B)", 7, 0, 0)],
            vec![traced("trace(A)", 3, 7000, 4000), traced("trace(B)", 0, 0, 0)],
        ];
        let sum = Counted::sum(workers.iter().map(Vec::as_slice));
        let text: Vec<String> = sum.iter().map(Counted::text).collect();
        assert_eq!(
            text,
            [
                "trace(A): 4 reads, 0 writes, 0 failed; 2.00 us on average, 4.00 us at most",
                "trace(B): 7 reads, 0 writes, 0 failed; 0.00 us on average, 0.00 us at most",
            ]
        );
        assert_eq!(sum[0].json()["mean_latency_ns"], 2000);
        assert!(Counted::sum(std::iter::empty()).is_empty());
    }
}

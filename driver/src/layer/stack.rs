//! Any stack of the built-in layers, made at run time from text, at no cost of virtual calls.
//!
//! Knows the layers by name and what their options are; must not know how a device's name becomes a
//! device.

use std::time::Duration;

use super::{
    Cache, CacheOptions, Cx, Disk, Geometry, Handle, Layer, Mirror, Partition, Plan, Retry, RetryOptions,
    Stripe, Trace, Verify,
};
use crate::memory::DmaSpace;
use crate::poller::Plain;
use crate::{Error, Result};

/// A stack of built-in layers.
#[derive(Debug)]
pub enum Stack {
    /// A namespace.
    Disk(Disk),
    /// `cache(bytes=16M,line=64K,A)`
    Cache(Box<Cache<Stack>>),
    /// `mirror(hedge=MICROSECONDS,buffers=N,buffer=BYTES,A,B)`
    Mirror(Box<Mirror<Stack>>),
    /// `partition(start=BLOCK,blocks=N,A)`
    Partition(Box<Partition<Stack>>),
    /// `retry(times=N,delay=MILLISECONDS,A)`
    Retry(Box<Retry<Stack>>),
    /// `stripe(chunk=BYTES,A,B)`
    Stripe(Box<Stripe<Stack>>),
    /// `trace(A)`
    Trace(Box<Trace<Stack>>),
    /// `verify(A)`
    Verify(Box<Verify<Stack>>),
}

/// Calls a method of whichever layer it is.
macro_rules! each {
    ($stack:expr, $layer:ident => $call:expr) => {
        match $stack {
            Stack::Disk($layer) => $call,
            Stack::Cache($layer) => $call,
            Stack::Mirror($layer) => $call,
            Stack::Partition($layer) => $call,
            Stack::Retry($layer) => $call,
            Stack::Stripe($layer) => $call,
            Stack::Trace($layer) => $call,
            Stack::Verify($layer) => $call,
        }
    };
}

/// The layers and their options, for messages.
const LAYERS: &str = "cache(bytes=16M,line=64K,A), mirror(hedge=MICROSECONDS,buffers=N,buffer=BYTES,A,B), \
    partition(start=BLOCK,blocks=N,A), retry(times=N,delay=MILLISECONDS,A), stripe(chunk=BYTES,A,B), \
    trace(A), verify(A)";

/// Bytes of a chunk of a stripe, unless the text says otherwise.
const CHUNK: u64 = 128 << 10;
/// Buffers of a mirror that hedges, and bytes of each, unless the text says otherwise.
const BUFFERS: u64 = 32;
const BUFFER: u64 = 64 << 10;

impl Stack {
    /// Makes the layers of a plan. `disk` opens a device by its name; `space` is where the layers get
    /// memory of their own.
    pub fn new(plan: &Plan, space: &DmaSpace, disk: &mut impl FnMut(&str) -> Result<Disk>) -> Result<Stack> {
        let (name, options, below) = match plan {
            Plan::Device(name) => return disk(name).map(Stack::Disk),
            Plan::Layer { name, options, below } => (name, options, below),
        };
        let mut legs = Vec::new();
        for below in below {
            legs.push(Stack::new(below, space, disk)?);
        }
        let mut options = Options { plan, options: options.clone() };
        let stack = match name.as_str() {
            "cache" => {
                let CacheOptions { bytes, line } = CacheOptions::default();
                let bytes = options.number("bytes")?.map_or(bytes, |bytes| bytes as usize);
                let line = options.number("line")?.map_or(line, |line| line as usize);
                Stack::Cache(Box::new(options.of(Cache::new(
                    options.only(legs)?,
                    space,
                    CacheOptions { bytes, line },
                ))?))
            }
            "mirror" => Stack::Mirror(Box::new(options.mirror(legs, space)?)),
            "stripe" => {
                let chunk = options.number("chunk")?.unwrap_or(CHUNK);
                Stack::Stripe(Box::new(options.of(Stripe::new(legs, chunk))?))
            }
            "partition" => {
                let below = options.only(legs)?;
                let start = options.number("start")?.unwrap_or(0);
                let rest = below.geometry().blocks.saturating_sub(start);
                let blocks = options.number("blocks")?.unwrap_or(rest);
                Stack::Partition(Box::new(
                    options.of(Partition::new(below, start..start.saturating_add(blocks)))?,
                ))
            }
            "retry" => {
                let (below, mut retry) = (options.only(legs)?, RetryOptions::default());
                if let Some(times) = options.number("times")? {
                    retry.times = u32::try_from(times).unwrap_or(u32::MAX);
                }
                if let Some(delay) = options.number("delay")? {
                    retry.delay = Duration::from_millis(delay);
                }
                Stack::Retry(Box::new(options.of(Retry::new(below, retry))?))
            }
            "verify" => Stack::Verify(Box::new(options.of(Verify::new(options.only(legs)?))?)),
            "trace" => Stack::Trace(Box::new(Trace::new(options.only(legs)?))),
            _ => return Err(options.refuse(format!("there is no layer {name}; there are: {LAYERS}"))),
        };
        options.finish()?;
        Ok(stack)
    }

    /// Itself and all layers below, from top to bottom and from left to right.
    pub fn layers(&self) -> Vec<&Stack> {
        let below = match self {
            Stack::Disk(_) => vec![],
            Stack::Cache(layer) => vec![layer.below()],
            Stack::Mirror(layer) => layer.legs().iter().collect(),
            Stack::Partition(layer) => vec![layer.below()],
            Stack::Retry(layer) => vec![layer.below()],
            Stack::Stripe(layer) => layer.legs().iter().collect(),
            Stack::Trace(layer) => vec![layer.below()],
            Stack::Verify(layer) => vec![layer.below()],
        };
        std::iter::once(self).chain(below.into_iter().flat_map(Stack::layers)).collect()
    }
}

/// The options of a layer that nobody asked for yet.
struct Options<'a> {
    plan: &'a Plan,
    options: Vec<(String, String)>,
}

impl Options<'_> {
    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.options.iter().position(|(name, _)| name == key)?;
        Some(self.options.remove(at).1)
    }

    /// A number, with K, M, G or T for binary multiples.
    fn number(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let digits = text.trim_end_matches(['K', 'M', 'G', 'T', 'k']);
        let shift = match &text[digits.len()..] {
            "" => 0,
            "K" | "k" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => 64,
        };
        let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1u64.checked_shl(shift)?));
        number.map(Some).ok_or_else(|| self.refuse(format!("{key}={text} is no number such as 8 or 64K")))
    }

    /// A mirror; its buffers come from a space.
    fn mirror(&mut self, legs: Vec<Stack>, space: &DmaSpace) -> Result<Mirror<Stack>> {
        let mirror = self.of(Mirror::new(legs))?;
        let Some(after) = self.number("hedge")? else { return Ok(mirror) };
        let buffers = self.number("buffers")?.unwrap_or(BUFFERS);
        let bytes = usize::try_from(self.number("buffer")?.unwrap_or(BUFFER)).unwrap_or(usize::MAX);
        // One more than there may be is refused as well, and costs less.
        let buffers =
            (0..buffers.min(Mirror::<Stack>::MAX_BUFFERS as u64 + 1)).map(|_| space.allocate(bytes));
        let buffers = buffers.collect::<Result<_>>()?;
        self.of(mirror.hedged(Duration::from_micros(after), buffers))
    }

    /// The one layer below.
    fn only(&self, mut legs: Vec<Stack>) -> Result<Stack> {
        match (legs.pop(), legs.is_empty()) {
            (Some(below), true) => Ok(below),
            _ => Err(self.refuse("it stands on one device".into())),
        }
    }

    /// What was made for this layer; if it could not be, the message says for which.
    fn of<T>(&self, made: Result<T>) -> Result<T> {
        made.map_err(|error| self.refuse(error.to_string()))
    }

    /// Options that are left are none.
    fn finish(&self) -> Result<()> {
        match self.options.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(self.refuse(format!("{key} is no option of it, or twice; layers are: {LAYERS}")))
            }
        }
    }

    fn refuse(&self, what: String) -> Error {
        Error::InvalidInput(format!("{}: {what}", self.plan))
    }
}

impl Layer for Stack {
    fn geometry(&self) -> Geometry {
        each!(self, layer => layer.geometry())
    }

    fn frames(&self) -> usize {
        each!(self, layer => layer.frames())
    }

    fn children(&self) -> u32 {
        each!(self, layer => layer.children())
    }

    fn orphans(&self) -> u32 {
        each!(self, layer => layer.orphans())
    }

    fn plain(&mut self) -> Option<Plain> {
        each!(self, layer => layer.plain())
    }

    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        each!(self, layer => layer.submit(cx, io))
    }

    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        each!(self, layer => layer.complete(cx, io))
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        each!(self, layer => layer.poll(cx))
    }
}

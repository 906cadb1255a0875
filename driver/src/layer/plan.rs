//! Stacks of layers as text: `stripe(chunk=64K,mirror(A,B),mirror(C,D))`.
//!
//! A layer's options come first, then what it stands on. What follows a device's name in the form
//! `key=value` belongs to the device, so that `emulated:size=1G,media=ram` needs no quotes. Knows
//! syntax; must not know which layers there are, nor what a device is.

use std::fmt;
use std::str::FromStr;

/// A stack as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// A device by its name.
    Device(String),
    /// A layer.
    Layer {
        /// Its name.
        name: String,
        /// Its options, in order.
        options: Vec<(String, String)>,
        /// What it stands on, 1 or more.
        below: Vec<Plan>,
    },
}

/// What is wrong with the text of a stack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPlan {
    /// Parentheses do not match.
    #[error("{0:?}: parentheses do not match; a stack is like stripe(chunk=64K,mirror(A,B),mirror(C,D))")]
    Parentheses(String),
    /// A layer on nothing, or a device without a name.
    #[error("{0:?}: a device is missing; a stack is like stripe(chunk=64K,mirror(A,B),mirror(C,D))")]
    Nothing(String),
    /// An option behind what the layer stands on.
    #[error("{0}: a layer's options come first, as in stripe(chunk=64K,A,B)")]
    Late(String),
    /// More layers on each other than a request has room for.
    #[error("{0:?}: more than {MAX_DEPTH} layers on each other")]
    TooDeep(String),
}

/// Layers on each other, at most: a bound for the recursion.
const MAX_DEPTH: usize = 16;

impl Plan {
    /// The names of the devices, from left to right.
    pub fn devices(&self) -> Vec<&str> {
        match self {
            Plan::Device(name) => vec![name],
            Plan::Layer { below, .. } => below.iter().flat_map(Plan::devices).collect(),
        }
    }

    fn parse(text: &str, depth: usize) -> Result<Plan, BadPlan> {
        if depth > MAX_DEPTH {
            return Err(BadPlan::TooDeep(text.into()));
        }
        let Some((name, rest)) = text.split_once('(').filter(|(name, _)| is_word(name)) else {
            return match text.contains(['(', ')']) {
                true => Err(BadPlan::Parentheses(text.into())),
                false if text.is_empty() => Err(BadPlan::Nothing(text.into())),
                false => Ok(Plan::Device(text.into())),
            };
        };
        let inner = rest.strip_suffix(')').ok_or_else(|| BadPlan::Parentheses(text.into()))?;
        let mut options = Vec::new();
        let mut below: Vec<String> = Vec::new();
        for part in parts(inner).ok_or_else(|| BadPlan::Parentheses(text.into()))? {
            if part.is_empty() {
                return Err(BadPlan::Nothing(text.into()));
            }
            match (part.split_once('=').filter(|(key, _)| is_word(key)), below.last_mut()) {
                (Some((key, value)), None) => options.push((key.into(), value.into())),
                (Some(_), Some(layer)) if layer.ends_with(')') => return Err(BadPlan::Late(part.into())),
                (Some(_), Some(device)) => *device = format!("{device},{part}"),
                (None, _) => below.push(part.into()),
            }
        }
        if below.is_empty() {
            return Err(BadPlan::Nothing(text.into()));
        }
        let below = below.iter().map(|text| Plan::parse(text, depth + 1)).collect::<Result<_, _>>()?;
        Ok(Plan::Layer { name: name.into(), options, below })
    }
}

/// What stands between the commas that are in no parentheses; `None` if those do not match.
fn parts(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (depth == 0).then_some(parts)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl FromStr for Plan {
    type Err = BadPlan;

    fn from_str(text: &str) -> Result<Plan, BadPlan> {
        Plan::parse(text, 0)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Device(name) => f.write_str(name),
            Plan::Layer { name, options, below } => {
                let options = options.iter().map(|(key, value)| format!("{key}={value}"));
                let all: Vec<String> = options.chain(below.iter().map(Plan::to_string)).collect();
                write!(f, "{name}({})", all.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(name: &str) -> Plan {
        Plan::Device(name.into())
    }

    #[test]
    fn options_first_then_devices_with_settings_of_their_own() {
        let plan: Plan = "stripe(chunk=64K,mirror(emulated:size=1G,media=ram,0000:01:00.0),vfio-user:/a/b)"
            .parse()
            .unwrap();
        let mirror = Plan::Layer {
            name: "mirror".into(),
            options: vec![],
            below: vec![device("emulated:size=1G,media=ram"), device("0000:01:00.0")],
        };
        let stripe = Plan::Layer {
            name: "stripe".into(),
            options: vec![("chunk".into(), "64K".into())],
            below: vec![mirror, device("vfio-user:/a/b")],
        };
        assert_eq!(plan, stripe);
        assert_eq!(plan.devices(), ["emulated:size=1G,media=ram", "0000:01:00.0", "vfio-user:/a/b"]);
        assert_eq!("emulated:size=1G,media=ram".parse(), Ok(device("emulated:size=1G,media=ram")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "missing"),
            ("stripe()", "stripe()\": a device is missing"),
            ("stripe(chunk=4K)", "missing"),
            ("stripe(A,,B)", "missing"),
            ("stripe(A", "parentheses"),
            ("stripe(A))", "parentheses"),
            ("stripe(A)B", "parentheses"),
            ("(A)", "parentheses"),
            ("a-b(A)", "parentheses"),
            ("stripe(mirror(A,B),chunk=64K)", "options come first"),
        ] {
            let error = text.parse::<Plan>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let deep = format!("{}A{}", "trace(".repeat(100), ")".repeat(100));
        assert!(matches!(deep.parse::<Plan>(), Err(BadPlan::TooDeep(_))));
    }

    fn plans() -> impl Strategy<Value = Plan> {
        let device =
            prop_oneof!["emulated:size=[1-9]M,block=512", r"0000:0[1-9]:00\.0"].prop_map(Plan::Device);
        device.prop_recursive(4, 24, 4, |below| {
            let options = proptest::collection::vec(("[a-z]{1,6}", "[0-9]{1,3}K?"), 0..3);
            ("[a-z]{1,8}", options, proptest::collection::vec(below, 1..4))
                .prop_map(|(name, options, below)| Plan::Layer { name, options, below })
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(plan in plans()) {
            prop_assert_eq!(plan.to_string().parse(), Ok(plan));
        }

        #[test]
        fn any_text_is_a_plan_or_an_error(text in "[a-z(),=:0-9]{0,40}") {
            if let Ok(plan) = text.parse::<Plan>() {
                prop_assert_eq!(plan.to_string(), text);
            }
        }
    }
}

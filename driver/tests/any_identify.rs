//! The fuzz target of Identify data and logs, with whatever bytes come.

use proptest::prelude::*;

#[path = "../../tests/fuzz/src/identify.rs"]
mod identify;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_is_parsed_gives_an_answer(
        chunks in 0u8..16,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        identify::fuzz_identify(&[&[chunks][..], &bytes].concat());
    }
}

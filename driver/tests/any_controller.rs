//! The fuzz target with the controller as attacker, with whatever bytes come.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use proptest::prelude::*;

#[path = "../../tests/fuzz/src/controller.rs"]
mod controller;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Wishes of the controller's, and what it and the application do.
    #[test]
    fn nothing_is_lost_and_nothing_comes_twice(
        chunks in 0u8..4,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        controller::fuzz_controller(&[&[chunks][..], &bytes].concat());
    }
}

/// Every input that was kept, found to be worth it or to have failed once.
#[test]
fn the_corpus_is_borne() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/controller");
    let mut count = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        controller::fuzz_controller(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0);
}

//! The fuzz target with the controller as attacker, with whatever bytes come.

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

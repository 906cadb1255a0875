//! The fuzz targets with the controller as attacker, with whatever bytes come.
#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

#[path = "../../tests/fuzz/src/controller.rs"]
mod controller;
#[path = "../../tests/fuzz/src/identify.rs"]
mod identify;

/// What the application and the controller do, after wishes of the controller's.
fn script() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (any::<u8>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(kind, at, bytes)| [&[kind][..], &at.to_le_bytes(), &[bytes.len() as u8], &bytes].concat(),
    );
    let steps = prop::collection::vec(any::<u8>(), 0..300);
    (prop::collection::vec(chunk, 0..4), steps)
        .prop_map(|(chunks, steps)| [&[chunks.len() as u8][..], &chunks.concat(), &steps].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn nothing_is_lost_and_nothing_comes_twice(data in script()) {
        controller::fuzz_controller(&data);
    }

    #[test]
    fn whatever_is_parsed_gives_an_answer(data in script()) {
        identify::fuzz_identify(&data);
    }
}

//! The fuzz target of PRPs and SGLs, with whatever bytes come.

use proptest::prelude::*;

#[path = "../../../tests/fuzz/src/data_pointer.rs"]
mod data_pointer;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn only_what_is_mapped_is_reached(data in prop::collection::vec(any::<u8>(), 0..300)) {
        data_pointer::fuzz_data_pointer(&data);
    }
}

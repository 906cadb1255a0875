//! PRP and SGL walking in the emulator.
#![no_main]

#[path = "../src/data_pointer.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::fuzz_data_pointer(data));

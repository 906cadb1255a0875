//! Identify data, namespace lists, descriptors and log pages of any bytes.
#![no_main]

#[path = "../src/identify.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::fuzz_identify(data));

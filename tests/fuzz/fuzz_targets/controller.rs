//! The controller as attacker: whatever it does, nothing is lost, nothing comes twice.
#![no_main]

#[path = "../src/controller.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::fuzz_controller(data));

//! The vfio-user peer as attacker: a server that says anything.
#![no_main]

#[path = "../src/vfio_user_client.rs"]
mod client;

libfuzzer_sys::fuzz_target!(|data: &[u8]| client::fuzz_client(data));

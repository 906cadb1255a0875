//! The vfio-user peer as attacker: a client that says anything.
#![no_main]

#[path = "../src/vfio_user_server.rs"]
mod server;

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzz_server(data));

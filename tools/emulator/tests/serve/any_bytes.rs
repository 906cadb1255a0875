//! Clients that send anything at all.

use std::io::{Read, Write};
use std::net::Shutdown;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::host::{Host, memory};
use crate::peer::Rig;

/// A header that may be good, and a payload with small numbers in it.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0u32..40, any::<u32>(), Just(0x1000), Just(0x10000)];
    let body = prop::collection::vec(word, 0..20);
    let size = prop_oneof![8 => Just(None), 1 => (0u32..2_000_000).prop_map(Some)];
    (0u16..20, prop_oneof![Just(0u32), Just(0x10), 0u32..64], size, body).prop_map(
        |(command, flags, size, body)| {
            let size = size.unwrap_or(16 + 4 * body.len() as u32);
            let header = [u32::from(command) << 16 | 7, size, flags, 0];
            [header.as_bytes(), body.as_bytes()].concat()
        },
    )
}

#[test]
fn whatever_a_client_sends_the_next_one_is_served() {
    let rig = Rig::new("size=16M,media=ram");
    let file = memory(0x10000);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let input =
        (any::<bool>(), prop::collection::vec(message(), 0..8), prop::collection::vec(any::<u8>(), 0..40));
    runner
        .run(&input, |(agreed, messages, rest)| {
            let mut stream = if agreed { rig.client().stream } else { rig.stream() };
            for message in messages {
                let _ = stream.write_all(&message);
            }
            let _ = stream.write_all(&rest);
            let _ = stream.shutdown(Shutdown::Write);
            // Until the server has let go.
            let mut replies = Vec::new();
            let _ = stream.read_to_end(&mut replies);
            rig.end();
            Ok(())
        })
        .unwrap();
    drop(file);
    let mut host = Host::with_queue(&rig);
    host.write_block(1, 1);
    assert_eq!(host.read_block(1), [1; 4096]);
}

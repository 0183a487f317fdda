// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a message from a hostile peer mean one thing or nothing?

use crate::bytes::Bytes;
use umbra_mmu_abi::wire::{MAX_WORDS, Message};
use umbra_mmu_abi::{Reply, Request};

/// A message from arbitrary bytes. What can be read has exactly one form, and what cannot is named.
pub fn decode(input: &[u8]) {
    let mut input = Bytes(input);
    let mut message = Message {
        label: u64::from(input.u8()),
        len: usize::from(input.u8()),
        words: [0; MAX_WORDS],
    };
    // Labels above a byte and lengths above two words are one bit away.
    let rare = input.u8();
    if rare & 1 != 0 {
        message.label = input.u64();
    }
    if rare & 2 != 0 {
        message.len = input.u64() as usize;
    }
    let sent = message.len.min(MAX_WORDS);
    for word in &mut message.words[..sent] {
        *word = input.u64();
    }
    match Request::decode(&message) {
        Ok(request) => assert_eq!(request.encode(), message, "{request:?} has two forms"),
        Err(malformed) => assert!(!malformed.to_string().is_empty()),
    }
    match Reply::decode(&message) {
        Ok(reply) => assert_eq!(reply.encode(), message, "{reply:?} has two forms"),
        Err(malformed) => assert!(!malformed.to_string().is_empty()),
    }
}

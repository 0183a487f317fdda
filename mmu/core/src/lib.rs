// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MMU itself: memslots, sptes, reverse maps, generations. Knows no seL4; its hardware is a trait.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

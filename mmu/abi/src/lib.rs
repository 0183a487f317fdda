// SPDX-License-Identifier: MIT OR Apache-2.0
//! The words that the vmm and the mmu component share: addresses, accesses, requests and replies.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod address;
mod request;
pub mod wire;

pub use address::{GPA_BITS, Gfn, Gpa, Gva, PAGE_SHIFT, PAGE_SIZE, PageLevel};
pub use request::{
    Access, Backing, BackingId, FaultOutcome, GENERATION_BITS, Generation, Mmio, Reply, Request, SlotError, SlotFlags,
    SlotId, Stat,
};

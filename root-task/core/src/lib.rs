// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the root task decides, without a kernel: where objects go, what a program needs, who may hold what.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod audit;
pub mod badge;
pub mod calendar;
pub mod elf;
pub mod frames;
pub mod ledger;
pub mod untyped;

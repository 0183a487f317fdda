// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a second stage do what the MMU believes? The same cases for every sink, with real accesses of a guest.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cases;
mod machine;

pub use cases::{Case, cases};
pub use machine::{BACKINGS, Failure, Faulted, Found, LARGE, Machine, SMALL, Seen, run};

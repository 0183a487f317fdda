// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the root task does what it decides: kernel calls around `umbra-root-core`. The order of a boot is in `main`.
#![no_std]

extern crate alloc;

pub mod audit;
pub mod bundle;
pub mod cspace;
pub mod failure;
pub mod fault;
pub mod guest_ram;
pub mod kernel;
pub mod log;
pub mod machine;
mod objects;
pub mod payload;
pub mod power_off;
pub mod rtc;
pub mod spawn;
pub mod supervise;
pub mod tsc;
pub mod untyped;
pub mod vspace;

pub use failure::Failure;
pub use kernel::Kernel;

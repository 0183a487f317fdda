// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine monitor: exits, emulator, devices, loaders. Knows no seL4; its hardware is a trait.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod boot;
pub mod clock;
pub mod control;
pub mod cpuid;
pub mod device;
pub mod devices;
mod dispatch;
pub mod emulate;
pub mod entry;
pub mod exit;
pub mod guest_mem;
pub mod inject;
pub mod livelock;
pub mod mmu_client;
pub mod msr;
pub mod platform;
pub mod report;
pub mod run;
#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod testing;
pub mod time;
pub mod vcpu;

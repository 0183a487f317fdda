// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine monitor: exits, emulator, devices, loaders. Knows no seL4; its hardware is a trait.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod boot;
pub mod device;
pub mod devices;
pub mod emulate;
pub mod exit;
pub mod guest_mem;
pub mod inject;
pub mod platform;
#[cfg(test)]
mod testing;
pub mod time;
pub mod vcpu;

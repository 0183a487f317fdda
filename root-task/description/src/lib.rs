// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `system.toml` says, as tables: the tool compiles them, the root task builds from them, components read theirs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "compile"))]
extern crate std;

#[cfg(any(test, feature = "compile"))]
pub mod attach;
pub mod bundle;
#[cfg(any(test, feature = "compile"))]
pub mod bundle_write;
#[cfg(feature = "compile")]
pub mod compile;
mod config;
pub mod layout;
pub mod supervisor;
mod system;

pub use config::{MmuBacking, MmuConfig, SinkKind, VmmConfig, VmmRam};
pub use system::{
    ComPort, Component, GuestBoot, Mode, Module, Payload, PowerOff, RamPages, Slot, SlotKind, System, Vm,
};

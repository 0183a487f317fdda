// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a program need to run on seL4 without an operating system?
//!
//! Entry point and stack ([`root_task`], [`declare_component!`]), a heap, a panic handler, output ([`Serial`], [`logger`]),
//! and `memcpy` and its kin. Only binaries depend on this crate.
#![no_std]

mod debug;
#[doc(hidden)]
pub mod entry;
mod heap;
pub mod logger;
mod mem;
mod panic;
mod serial;
mod stack;

pub use debug::DebugOutput;
pub use heap::add_heap;
pub use sel4_root_task_macros::root_task;
pub use serial::Serial;

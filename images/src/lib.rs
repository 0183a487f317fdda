// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the system boot, and from what? Guests from Debian packages, own test guests, the disk image with its loader.
#![forbid(unsafe_code)]

mod apt;
mod compact;
mod cpio;
mod deb;
pub mod disk;
mod fetch;
pub mod guests;
pub mod loader;
pub mod manifest;
mod nasm;
pub mod test_guests;
mod vmlinux;

pub use compact::{CompactError, compact};
pub use cpio::{Archive, CpioError};
pub use vmlinux::{VmlinuxError, extract};

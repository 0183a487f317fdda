// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the system boot, and from what? Guests from Debian packages, own test guests, the disk image with its loader.
#![forbid(unsafe_code)]

pub mod disk;
pub mod loader;
mod nasm;

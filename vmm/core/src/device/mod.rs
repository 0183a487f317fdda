// SPDX-License-Identifier: MIT OR Apache-2.0
//! Models of the PC's devices: one file each, a state machine to be read beside its data sheet.

pub mod cmos;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod reset;
pub mod rtc;
pub mod uart;

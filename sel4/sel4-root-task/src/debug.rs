// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a program print through a debug kernel?

use core::fmt;
use sel4::sys;

/// Writes through the kernel's `DebugPutChar`; discards everything on kernels without it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugOutput;

impl DebugOutput {
    /// Whether the kernel has the system call.
    pub const AVAILABLE: bool = sys::DEBUG_PUT_CHAR.is_some();
}

impl fmt::Write for DebugOutput {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if !sys::debug_put_char(byte) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Prints to the kernel's console, if it has one.
#[macro_export]
macro_rules! debug_print {
    ($($arg:tt)*) => {{
        let _ = ::core::fmt::Write::write_fmt(&mut $crate::DebugOutput, ::core::format_args!($($arg)*));
    }};
}

/// Prints a line to the kernel's console, if it has one.
#[macro_export]
macro_rules! debug_println {
    () => { $crate::debug_print!("\n") };
    ($($arg:tt)*) => { $crate::debug_print!("{}\n", ::core::format_args!($($arg)*)) };
}

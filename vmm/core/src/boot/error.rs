// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a guest image could not be loaded: which part of which file, and where.

use core::fmt;

/// Why a guest cannot be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// Neither bzImage, ELF nor multiboot.
    UnknownFormat {
        /// The file's first bytes.
        start: [u8; 4],
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat { start } => {
                write!(
                    f,
                    "kernel: unknown format (starts with {start:02x?}; bzImage, ELF or multiboot 1 wanted)"
                )
            }
        }
    }
}

impl core::error::Error for LoadError {}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a test say what it found wrong?

use alloc::format;
use alloc::string::String;
use core::fmt::{Debug, Display};

/// The outcome of a test, or of one check inside it: why it failed.
pub type Check = Result<(), String>;

/// An error unless `found` is `wanted`.
pub fn same<T: PartialEq + Debug>(what: &str, found: T, wanted: T) -> Check {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{what}: {found:?} instead of {wanted:?}"))
    }
}

/// An error if `outcome` is one.
pub fn good<T, E: Display>(what: &str, outcome: Result<T, E>) -> Result<T, String> {
    outcome.map_err(|error| format!("{what}: {error}"))
}

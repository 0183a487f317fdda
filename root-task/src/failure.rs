// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why could the root task not do something?

use core::fmt;
use umbra_root_core::untyped::Exhausted;

/// What went wrong, with its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No untyped memory for an object.
    Memory(Exhausted),
    /// The root task's CNode is full.
    Slots {
        /// Slots asked for, side by side.
        wanted: u64,
        /// Slots left.
        left: u64,
    },
    /// The kernel refused an invocation.
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: sel4::Error,
    },
}

impl Failure {
    /// Makes an error of the kernel one of `what` was tried.
    pub const fn kernel(what: &'static str) -> impl FnOnce(sel4::Error) -> Self {
        move |error| Self::Kernel { what, error }
    }
}

impl From<Exhausted> for Failure {
    fn from(exhausted: Exhausted) -> Self {
        Self::Memory(exhausted)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(exhausted) => exhausted.fmt(f),
            Self::Slots { wanted, left } => write!(f, "out of capability slots: {wanted} wanted, {left} left"),
            Self::Kernel { what, error } => write!(f, "the kernel refused to {what}: {error}"),
        }
    }
}

impl core::error::Error for Failure {}

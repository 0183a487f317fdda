// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest time: the one clock of all devices of a guest. It is the guest's time stamp counter, unless the guest has set that.

use core::ops::{Add, Sub};

/// Guest time in ticks of the TSC since the guest's start, or a distance between two such times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticks(u64);

impl Ticks {
    /// Wraps a TSC value.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl Add for Ticks {
    type Output = Self;
    /// Saturates: nothing happens after the end of time.
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Ticks {
    type Output = Self;
    /// Saturates: a clock that was set back has not run.
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

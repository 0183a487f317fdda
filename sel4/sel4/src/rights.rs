// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may the holder of a capability do?

use sel4_sys as sys;

/// Rights that a copy of a capability (or a mapping) keeps, at most those of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapRights(sys::seL4_CapRights);

impl CapRights {
    /// Nothing.
    pub const NONE: Self = Self(sys::seL4_CapRights::new(0, 0, 0));
    /// Everything.
    pub const ALL: Self = Self(sys::seL4_CapRights::new(1, 1, 1));
    /// Read only (receive, wait).
    pub const READ: Self = Self(sys::seL4_CapRights::new(0, 1, 0));
    /// Write only (send, signal).
    pub const WRITE: Self = Self(sys::seL4_CapRights::new(0, 0, 1));
    /// Grant only (pass capabilities on).
    pub const GRANT: Self = Self(sys::seL4_CapRights::new(1, 0, 0));
    /// Read and write.
    pub const READ_WRITE: Self = Self(sys::seL4_CapRights::new(0, 1, 1));
    /// Write and grant.
    pub const WRITE_GRANT: Self = Self(sys::seL4_CapRights::new(1, 0, 1));

    /// Both rights.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(sys::seL4_CapRights {
            words: [self.0.words[0] | other.0.words[0]],
        })
    }

    /// As the kernel takes it.
    pub const fn into_inner(self) -> sys::seL4_CapRights {
        self.0
    }
}

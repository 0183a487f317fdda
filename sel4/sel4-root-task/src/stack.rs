// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where is the root task's stack?

use core::cell::UnsafeCell;

/// A page, so that stack and heap begin and end at one.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Zeroed memory that the program gives to its stack or heap, in whole pages.
#[repr(transparent)]
pub struct Region<const PAGES: usize>(UnsafeCell<[Page; PAGES]>);

// SAFETY: only its address is ever taken; who uses the memory is decided once, at the entry.
unsafe impl<const PAGES: usize> Sync for Region<PAGES> {}

impl<const PAGES: usize> Region<PAGES> {
    /// Zeroed.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([Page([0; 4096]); PAGES]))
    }

    /// Its lowest address.
    pub const fn start(&self) -> *mut u8 {
        self.0.get().cast()
    }

    /// Its size in bytes.
    pub const fn len(&self) -> usize {
        PAGES * 4096
    }

    /// Whether it has no page.
    pub const fn is_empty(&self) -> bool {
        PAGES == 0
    }
}

impl<const PAGES: usize> Default for Region<PAGES> {
    fn default() -> Self {
        Self::new()
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where does `alloc` get its memory?

use talc::TalcLock;
use talc::source::Manual;

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// Gives memory to the heap. The first piece should have at least 16 KiB.
///
/// # Panics
/// If the first piece is too small for the allocator's own tables.
///
/// # Safety
/// The memory is mapped, writable, not used by anybody else, and stays so.
pub unsafe fn add_heap(start: *mut u8, length: usize) {
    // SAFETY: passed on.
    let claimed = unsafe { HEAP.lock().claim(start, length) };
    assert!(claimed.is_some(), "a heap of {length} bytes is too small");
}

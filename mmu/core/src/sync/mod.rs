// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do threads share? Atomics and locks of the machine, or of a model checker that tries all interleavings.
//!
//! Everything in this crate that two threads touch comes from here, so that `tests/races` checks the code itself and
//! not a copy of it. Under the features `loom` and `shuttle` values are made inside a model only, and
//! [`atomic`]'s `new` is no `const fn` under `loom`.

mod epochs;
mod lock;
mod published;
#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests;

pub use epochs::{Epoch, Epochs, MAX_WALKERS, Walker, Walking};
pub use lock::{Mutex, MutexGuard, ReadGuard, RwLock, WriteGuard};
pub use published::{Edit, Published, Reading, Unsynchronized};

/// Atomic words.
///
/// An spte is loaded and stored whole: nothing here is narrower than the 64 bits of an spte, so no reader ever sees half
/// of one, and `clear_spte_count`, by which 32-bit hosts notice that, has no counterpart.
// REQ: SP-10, LK-3
pub mod atomic {
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(feature = "loom")]
    pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

#[cfg(not(target_has_atomic = "64"))]
compile_error!("sptes are 64-bit words that are loaded, stored and exchanged whole");

// SDM vol. 3, 10.1.1: a quadword that is aligned on 8 bytes is read and written atomically.
// REQ: SP-10
const _: () = assert!(
    size_of::<core::sync::atomic::AtomicU64>() == 8 && align_of::<core::sync::atomic::AtomicU64>() == 8,
    "an spte is one aligned quadword"
);

/// Tells the processor, or the model checker, that this thread waits for another one.
#[inline]
pub fn relax() {
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    core::hint::spin_loop();
    #[cfg(feature = "loom")]
    loom::thread::yield_now();
    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    shuttle::thread::yield_now();
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! When may memory that lockless walkers read be used again? When all walkers that can have seen it have left (RCU).
//!
//! ```text
//! walker                                  who frees a table
//! ------                                  -----------------
//! enter: slot = now                       unlink the table
//!        fence                            retire: tag = now++
//!        walk                             is_safe: fence
//! leave: slot = 0                                  tag < now and tag < every slot in use?
//! ```
//! The fences order "slot, then walk" against "unlink, then look at the slots": a walker that still finds the table
//! is found in its slot, with an epoch that is not above the tag. Nobody ever waits: a table that is not yet safe stays
//! where it is.

use super::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Walkers at a time: one for each vCPU.
#[cfg(not(feature = "loom"))]
pub const MAX_WALKERS: usize = 64;
/// A model has few threads, and the checker pays for each atomic word.
#[cfg(feature = "loom")]
pub const MAX_WALKERS: usize = 3;

/// A slot that holds this has no walker inside. Epochs start at 1.
const OUTSIDE: u64 = 0;

/// A point in time, counted in retirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

impl Epoch {
    /// Before every retirement: always safe.
    pub const ZERO: Self = Self(0);

    /// As a word, for where an atomic holds it.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// From [`Epoch::raw`].
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

/// A word with a cache line of its own: walkers on several processors write theirs all the time.
#[derive(Debug)]
#[repr(align(64))]
struct Line(AtomicU64);

/// The walkers of one MMU.
#[derive(Debug)]
pub struct Epochs {
    now: AtomicU64,
    slots: [Line; MAX_WALKERS],
    /// Slots that were given to walkers.
    given: AtomicU32,
    /// What [`Epochs::safe_epoch`] found last; it only ever grows.
    safe: AtomicU64,
}

/// The right to walk, one for each vCPU.
#[derive(Debug)]
pub struct Walker {
    slot: usize,
}

impl Walker {
    /// Its number among the walkers of the MMU.
    pub const fn slot(&self) -> usize {
        self.slot
    }
}

/// A walk without locks; tables that it reaches are not used for anything else until it ends.
///
/// It may take locks. Nobody waits for the end of a walk, so that makes no deadlock.
#[derive(Debug)]
#[must_use = "the walk ends where this is dropped"]
pub struct Walking<'a> {
    slot: &'a AtomicU64,
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// No walkers yet.
    pub fn new() -> Self {
        Self {
            now: AtomicU64::new(1),
            slots: core::array::from_fn(|_| Line(AtomicU64::new(OUTSIDE))),
            given: AtomicU32::new(0),
            safe: AtomicU64::new(0),
        }
    }

    /// One more walker, while there are fewer than [`MAX_WALKERS`]. Walkers stay for as long as the MMU.
    pub fn walker(&self) -> Option<Walker> {
        let mut given = self.given.load(Ordering::Relaxed);
        while (given as usize) < MAX_WALKERS {
            match self
                .given
                .compare_exchange(given, given + 1, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(slot) => return Some(Walker { slot: slot as usize }),
                Err(other) => given = other,
            }
        }
        None
    }

    /// How many walkers there are; their slots are the numbers below.
    pub fn given(&self) -> usize {
        self.given.load(Ordering::Acquire) as usize
    }

    /// Begins a walk: a load, a store, a fence; its end is a store. `walker` cannot begin another one before.
    #[inline]
    pub fn enter<'a>(&'a self, walker: &'a mut Walker) -> Walking<'a> {
        let slot = &self.slots[walker.slot].0;
        // The fence makes it an acquire: who sees a later epoch sees what was unlinked before it.
        let now = self.now.load(Ordering::Relaxed);
        // Release: who sees this sees that the walker's last walk is over.
        slot.store(now, Ordering::Release);
        fence(Ordering::SeqCst);
        Walking { slot }
    }

    /// Says that something was unlinked just now. It may be used again when the answer [is safe](Epochs::is_safe).
    #[inline]
    pub fn retire(&self) -> Epoch {
        Epoch(self.now.fetch_add(1, Ordering::Release))
    }

    /// Whether no walker is left that can have seen what was retired in `epoch`.
    #[inline]
    pub fn is_safe(&self, epoch: Epoch) -> bool {
        // Acquire: with what the thread that looked at the slots has seen.
        epoch.0 < self.safe.load(Ordering::Acquire) || epoch < self.safe_epoch()
    }

    /// Everything that was retired before this epoch is safe.
    pub fn safe_epoch(&self) -> Epoch {
        let mut oldest = self.now.load(Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let given = self.given.load(Ordering::Relaxed) as usize;
        for Line(slot) in &self.slots[..given] {
            let entered = slot.load(Ordering::Acquire);
            if entered != OUTSIDE {
                oldest = oldest.min(entered);
            }
        }
        self.safe.fetch_max(oldest, Ordering::Release);
        Epoch(oldest)
    }
}

impl Drop for Walking<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.store(OUTSIDE, Ordering::Release);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What did a fault look at that is not true any more? A sequence number, and the ranges that the host is changing
//! (KVM: `mmu_invalidate_seq`, `mmu_invalidate_in_progress`, `mn_active_invalidate_count`).
//!
//! ```text
//! fault                           host
//! -----                           ----
//! seq = seq()
//! look at slots, host memory      start: the range is in progress; its sptes go; flush
//!                                 change the memory
//! take mmu_lock                   end: seq moves, the range is not in progress
//! must_retry(seq, gfn)?
//! install
//! ```
//! Whenever the look was before the end, the fault sees at `must_retry` that the range is in progress or that `seq` has
//! moved, because both change only while `mmu_lock` is held for writing.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::relax;
use umbra_mmu_abi::{Gfn, PageLevel};

/// The sequence number and the pairs of one VM.
#[derive(Debug)]
pub struct Invalidations {
    seq: AtomicU64,
    /// Ranges between their start and end. 0: the bounds mean nothing.
    in_progress: AtomicU32,
    /// What all of them lie in. It only grows until the last has ended (KVM: `mmu_invalidate_range_start`, `_end`).
    start: AtomicU64,
    end: AtomicU64,
    /// Pairs that have not ended, in the low bits; [`PUBLISHING`]. This word is `mn_invalidate_lock` as well.
    active: AtomicU32,
}

/// A table of slots is being published: pairs wait for these few instructions, and for nothing else.
const PUBLISHING: u32 = 1 << 31;

/// A pair is between its start and its end: slots cannot change now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// A pair that has started. It uses one table of slots from start to end: none is published meanwhile.
#[must_use = "a pair that does not end keeps mappings out, and slots from changing"]
#[derive(Debug)]
pub struct ActivePair(());

impl Default for Invalidations {
    fn default() -> Self {
        Self {
            seq: AtomicU64::new(0),
            in_progress: AtomicU32::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            active: AtomicU32::new(0),
        }
    }
}

impl Invalidations {
    /// The number to take before looking at anything that a pair or a slot change may change.
    // REQ: PF-3
    #[inline]
    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    /// Something changed: plans made before are void. `mmu_lock` is held for writing, or the plan's maker is this thread.
    // REQ: PF-3
    #[inline]
    pub fn bump(&self) {
        self.seq.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether what was seen of `gfn` after [`Invalidations::seq`] gave `seq` may be wrong. `mmu_lock` is held, for
    /// reading at least.
    // REQ: PF-3, HOST-1
    #[inline]
    pub fn must_retry(&self, seq: u64, gfn: Gfn) -> bool {
        self.must_retry_page(seq, gfn, PageLevel::K4)
    }

    /// The same for a page of any size, which begins at `at`: no part of it may be in progress.
    // REQ: PF-3, HOST-1
    #[inline]
    pub fn must_retry_page(&self, seq: u64, at: Gfn, size: PageLevel) -> bool {
        self.in_progress.load(Ordering::Acquire) != 0 && self.overlaps(at, size) || self.seq() != seq
    }

    #[cold]
    fn overlaps(&self, at: Gfn, size: PageLevel) -> bool {
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        start < at.raw() + size.frames() && at.raw() < end
    }

    /// Whether mappings of some range are kept out just now. `mmu_lock` is held.
    #[inline]
    pub fn is_in_progress(&self) -> bool {
        self.in_progress.load(Ordering::Acquire) != 0
    }

    /// A pair starts. From here to [`Invalidations::leave`] the published slots stay. No lock is needed, and
    /// `slots_lock` must not be: a slot change that holds it waits for this pair.
    // REQ: HOST-1
    pub fn enter(&self) -> ActivePair {
        let one_more = |active: u32| (active & PUBLISHING == 0).then_some(active + 1);
        while self
            .active
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more)
            .is_err()
        {
            relax();
        }
        ActivePair(())
    }

    /// The pair has ended.
    // REQ: HOST-1
    pub fn leave(&self, pair: ActivePair) {
        let ActivePair(()) = pair;
        self.active.fetch_sub(1, Ordering::Release);
    }

    /// Keeps new mappings out of `start..end`. `mmu_lock` is held for writing; the range's sptes go before it is let go.
    // REQ: HOST-1
    pub fn begin(&self, start: Gfn, end: Gfn) {
        let (mut low, mut high) = (start.raw(), end.raw());
        if self.in_progress.load(Ordering::Relaxed) != 0 {
            low = low.min(self.start.load(Ordering::Relaxed));
            high = high.max(self.end.load(Ordering::Relaxed));
        }
        self.start.store(low, Ordering::Relaxed);
        self.end.store(high, Ordering::Relaxed);
        self.in_progress.fetch_add(1, Ordering::AcqRel);
    }

    /// Lets mappings in again that see the new state. `mmu_lock` is held for writing.
    // REQ: HOST-1, PF-3
    pub fn end(&self) {
        // Before the range is let go: who looked during the change has the old number.
        self.bump();
        let before = self.in_progress.fetch_sub(1, Ordering::AcqRel);
        assert_ne!(before, 0, "an invalidation ends that never began");
    }

    /// Publishes a table of slots while no pair is active.
    ///
    /// # Errors
    /// One is; nothing was done. A change that has published nothing yet is refused with this.
    // REQ: HOST-1
    pub fn publish<R>(&self, publish: impl FnOnce() -> R) -> Result<R, Busy> {
        match self
            .active
            .compare_exchange(0, PUBLISHING, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => {
                let result = publish();
                self.active.store(0, Ordering::Release);
                Ok(result)
            }
            Err(_) => Err(Busy),
        }
    }

    /// Publishes a table of slots as soon as no pair is active. For the second table of a change that has published
    /// one: it cannot go back. A pair that started between waits neither for `slots_lock` nor for this, so it ends; its
    /// end may not be left to the thread that waits here.
    // REQ: HOST-1
    pub fn publish_after_pairs<R>(&self, publish: impl FnOnce() -> R) -> R {
        while self
            .active
            .compare_exchange_weak(0, PUBLISHING, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            relax();
        }
        let result = publish();
        self.active.store(0, Ordering::Release);
        result
    }

    /// Whether a pair is active.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire) & !PUBLISHING != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    // REQ: PF-3, HOST-1
    #[test]
    fn what_was_seen_before_the_end_is_void() {
        let all = Invalidations::default();
        let (inside, outside) = (Gfn::new(0x10), Gfn::new(0x20));
        let before = all.seq();
        let (first, second) = (all.enter(), all.enter());
        all.begin(inside, outside);
        let during = all.seq();
        assert!(all.must_retry(during, inside));
        assert!(!all.must_retry(during, outside) && !all.must_retry(during, Gfn::new(0xf)));
        // A large page of which a part is in progress.
        assert!(all.must_retry_page(during, Gfn::new(0), PageLevel::M2));
        assert!(!all.must_retry_page(during, Gfn::new(0x200), PageLevel::M2));
        all.begin(Gfn::new(0x30), Gfn::new(0x31));
        // Between the two: kept out too, until both have ended.
        assert!(all.must_retry(during, Gfn::new(0x28)) && !all.must_retry(during, Gfn::new(0x31)));
        all.end();
        assert!(all.must_retry(all.seq(), inside));
        all.end();
        for seq in [before, during] {
            assert!(all.must_retry(seq, inside) && all.must_retry(seq, outside));
        }
        assert!(!all.must_retry(all.seq(), inside));
        all.begin(Gfn::new(1), Gfn::new(2));
        assert!(!all.must_retry(all.seq(), inside), "the old bounds are forgotten");
        all.end();
        all.leave(first);
        all.leave(second);
    }

    // REQ: HOST-1
    #[test]
    fn slots_change_between_pairs_only() {
        let all = Invalidations::default();
        let pair = all.enter();
        assert_eq!(all.publish(|| ()), Err(Busy));
        assert!(all.is_active());
        all.leave(pair);
        assert_eq!(all.publish(|| 7), Ok(7));
        // A pair that started during the change is waited for; it does not wait for the change.
        let table = AtomicU32::new(1);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let pair = all.enter();
                        let seen = table.load(Ordering::Relaxed);
                        thread::yield_now();
                        assert_eq!(table.load(Ordering::Relaxed), seen);
                        all.leave(pair);
                    }
                });
            }
            for i in 2..200 {
                all.publish_after_pairs(|| table.store(i, Ordering::Relaxed));
            }
        });
        assert!(!all.is_active());
    }
}

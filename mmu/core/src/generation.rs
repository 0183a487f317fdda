// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which state of the memslots does cached knowledge belong to? A 19-bit counter, near its wrap from the start.

use crate::sync::atomic::{AtomicU64, Ordering};
use umbra_mmu_abi::{GENERATION_BITS, Generation};

/// The largest number that the field of an MMIO spte holds.
pub const GENERATION_MAX: u32 = (1 << GENERATION_BITS) - 1;

/// The counter wraps when it reaches this (GEN-5).
pub const GENERATION_WRAP: u32 = GENERATION_MAX - 1;

/// First value where nothing else is asked for: three changes from the wrap, so that every boot sees one.
pub const GENERATION_FIRST: Generation = Generation(GENERATION_WRAP - 3);

/// How a step of the generation ended.
#[must_use = "a wrapped generation leaves MMIO sptes that look fresh: they must be zapped"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bumped {
    /// The next number.
    Next(Generation),
    /// The counter starts again: every MMIO spte must go.
    Wrapped(Generation),
}

/// The memslot generation (`kvm_memslots(kvm)->generation`), with all its turns: one word, read without a lock.
#[derive(Debug)]
pub struct SlotGeneration(AtomicU64);

/// A change is in progress (KVM: `KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`).
// REQ: GEN-6
const IN_PROGRESS: u64 = 1 << GENERATION_BITS;
/// One whole turn of the counter.
const TURN: u64 = IN_PROGRESS << 1;

/// A state of the slots that nothing later equals: the generation and the turns before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// Equal to no state of the slots.
    pub const NEVER: Self = Self(IN_PROGRESS);

    /// The number that an spte can hold.
    #[inline]
    pub const fn generation(self) -> Generation {
        Generation((self.0 & (IN_PROGRESS - 1)) as u32)
    }
}

impl SlotGeneration {
    /// Starts at `first`; a value at or past the wrap counts as the last one before it.
    pub fn new(first: Generation) -> Self {
        Self(AtomicU64::new(first.0.min(GENERATION_WRAP - 1).into()))
    }

    /// The number that valid knowledge carries.
    #[inline]
    pub fn current(&self) -> Generation {
        Stamp(self.0.load(Ordering::Acquire)).generation()
    }

    /// The state to cache under, to be read before the slots are; `None` while a change is in progress, because what is
    /// seen then may be gone when the change ends.
    // REQ: GEN-6
    #[inline]
    pub fn cacheable(&self) -> Option<Stamp> {
        let word = self.0.load(Ordering::Acquire);
        (word & IN_PROGRESS == 0).then_some(Stamp(word))
    }

    /// A change of the slots starts.
    pub fn begin(&self) {
        let before = self.0.fetch_or(IN_PROGRESS, Ordering::AcqRel);
        assert_eq!(before & IN_PROGRESS, 0, "memslot changes are serialised by slots_lock");
    }

    /// The change was refused or rolled back: nothing that was cached became wrong.
    pub fn abandon(&self) {
        self.0.fetch_and(!IN_PROGRESS, Ordering::AcqRel);
    }

    /// The change is published. O(1), whatever is mapped.
    // REQ: GEN-3, GEN-5
    pub fn finish(&self) -> Bumped {
        let word = self.0.load(Ordering::Relaxed);
        assert_ne!(word & IN_PROGRESS, 0, "a change ends that never began");
        let turns = word & !(TURN - 1);
        let next = Stamp(word).generation().0 + 1;
        if next >= GENERATION_WRAP {
            self.0.store(turns + TURN, Ordering::Release);
            Bumped::Wrapped(Generation(0))
        } else {
            self.0.store(turns | u64::from(next), Ordering::Release);
            Bumped::Next(Generation(next))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // REQ: GEN-5
    #[test]
    fn the_first_value_wraps_within_three_changes() {
        let generation = SlotGeneration::new(GENERATION_FIRST);
        let mut wraps = 0;
        for _ in 0..3 {
            generation.begin();
            wraps += matches!(generation.finish(), Bumped::Wrapped(Generation(0))) as u32;
        }
        assert_eq!(wraps, 1);
    }

    // REQ: GEN-5: 0x7fffe and 0x7ffff are never in use.
    #[test]
    fn the_last_two_numbers_are_never_current() {
        for first in [GENERATION_WRAP - 2, GENERATION_WRAP, GENERATION_MAX, u32::MAX] {
            let generation = SlotGeneration::new(Generation(first));
            for _ in 0..4 {
                assert!(generation.current().0 < GENERATION_WRAP);
                generation.begin();
                let _: Generation = match generation.finish() {
                    Bumped::Next(g) | Bumped::Wrapped(g) => g,
                };
            }
        }
    }

    // REQ: GEN-6
    #[test]
    fn nothing_is_cached_during_a_change() {
        let generation = SlotGeneration::new(Generation(7));
        generation.begin();
        assert_eq!(generation.cacheable(), None);
        assert_eq!(generation.finish(), Bumped::Next(Generation(8)));
        assert_eq!(generation.cacheable().map(Stamp::generation), Some(Generation(8)));
    }

    /// The number comes back after a whole turn; the stamp does not.
    // REQ: GEN-7
    #[test]
    fn a_stamp_never_comes_back() {
        let generation = SlotGeneration::new(Generation(GENERATION_WRAP - 1));
        let first = generation.cacheable();
        for _ in 0..GENERATION_WRAP {
            generation.begin();
            assert!(generation.cacheable().is_none());
            let _: Generation = match generation.finish() {
                Bumped::Next(g) | Bumped::Wrapped(g) => g,
            };
        }
        assert_eq!(generation.current(), Generation(GENERATION_WRAP - 1));
        assert_ne!(generation.cacheable(), first);
    }
}

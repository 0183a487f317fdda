// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which state of the memslots does cached knowledge belong to? A 19-bit counter, near its wrap from the start.

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

/// The memslot generation (`kvm_memslots(kvm)->generation`).
#[derive(Debug)]
pub struct SlotGeneration {
    value: Generation,
    // REQ: GEN-6
    update: Update,
}

#[derive(Debug, PartialEq, Eq)]
enum Update {
    None,
    InProgress,
}

impl SlotGeneration {
    /// Starts at `first`; a value at or past the wrap counts as the last one before it.
    pub fn new(first: Generation) -> Self {
        Self {
            value: Generation(first.0.min(GENERATION_WRAP - 1)),
            update: Update::None,
        }
    }

    /// The number that valid knowledge carries.
    pub fn current(&self) -> Generation {
        self.value
    }

    /// The number to cache under; `None` while a change is in progress, because what is seen then may be gone when
    /// the change ends.
    // REQ: GEN-6
    pub fn cacheable(&self) -> Option<Generation> {
        match self.update {
            Update::None => Some(self.value),
            Update::InProgress => None,
        }
    }

    /// A change of the slots starts.
    pub fn begin(&mut self) {
        assert_eq!(
            self.update,
            Update::None,
            "memslot changes are serialised by slots_lock"
        );
        self.update = Update::InProgress;
    }

    /// The change was refused or rolled back: nothing that was cached became wrong.
    pub fn abandon(&mut self) {
        self.update = Update::None;
    }

    /// The change is published. O(1), whatever is mapped.
    // REQ: GEN-3, GEN-5
    pub fn finish(&mut self) -> Bumped {
        assert_eq!(self.update, Update::InProgress, "a change ends that never began");
        self.update = Update::None;
        let next = self.value.0 + 1;
        if next >= GENERATION_WRAP {
            self.value = Generation(0);
            Bumped::Wrapped(self.value)
        } else {
            self.value = Generation(next);
            Bumped::Next(self.value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // REQ: GEN-5
    #[test]
    fn the_first_value_wraps_within_three_changes() {
        let mut generation = SlotGeneration::new(GENERATION_FIRST);
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
            let mut generation = SlotGeneration::new(Generation(first));
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
        let mut generation = SlotGeneration::new(Generation(7));
        generation.begin();
        assert_eq!(generation.cacheable(), None);
        assert_eq!(generation.finish(), Bumped::Next(Generation(8)));
        assert_eq!(generation.cacheable(), Some(Generation(8)));
    }
}

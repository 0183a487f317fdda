// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest fault on the same addresses again and again although their mappings are in place?

use umbra_mmu_abi::{Gfn, Gpa};

/// More faults in a row than any instruction can need.
const LIMIT: u32 = 256;
/// Pages that one instruction can touch, with their page-table pages, times two.
const REMEMBERED: usize = 16;

/// The last faults that ended with "mapped, go on".
#[derive(Clone, Copy, Debug)]
pub struct Livelock {
    /// Up to `next` they count; when all do, they are forgotten and the next fault is the first again.
    seen: [(u64, Gfn); REMEMBERED],
    next: usize,
    /// A bit for each of them, by a sum of what they are: a fault whose bit is clear is not among them.
    sums: u64,
    repeats: u32,
}

impl Default for Livelock {
    fn default() -> Self {
        Self {
            seen: [(0, Gfn::new(0)); REMEMBERED],
            next: 0,
            sums: 0,
            repeats: 0,
        }
    }
}

impl Livelock {
    /// A fault at `rip` on `gpa` was answered with a mapping. `Some`: it has been for too long; how often.
    #[inline]
    pub fn resumed(&mut self, rip: u64, gpa: Gpa) -> Option<u32> {
        let this = (rip, gpa.gfn());
        let sum = 1 << (rip.wrapping_add(gpa.gfn().raw()) % 64);
        if self.sums & sum != 0 && self.remembers(this) {
            self.repeats += 1;
            return (self.repeats >= LIMIT).then_some(self.repeats);
        }
        self.repeats = 0;
        if self.next >= REMEMBERED {
            (self.next, self.sums) = (0, 0);
        }
        self.seen[self.next] = this;
        self.next += 1;
        self.sums |= sum;
        None
    }

    #[cold]
    fn remembers(&self, fault: (u64, Gfn)) -> bool {
        self.seen.iter().take(self.next).any(|seen| *seen == fault)
    }

    /// The guest left for another reason: it lives.
    #[inline]
    pub fn progress(&mut self) {
        self.repeats = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_that_come_back_are_noticed_even_if_two_alternate() {
        let mut l = Livelock::default();
        let mut n = 0;
        while l.resumed(0x1000, Gpa::new(0x5000 + 0x1000 * (n & 1))).is_none() {
            n += 1;
            assert!(n < 2 * u64::from(LIMIT));
        }
    }

    #[test]
    fn as_many_pages_as_one_instruction_can_touch_may_alternate() {
        let mut l = Livelock::default();
        let mut n = 0;
        // Some that pass, so that the first of those that stay are forgotten once.
        for page in 0..REMEMBERED as u64 - 3 {
            assert_eq!(l.resumed(0x900, Gpa::new(page << 12)), None);
        }
        // Their sums are the same.
        while l.resumed(0x1000, Gpa::new((n % 8) << 18)).is_none() {
            n += 1;
            assert!(n < 4 * u64::from(LIMIT));
        }
    }

    #[test]
    fn touching_fresh_pages_for_ever_is_no_livelock() {
        let mut l = Livelock::default();
        for n in 0..10_000u64 {
            assert_eq!(l.resumed(0x1000, Gpa::new(n << 12)), None);
        }
    }

    #[test]
    fn other_exits_in_between_start_the_count_again() {
        let mut l = Livelock::default();
        for _ in 0..10 * LIMIT {
            assert_eq!(l.resumed(0x1000, Gpa::new(0x5000)), None);
            assert_eq!(l.resumed(0x1000, Gpa::new(0x5000)), None);
            l.progress();
        }
    }
}

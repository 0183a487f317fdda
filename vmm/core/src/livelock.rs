// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest fault on the same addresses again and again although their mappings are in place?

use umbra_mmu_abi::{Gfn, Gpa};

/// More faults in a row than any instruction can need.
const LIMIT: u32 = 256;
/// Pages that one instruction can touch, with their page-table pages, times two.
const REMEMBERED: usize = 16;

/// The last faults that ended with "mapped, go on".
#[derive(Clone, Copy, Debug, Default)]
pub struct Livelock {
    seen: [Option<(u64, Gfn)>; REMEMBERED],
    next: usize,
    repeats: u32,
}

impl Livelock {
    /// A fault at `rip` on `gpa` was answered with a mapping. `Some`: it has been for too long; how often.
    #[inline]
    pub fn resumed(&mut self, rip: u64, gpa: Gpa) -> Option<u32> {
        let this = Some((rip, gpa.gfn()));
        if self.seen.contains(&this) {
            self.repeats += 1;
            return (self.repeats >= LIMIT).then_some(self.repeats);
        }
        self.repeats = 0;
        self.seen[self.next] = this;
        self.next = (self.next + 1) % REMEMBERED;
        None
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which pages of a slot were written since somebody asked? A bit for each, set and taken without a lock.
//!
//! A fault makes its spte writable first and sets the bit second, before the guest runs on. The other way round a write
//! would be lost:
//! ```text
//! fault                           get and clear
//! -----                           -------------
//! set the bit
//!                                 take the bit
//!                                 write-protect the page (it is), flush
//! make the spte writable
//! (the guest writes: no bit)
//! ```
//! In the right order the same steps leave a bit for the next time, at worst for a page that was not written again.

use crate::slot_data::filled;
use crate::stage2::Resource;
use crate::sync::atomic::{AtomicU64, Ordering};
use alloc::vec::Vec;
use umbra_mmu_abi::Gfn;

/// Pages in one word of the log.
pub const PAGES_PER_WORD: u32 = 64;

/// The dirty log of one slot. It is there from the slot's start, so that logging is switched on by the slot's flags
/// alone: whoever sees the flag finds a log to write to.
// REQ: DT-1
#[derive(Debug)]
pub struct DirtyLog {
    base: Gfn,
    npages: u32,
    words: Vec<AtomicU64>,
}

impl DirtyLog {
    /// For a slot of `npages` > 0 from `base`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(base: Gfn, npages: u32) -> Result<Self, Resource> {
        Ok(Self {
            base,
            npages,
            words: filled(npages.div_ceil(PAGES_PER_WORD).into())?,
        })
    }

    fn page(&self, gfn: Gfn) -> usize {
        let page = gfn.raw().wrapping_sub(self.base.raw());
        debug_assert!(page < self.npages as u64, "{gfn} is not in the slot");
        page as usize
    }

    /// The page was written, or can be from now on. After its spte became writable; see above.
    // REQ: DT-1
    #[inline]
    pub fn mark(&self, gfn: Gfn) {
        let page = self.page(gfn);
        let (word, bit) = (&self.words[page / 64], 1 << (page % 64));
        // Most pages that are written are written again: a load is cheaper. AcqRel: see `take`.
        if word.load(Ordering::Acquire) & bit == 0 {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Whether the page was written.
    pub fn is_marked(&self, gfn: Gfn) -> bool {
        let page = self.page(gfn);
        self.words[page / 64].load(Ordering::Acquire) & 1 << (page % 64) != 0
    }

    /// Words of the log.
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// The first page of a word.
    pub fn gfn_of(&self, word: usize) -> Gfn {
        Gfn::new(self.base.raw() + word as u64 * PAGES_PER_WORD as u64)
    }

    /// The pages that are marked, 64 from [`DirtyLog::gfn_of`]; they stay so.
    pub fn get(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Acquire)
    }

    /// Takes the marks that `mask` names, by one exchange: each mark is in exactly one answer. The caller write-protects
    /// those pages and flushes before anybody looks at their content.
    // REQ: DT-1, DT-3
    #[inline]
    pub fn take(&self, word: usize, mask: u64) -> u64 {
        let word = &self.words[word];
        match word.load(Ordering::Acquire) & mask {
            0 => 0,
            _ => word.fetch_and(!mask, Ordering::AcqRel) & mask,
        }
    }

    /// Marks what is marked in the log of a slot of the same length, page by page.
    pub fn mark_all_of(&self, other: &Self) {
        for (word, other) in self.words.iter().zip(&other.words) {
            match other.load(Ordering::Acquire) {
                0 => {}
                marks => {
                    word.fetch_or(marks, Ordering::AcqRel);
                }
            }
        }
    }

    /// Forgets everything, when logging starts.
    pub fn clear(&self) {
        // Most are clear, and stay as they are.
        for word in self.words.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
            word.store(0, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        8 * self.words.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    // REQ: DT-1: clear-range leaves alone what it was not asked for.
    #[test]
    fn only_the_marks_that_are_named_are_taken() {
        let log = DirtyLog::new(Gfn::new(0), 128).unwrap();
        for page in [0, 1, 63, 64] {
            log.mark(Gfn::new(page));
        }
        assert_eq!(log.take(0, 0b101 | 1 << 63), 1 | 1 << 63);
        assert_eq!((log.get(0), log.get(1)), (0b10, 1));
        assert_eq!((log.take(0, u64::MAX), log.take(0, u64::MAX)), (0b10, 0));
    }

    // REQ: DT-1, DT-3: four threads mark, one takes. Every mark is taken once, or is still there.
    #[test]
    fn no_mark_is_lost_and_none_is_taken_twice() {
        let base = Gfn::new(0x1005);
        let log = DirtyLog::new(base, 256).unwrap();
        let mut taken = [0u32; 256];
        let marked = thread::scope(|scope| {
            let markers: std::vec::Vec<_> = (0..4u64)
                .map(|thread| {
                    let log = &log;
                    // Each has pages of its own, interleaved in the same words.
                    scope.spawn(move || {
                        let mut marked = [0u32; 256];
                        for i in 0..20_000u64 {
                            let page = i * 7 % 64 * 4 + thread;
                            let gfn = Gfn::new(base.raw() + page);
                            if !log.is_marked(gfn) {
                                log.mark(gfn);
                                marked[page as usize] += 1;
                            }
                        }
                        marked
                    })
                })
                .collect();
            for i in 0..30_000usize {
                let word = i % 4;
                let mask = if i % 3 == 0 { u64::MAX } else { 0x0f0f_3333_5555_00ff };
                let bits = log.take(word, mask);
                assert_eq!(bits & !mask, 0);
                (0..64)
                    .filter(|bit| bits >> bit & 1 != 0)
                    .for_each(|bit| taken[word * 64 + bit] += 1);
            }
            markers
                .into_iter()
                .map(|marker| marker.join().unwrap())
                .fold([0; 256], |mut sum, of| {
                    sum.iter_mut().zip(of).for_each(|(sum, of)| *sum += of);
                    sum
                })
        });
        for page in 0..256 {
            let left = u32::from(log.is_marked(Gfn::new(base.raw() + page as u64)));
            assert_eq!(taken[page] + left, marked[page], "page {page}");
        }
        log.clear();
        assert!((0..log.words()).all(|word| log.get(word) == 0));
        assert_eq!(log.gfn_of(3), Gfn::new(base.raw() + 192));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where may a large spte be? A count of the reasons against it for each large page that a slot touches (KVM:
//! `lpage_info`, `disallow_lpage`; earlier `write_count`).

use crate::slot_data::filled;
use crate::stage2::Resource;
use crate::sync::atomic::{AtomicU32, Ordering};
use alloc::vec::Vec;
use umbra_mmu_abi::{Gfn, PageLevel};

/// The counts of one slot.
// REQ: LP-3
#[derive(Debug)]
pub struct LargeInfo {
    sizes: [Counts; 2],
}

#[derive(Debug)]
struct Counts {
    /// The number of the first page of that size that the slot touches.
    first: u64,
    shift: u32,
    counts: Vec<AtomicU32>,
}

/// The sizes that are counted.
const SIZES: [PageLevel; 2] = [PageLevel::M2, PageLevel::G1];

impl LargeInfo {
    /// For a slot of `npages` > 0 from `base`. The pages at its ends that are not wholly inside start at 1, which nothing
    /// takes back.
    ///
    /// # Errors
    /// Not enough memory.
    // REQ: LP-2, LP-3
    pub fn new(base: Gfn, npages: u32) -> Result<Self, Resource> {
        let [large, huge] = SIZES.map(|size| Counts::new(base, npages, size));
        Ok(Self { sizes: [large?, huge?] })
    }

    fn of(&self, size: PageLevel) -> Option<&Counts> {
        match size {
            PageLevel::K4 => None,
            PageLevel::M2 => Some(&self.sizes[0]),
            PageLevel::G1 => Some(&self.sizes[1]),
        }
    }

    /// Another reason against large sptes over `gfn`: it is write-protected. `mmu_lock` is held for writing.
    // REQ: LP-3
    pub fn disallow(&self, gfn: Gfn) {
        for counts in &self.sizes {
            counts.at(gfn).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One reason less. `mmu_lock` is held for writing.
    // REQ: LP-3
    pub fn allow(&self, gfn: Gfn) {
        for counts in &self.sizes {
            let before = counts.at(gfn).fetch_sub(1, Ordering::Relaxed);
            assert_ne!(
                before, 0,
                "large pages over {gfn} are allowed more often than disallowed"
            );
        }
    }

    /// Whether an spte of `size` may cover `gfn`, as far as the slot and write-protected pages go. `mmu_lock` is held.
    // REQ: LP-2
    #[inline]
    pub fn allows(&self, size: PageLevel, gfn: Gfn) -> bool {
        self.of(size)
            .is_none_or(|counts| counts.at(gfn).load(Ordering::Relaxed) == 0)
    }

    /// The largest size that may cover `gfn`, `most` at the most.
    // REQ: LP-2
    #[inline]
    pub fn largest(&self, gfn: Gfn, most: PageLevel) -> PageLevel {
        let size = if most == PageLevel::G1 && self.allows(PageLevel::G1, gfn) {
            PageLevel::G1
        } else if most >= PageLevel::M2 && self.allows(PageLevel::M2, gfn) {
            PageLevel::M2
        } else {
            PageLevel::K4
        };
        debug_assert!(size <= most);
        size
    }

    /// How many reasons there are against an spte of `size` over `gfn`.
    pub fn count(&self, size: PageLevel, gfn: Gfn) -> u32 {
        self.of(size).map_or(0, |counts| counts.at(gfn).load(Ordering::Relaxed))
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.sizes.iter().map(|size| 4 * size.counts.len()).sum()
    }
}

impl Counts {
    fn new(base: Gfn, npages: u32, size: PageLevel) -> Result<Self, Resource> {
        let shift = size.frame_shift();
        let end = base.raw() + npages as u64;
        let first = base.raw() >> shift;
        let counts: Vec<AtomicU32> = filled(((end - 1) >> shift) - first + 1)?;
        if !base.raw().is_multiple_of(size.frames()) {
            counts[0].fetch_add(1, Ordering::Relaxed);
        }
        if !end.is_multiple_of(size.frames()) {
            counts[counts.len() - 1].fetch_add(1, Ordering::Relaxed);
        }
        Ok(Self { first, shift, counts })
    }

    #[inline]
    fn at(&self, gfn: Gfn) -> &AtomicU32 {
        &self.counts[((gfn.raw() >> self.shift) - self.first) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // REQ: LP-2, LP-3: every alignment of both ends, to a quarter of 2 MiB: only pages wholly inside may be large.
    #[test]
    fn pages_across_the_ends_are_never_large() {
        let large = PageLevel::M2.frames();
        for (base, npages) in (0..9u64).flat_map(|b| (1..17u64).map(move |n| (b * 128, n * 128))) {
            let info = LargeInfo::new(Gfn::new(base), npages as u32).unwrap();
            for gfn in (base..base + npages).step_by(64).map(Gfn::new) {
                // Taking back what was added does not touch what the ends started with.
                info.disallow(gfn);
                info.allow(gfn);
                let page = gfn.align_down(PageLevel::M2).raw();
                let inside = base <= page && page + large <= base + npages;
                assert_eq!(info.allows(PageLevel::M2, gfn), inside, "{base:#x}+{npages:#x} {gfn}");
                assert!(!info.allows(PageLevel::G1, gfn) && info.allows(PageLevel::K4, gfn));
            }
        }
        let info = LargeInfo::new(Gfn::new(1 << 18), 1 << 18).unwrap();
        assert_eq!(info.largest(Gfn::new(1 << 18), PageLevel::G1), PageLevel::G1);
        assert_eq!(info.largest(Gfn::new(1 << 18), PageLevel::M2), PageLevel::M2);
    }

    // REQ: LP-2, LP-3
    #[test]
    fn a_write_protected_page_keeps_large_pages_away() {
        let info = LargeInfo::new(Gfn::new(0), 1 << 19).unwrap();
        let at = Gfn::new(0x234);
        let largest = |gfn: u64| info.largest(Gfn::new(gfn), PageLevel::G1);
        info.disallow(at);
        info.disallow(Gfn::new(0x300));
        assert_eq!((largest(0x3ff), largest(0x400)), (PageLevel::K4, PageLevel::M2));
        assert_eq!(largest(1 << 18), PageLevel::G1);
        assert_eq!((info.count(PageLevel::M2, at), info.count(PageLevel::G1, at)), (2, 2));
        info.allow(at);
        assert_eq!(largest(0x200), PageLevel::K4);
        info.allow(Gfn::new(0x300));
        assert_eq!(largest(0x200), PageLevel::G1);
    }
}

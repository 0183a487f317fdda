// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the MMU know about a slot's pages? Reverse maps, where large pages may be, and the dirty log: made with
//! the slot, changed by many threads, kept while only its flags change.

use crate::dirty::DirtyLog;
use crate::large::LargeInfo;
use crate::pte_list::{Added, Left, Places, PteEntries, PteList, PteReserve};
use crate::stage2::Resource;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table::SptePlace;
use alloc::vec::Vec;
use core::ops::{ControlFlow, Range};
use umbra_mmu_abi::{Gfn, PageLevel};

/// What is known about the pages of one slot. 8.4 bytes for each 4K page.
#[derive(Debug)]
pub struct SlotData {
    levels: [LevelRmap; PageLevel::ALL.len()],
    /// Where large sptes may not be.
    pub large: LargeInfo,
    /// Which pages were written.
    pub dirty: DirtyLog,
}

/// Makes a vector of `len` equal things, or says that there is no memory for it.
pub(crate) fn filled<T: Default>(len: u64) -> Result<Vec<T>, Resource> {
    let mut all = Vec::new();
    all.try_reserve_exact(len as usize).map_err(|_| Resource::Memory)?;
    all.resize_with(len as usize, T::default);
    Ok(all)
}

impl SlotData {
    /// For a slot of `npages` > 0 from `base`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(base: Gfn, npages: u32) -> Result<Self, Resource> {
        let [small, large, huge] = PageLevel::ALL.map(|size| LevelRmap::new(base, npages, size));
        Ok(Self {
            levels: [small?, large?, huge?],
            large: LargeInfo::new(base, npages)?,
            dirty: DirtyLog::new(base, npages)?,
        })
    }

    #[inline(always)]
    fn level(&self, size: PageLevel) -> &LevelRmap {
        &self.levels[size as usize - 1]
    }

    /// Adds an spte that maps `gfn` with a page of `size`; see [`PteList::add`].
    #[inline]
    pub fn add(&self, entries: &PteEntries, reserve: &mut PteReserve, gfn: Gfn, size: PageLevel, place: SptePlace) {
        let level = self.level(size);
        let at = level.at(gfn);
        if level.heads[at].add(entries, reserve, place) == Added::First {
            level.mark(at);
        }
    }

    /// Adds an spte that maps `gfn` with a page of `size`, if there is no other; `false`: there is, and nothing was done.
    #[inline(always)]
    pub fn add_only(&self, gfn: Gfn, size: PageLevel, place: SptePlace) -> bool {
        let level = self.level(size);
        let at = level.at(gfn);
        let added = level.heads[at].add_only(place);
        if added {
            level.mark(at);
        }
        added
    }

    /// Removes an spte that was added.
    #[inline]
    pub fn remove(&self, entries: &PteEntries, gfn: Gfn, size: PageLevel, place: SptePlace) {
        let level = self.level(size);
        let at = level.at(gfn);
        if level.heads[at].remove(entries, place) == Left::Empty {
            level.unmark(at);
        }
    }

    /// One of the sptes that map `gfn` with a page of `size`.
    #[inline]
    pub fn first(&self, entries: &PteEntries, gfn: Gfn, size: PageLevel) -> Option<SptePlace> {
        let level = self.level(size);
        level.heads[level.at(gfn)].first(entries)
    }

    /// The sptes that map `gfn` with a page of `size`; see [`PteList::places`].
    #[inline]
    pub fn places<'a>(&'a self, entries: &'a PteEntries, gfn: Gfn, size: PageLevel) -> Places<'a> {
        let level = self.level(size);
        level.heads[level.at(gfn)].places(entries)
    }

    /// The first page of `size` at or after `from` and before `end` that is mapped, without a look at those between
    /// that are not. `from` and `end` lie in the slot or at its end. What is added meanwhile may be missed: a search that
    /// has to be complete is made while `mmu_lock` is held for writing.
    // REQ: SP-12
    #[inline]
    pub fn next_mapped(&self, size: PageLevel, from: Gfn, end: Gfn) -> Option<Gfn> {
        let level = self.level(size);
        if from >= end {
            return None;
        }
        let range = level.at(from)..level.at(Gfn::new(end.raw() - 1)) + 1;
        // The first large page may begin before the slot.
        let gfn = |at: usize| Gfn::new((level.first + at as u64) << level.shift);
        level.used.next(range).map(gfn)
    }

    /// Calls `act` with every page of `size` in `range` that is mapped, and its sptes, until it breaks. `act` must not add
    /// or remove sptes. As complete as [`SlotData::next_mapped`] is, and faster where many are mapped.
    // REQ: SP-12
    #[inline]
    pub fn each_mapped<B>(
        &self,
        size: PageLevel,
        range: Range<Gfn>,
        mut act: impl FnMut(Gfn, &PteList) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        let level = self.level(size);
        let (start, last) = (level.at(range.start), level.at(Gfn::new(range.end.raw() - 1)));
        let mut from = start;
        while let Some(at) = level.used.next(from..last + 1) {
            let word = at / 64;
            let mut mask = u64::MAX << (at % 64);
            if last / 64 == word {
                mask &= u64::MAX >> (63 - last % 64);
            }
            level.each_of_word(word, mask, &mut act)?;
            from = (word + 1) * 64;
            if from > last {
                break;
            }
        }
        ControlFlow::Continue(())
    }

    /// The same for those of 64 pages of 4K that `mask` names: as a word of the dirty log has them.
    #[inline]
    pub fn each_mapped_of<B>(
        &self,
        word: usize,
        mask: u64,
        mut act: impl FnMut(Gfn, &PteList) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.level(PageLevel::K4).each_of_word(word, mask, &mut act)
    }

    /// Those of 64 pages of 4K that `mask` names, where one spte maps them: `act` gets the first bit's page, and the bit and
    /// the spte's place as [`SptePlace::pack`] has it. The pages that more sptes map are the answer. Where it breaks, the
    /// pages from there on are in the answer too.
    #[inline(always)]
    pub(crate) fn each_single_of(
        &self,
        word: usize,
        mask: u64,
        mut act: impl FnMut(Gfn, u32, u64) -> ControlFlow<()>,
    ) -> u64 {
        let level = self.level(PageLevel::K4);
        let mut marks = level.used.words[word].load(Ordering::SeqCst) & mask;
        let first = Gfn::new(level.first + word as u64 * 64);
        let heads: &[PteList; 64] = level.heads[word * 64..][..64].try_into().expect("whole words");
        let mut chains = 0;
        while marks != 0 {
            let bit = marks.trailing_zeros();
            match heads[bit as usize].single() {
                Ok(packed) => {
                    if act(first, bit, packed).is_break() {
                        return chains | marks;
                    }
                }
                Err(()) => chains |= 1 << bit,
            }
            marks &= marks - 1;
        }
        chains
    }

    /// The words of the index that have marks in a range, and which of their pages are in it.
    pub(crate) fn marked_words(&self, range: Range<Gfn>) -> impl Iterator<Item = (usize, u64)> {
        let level = self.level(PageLevel::K4);
        let start = level.at(range.start);
        let end = start + (range.end.raw() - range.start.raw()) as usize;
        let mut from = start;
        core::iter::from_fn(move || {
            let at = (from < end).then(|| level.used.next(from..end)).flatten()?;
            let word = at / 64;
            from = (word + 1) * 64;
            let last = if from > end { u64::MAX >> (from - end) } else { u64::MAX };
            Some((word, u64::MAX << (at % 64) & last))
        })
    }

    /// How many sptes there are.
    pub fn count(&self, entries: &PteEntries) -> u32 {
        let heads = self.levels.iter().flat_map(|level| &level.heads);
        heads.map(|list| list.places(entries).count() as u32).sum()
    }
}

/// The reverse map of one slot for one page size.
// REQ: RM-1
#[derive(Debug)]
struct LevelRmap {
    /// The number of the first page of that size that the slot touches.
    first: u64,
    shift: u32,
    heads: Vec<PteList>,
    used: UsedIndex,
}

impl LevelRmap {
    fn new(base: Gfn, npages: u32, size: PageLevel) -> Result<Self, Resource> {
        let shift = size.frame_shift();
        let first = base.raw() >> shift;
        let count = ((base.raw() + npages as u64 - 1) >> shift) - first + 1;
        Ok(Self {
            first,
            shift,
            // Whole words of the index, so that a search needs no look at the length.
            heads: filled(count.next_multiple_of(64))?,
            used: UsedIndex::new(count)?,
        })
    }

    #[inline]
    fn at(&self, gfn: Gfn) -> usize {
        ((gfn.raw() >> self.shift) - self.first) as usize
    }

    /// The marked heads of a word.
    #[inline(always)]
    fn each_of_word<B>(
        &self,
        word: usize,
        mask: u64,
        act: &mut impl FnMut(Gfn, &PteList) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut marks = self.used.words[word].load(Ordering::SeqCst) & mask;
        let (first, heads) = (self.first + word as u64 * 64, &self.heads[word * 64..]);
        while marks != 0 {
            let bit = marks.trailing_zeros() as usize;
            marks &= marks - 1;
            if let Some(list) = heads.get(bit) {
                act(Gfn::new((first + bit as u64) << self.shift), list)?;
            }
        }
        ControlFlow::Continue(())
    }

    #[inline(always)]
    fn mark(&self, at: usize) {
        self.used.mark(at);
    }

    /// Clears the mark of a head that became empty. Another thread may fill it at the same time:
    /// ```text
    /// this thread                     the other one
    /// -----------                     -------------
    /// head = empty
    ///                                 head = its spte
    ///                                 mark
    /// clear the mark
    /// look at the head again: mark
    /// ```
    fn unmark(&self, at: usize) {
        self.used.clear(at);
        if !self.heads[at].is_empty() {
            self.used.mark(at);
        }
    }
}

/// Which heads are in use: a bit for each, and a bit for each 64 of those.
// REQ: SP-12
#[derive(Debug)]
struct UsedIndex {
    words: Vec<AtomicU64>,
    above: Vec<AtomicU64>,
}

impl UsedIndex {
    fn new(heads: u64) -> Result<Self, Resource> {
        let words = heads.div_ceil(64);
        Ok(Self {
            words: filled(words)?,
            above: filled(words.div_ceil(64))?,
        })
    }

    #[inline(always)]
    fn mark(&self, at: usize) {
        let word = &self.words[at / 64];
        let others = word.load(Ordering::SeqCst);
        // While others are marked, the bit above is set, or about to be set by one of them.
        let beside = others != 0
            && word
                .compare_exchange(others, others | 1 << (at % 64), Ordering::SeqCst, Ordering::Relaxed)
                .is_ok();
        if !beside {
            self.mark_first(at);
        }
    }

    #[cold]
    #[inline(never)]
    fn mark_first(&self, at: usize) {
        set(&self.words[at / 64], at % 64);
        set(&self.above[at / 4096], at / 64 % 64);
    }

    fn clear(&self, at: usize) {
        let word = &self.words[at / 64];
        let bit = 1 << (at % 64);
        if word.fetch_and(!bit, Ordering::SeqCst) == bit {
            self.above[at / 4096].fetch_and(!(1 << (at / 64 % 64)), Ordering::SeqCst);
            // As for the heads: somebody may have marked one of the 64 between.
            if word.load(Ordering::SeqCst) != 0 {
                set(&self.above[at / 4096], at / 64 % 64);
            }
        }
    }

    /// The first marked head in a range that is not empty.
    #[inline]
    fn next(&self, range: Range<usize>) -> Option<usize> {
        let first = self.words[range.start / 64].load(Ordering::SeqCst) >> (range.start % 64);
        if first != 0 {
            let at = range.start + first.trailing_zeros() as usize;
            return (at < range.end).then_some(at);
        }
        self.next_word(range.start / 64 + 1, range.end)
    }

    fn next_word(&self, from: usize, end: usize) -> Option<usize> {
        let mut word = from;
        while word * 64 < end {
            let above = self.above[word / 64].load(Ordering::SeqCst) >> (word % 64);
            if above == 0 {
                word = (word / 64 + 1) * 64;
                continue;
            }
            word += above.trailing_zeros() as usize;
            let marks = self.words.get(word)?.load(Ordering::SeqCst);
            if marks != 0 {
                let at = word * 64 + marks.trailing_zeros() as usize;
                return (at < end).then_some(at);
            }
            word += 1;
        }
        None
    }
}

#[inline]
fn set(word: &AtomicU64, bit: usize) {
    if word.load(Ordering::SeqCst) & 1 << bit == 0 {
        word.fetch_or(1 << bit, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::TableId;
    use std::thread;
    use std::vec::Vec;

    const BASE: Gfn = Gfn::new(0x1_23f0);

    fn place(i: u32) -> SptePlace {
        SptePlace {
            table: TableId::from_raw(i),
            index: (i % 512) as u16,
        }
    }

    fn mapped(data: &SlotData, size: PageLevel, from: Gfn, end: Gfn) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = from;
        while let Some(gfn) = data.next_mapped(size, at, end) {
            found.push(gfn.raw());
            at = Gfn::new((gfn.raw() + size.frames()).max(from.raw() + 1));
        }
        found
    }

    // REQ: RM-1, SP-12: against a plain list, for every size, with ranges that begin and end anywhere.
    #[test]
    fn the_search_finds_every_mapped_page_once() {
        let npages = 3 << 18;
        let end = Gfn::new(BASE.raw() + npages);
        let data = SlotData::new(BASE, npages as u32).unwrap();
        let entries = PteEntries::new(8).unwrap();
        let mut reserve = PteReserve::default();
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        for size in PageLevel::ALL {
            let mut wanted = std::collections::BTreeSet::new();
            for round in 0..600 {
                let gfn = Gfn::new(BASE.raw() + next(npages) / (1 + round % 7)).align_down(size);
                if wanted.remove(&gfn.raw()) {
                    data.remove(&entries, gfn, size, place(1));
                } else {
                    entries.top_up(&mut reserve, 2).unwrap();
                    data.add(&entries, &mut reserve, gfn, size, place(1));
                    wanted.insert(gfn.raw());
                }
                let from = Gfn::new(BASE.raw() + next(npages));
                let to = Gfn::new((from.raw() + next(1 << (round % 20)) + 1).min(end.raw()));
                let list: Vec<u64> = wanted.range(from.align_down(size).raw()..to.raw()).copied().collect();
                assert_eq!(mapped(&data, size, from, to), list, "{size:?} {from}..{to}");
            }
            assert_eq!(
                mapped(&data, size, BASE, end),
                wanted.iter().copied().collect::<Vec<_>>()
            );
            assert_eq!(data.count(&entries), wanted.len() as u32);
            for gfn in wanted {
                assert_eq!(data.first(&entries, Gfn::new(gfn), size), Some(place(1)));
                data.remove(&entries, Gfn::new(gfn), size, place(1));
            }
        }
    }

    // REQ: SP-12: with a search of all pages this test would take hours.
    #[test]
    fn finding_what_is_mapped_does_not_look_at_every_page() {
        let (pages, entries, mut reserve) = (1 << 24, PteEntries::new(2).unwrap(), PteReserve::default());
        let data = SlotData::new(Gfn::new(0), pages).unwrap();
        entries.top_up(&mut reserve, 2).unwrap();
        let end = Gfn::new(pages.into());
        for i in 0..10_000u64 {
            let gfn = Gfn::new(u64::from(pages) - 1 - i * 1601);
            data.add(&entries, &mut reserve, gfn, PageLevel::K4, place(1));
            assert_eq!(data.next_mapped(PageLevel::K4, Gfn::new(0), end), Some(gfn));
            data.remove(&entries, gfn, PageLevel::K4, place(1));
            assert_eq!(data.next_mapped(PageLevel::K4, Gfn::new(0), end), None);
        }
    }

    // REQ: RM-1, SP-12, LK-2: threads that share words of the index never leave it wrong.
    #[test]
    fn the_index_is_right_after_many_threads() {
        let (entries, data) = (PteEntries::new(64).unwrap(), SlotData::new(BASE, 4096).unwrap());
        thread::scope(|scope| {
            for thread in 0..4u32 {
                let (entries, data) = (&entries, &data);
                scope.spawn(move || {
                    let mut reserve = PteReserve::default();
                    for i in 0..40_000u64 {
                        entries.top_up(&mut reserve, 2).unwrap();
                        let gfn = Gfn::new(BASE.raw() + i % 3);
                        data.add(entries, &mut reserve, gfn, PageLevel::K4, place(thread));
                        let found = data.places(entries, gfn, PageLevel::K4).any(|at| at == place(thread));
                        assert!(found);
                        data.remove(entries, gfn, PageLevel::K4, place(thread));
                    }
                    // The last one stays. Its list may be one that others use.
                    entries.top_up(&mut reserve, 2).unwrap();
                    let gfn = Gfn::new(BASE.raw() + 64 * u64::from(thread));
                    data.add(entries, &mut reserve, gfn, PageLevel::K4, place(thread));
                    entries.release(&mut reserve);
                });
            }
        });
        let end = Gfn::new(BASE.raw() + 4096);
        let wanted: Vec<u64> = (0..4).map(|thread| BASE.raw() + 64 * thread).collect();
        assert_eq!(mapped(&data, PageLevel::K4, BASE, end), wanted);
        assert_eq!(entries.free_count(), 64);
    }

    // The budget is 24 bytes in EPT mode.
    #[test]
    fn a_page_takes_less_than_nine_bytes() {
        let data = SlotData::new(Gfn::new(0), 1 << 18).unwrap();
        let index = |used: &UsedIndex| 8 * (used.words.len() + used.above.len());
        let rmaps = data
            .levels
            .iter()
            .map(|level| 8 * level.heads.len() + index(&level.used));
        let bytes = rmaps.sum::<usize>() + data.large.bytes() + data.dirty.bytes();
        assert!(bytes < 9 << 18, "{bytes}");
    }
}

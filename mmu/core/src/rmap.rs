// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens to the sptes that map these pages? They are found through the reverse map, and lose W, their leaf, or
//! their youth.
//!
//! Everything here is done while mmu_lock is held for writing. Faults without it may set W or presence again
//! at the same time, so each word is changed by one exchange and the old one says what was there.

use crate::Mmu;
use crate::locks::LeafGuard;
use crate::pte_list::PteList;
use crate::slots::Slot;
use crate::spte::{Format, Leaf, Spte, SpteKind, Writable};
use crate::stage2::{Frame, Stage2, Stage2Error, TableLevel, TableWords, Unflushed};
use crate::table::{SptePlace, Tables, give_write, take_write};
use crate::zap::{Cut, Zap};
use core::ops::{ControlFlow, Range};
use umbra_mmu_abi::{Gfn, PageLevel};

/// Who may set W again that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protect {
    /// A fault without mmu_lock, where one page is one bit of the log; else the slow path.
    ForLog,
    /// Nobody before the host lets it: the page is read-only there.
    ByHost,
}

/// A leaf that the hardware did not have any more.
type Lost = (Gfn, PageLevel, SptePlace);

/// Leaves of one size that lose W.
struct Writes<'a, S: Stage2> {
    mmu: &'a Mmu<S>,
    stage2: LeafGuard<'a, S>,
    removed: &'a mut Unflushed,
    slot: &'a Slot,
    size: PageLevel,
    format: Format,
    bits: u64,
    /// Whether there are tables that are not hardware's any more.
    obsolete: bool,
}

impl<S: Stage2> Writes<'_, S> {
    #[inline(always)]
    fn take(&mut self, gfn: Gfn, list: &PteList) -> ControlFlow<Lost> {
        list.each(&self.mmu.pte_entries, |place| {
            // Most of them have no W any more.
            match self.mmu.tables.take_write(place, self.bits) {
                Some(left) if self.tell_hardware(gfn, place, left).is_err() => {
                    ControlFlow::Break((gfn, self.size, place))
                }
                Some(_) | None => ControlFlow::Continue(()),
            }
        })
    }

    /// Makes hardware's mapping what is left of the leaf. Whoever sets W again waits for the hardware until this is done.
    #[inline(always)]
    fn tell_hardware(&mut self, gfn: Gfn, place: SptePlace, left: Spte) -> Result<(), Stage2Error> {
        match self.format {
            Format::Ept if self.obsolete && self.mmu.is_obsolete(place.table) => {}
            Format::Ept => match self.stage2.protect(self.slot.id, gfn, &left.known_leaf(self.size)) {
                Ok(removed) => self.removed.and(removed),
                Err(error) => {
                    self.mmu.tables.set(place, Spte::EMPTY);
                    return Err(error);
                }
            },
            Format::Shadow(_) => self.removed.and(Unflushed::removed(1)),
        }
        Ok(())
    }
}

impl<S: Stage2> Zap<'_, S> {
    /// Takes away every leaf that maps a page of the range, also those that map more.
    // REQ: HOST-1, SP-12
    pub(crate) fn drop_leaves(&mut self, slot: &Slot, range: Range<Gfn>, cut: Cut) {
        if self
            .shadow(|shadow| shadow.zap_range(slot, range.start, range.end))
            .is_some()
        {
            return;
        }
        for size in PageLevel::ALL {
            let mut from = range.start;
            while let Some(gfn) = slot.data.next_mapped(size, from, range.end) {
                while let Some(place) = slot.data.first(&self.mmu.pte_entries, gfn, size) {
                    self.leaf(slot, place, cut);
                    if !self.mmu.is_obsolete(place.table) {
                        self.free_if_empty(place.table);
                    }
                }
                from = Gfn::new(gfn.raw() + size.frames());
            }
        }
    }

    /// The same for the pages of `pages` frames from `first`, wherever slots have them.
    // REQ: HOST-1, HOST-2
    pub(crate) fn drop_frames(&mut self, first: Frame, pages: u32, cut: Cut) {
        let slots = self.slots;
        for slot in slots.iter() {
            if let Some(range) = slot.gfns_of(first, pages) {
                self.drop_leaves(slot, range, cut);
            }
        }
    }

    /// Takes W from every leaf that maps a page of the range.
    // REQ: DT-1, DT-3, HOST-1
    pub(crate) fn write_protect(&mut self, slot: &Slot, range: Range<Gfn>, how: Protect) {
        for size in PageLevel::ALL {
            let mut from = range.start;
            while let Err((gfn, size, place)) = self.write_protect_size(slot, size, from..range.end, how) {
                self.lost(slot, gfn, size, place);
                from = gfn.max(range.start);
            }
        }
    }

    fn write_protect_size(
        &mut self,
        slot: &Slot,
        size: PageLevel,
        range: Range<Gfn>,
        how: Protect,
    ) -> Result<(), Lost> {
        if (size, how) == (PageLevel::K4, Protect::ForLog) {
            for (word, mask) in slot.data.marked_words(range) {
                self.take_writes(slot, word, mask)?;
            }
            return Ok(());
        }
        let mut writes = self.writes(slot, size, how);
        match slot.data.each_mapped(size, range, |gfn, list| writes.take(gfn, list)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(lost) => Err(lost),
        }
    }

    /// Takes W from the leaves that map those of 64 pages of 4K that `mask` names, so that faults without mmu_lock may set
    /// it again.
    // REQ: DT-1, DT-3
    #[inline]
    fn take_writes(&mut self, slot: &Slot, word: usize, mask: u64) -> Result<(), Lost> {
        let mmu = self.mmu;
        let mut others = mask;
        // The usual case, without what would slow it down: one spte a page, of tables that are hardware's.
        if let Some(words) = mmu.tables.in_a_row().filter(|_| self.tree.obsolete.is_none()) {
            let mut removed = 0;
            let spte = |packed: u64| words.get(packed as usize);
            others = match mmu.tables.format() {
                Format::Ept => {
                    let mut stage2 = mmu.effects.lock(self.held);
                    slot.data.each_single_of(word, mask, |first, bit, packed| {
                        let Some(spte) = spte(packed) else {
                            return ControlFlow::Continue(());
                        };
                        if let Some(left) = take_write(spte) {
                            let leaf = left.known_leaf(PageLevel::K4);
                            match stage2.protect(slot.id, Gfn::new(first.raw() + u64::from(bit)), &leaf) {
                                Ok(unflushed) => removed += unflushed.settle(),
                                // Once more, where it is known what to do.
                                Err(_) => {
                                    give_write(spte);
                                    return ControlFlow::Break(());
                                }
                            }
                        }
                        ControlFlow::Continue(())
                    })
                }
                Format::Shadow(_) => slot.data.each_single_of(word, mask, |_, _, packed| {
                    if spte(packed).is_some_and(|spte| take_write(spte).is_some()) {
                        removed += 1;
                    }
                    ControlFlow::Continue(())
                }),
            };
            self.removed.and(Unflushed::removed(removed));
        }
        if others == 0 {
            return Ok(());
        }
        let mut writes = self.writes(slot, PageLevel::K4, Protect::ForLog);
        match slot
            .data
            .each_mapped_of(word, others, |gfn, list| writes.take(gfn, list))
        {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(lost) => Err(lost),
        }
    }

    /// The same for all leaves that map one of the pages, also those that map more.
    // REQ: DT-1, LP-4
    pub(crate) fn write_protect_word(&mut self, slot: &Slot, word: usize, mask: u64) {
        let start = slot.data.dirty.gfn_of(word);
        let range = start..Gfn::new(start.raw() + 64).min(slot.end());
        if let Err((gfn, size, place)) = self.take_writes(slot, word, mask) {
            self.lost(slot, gfn, size, place);
            return self.write_protect(slot, range, Protect::ForLog);
        }
        let large = [PageLevel::M2, PageLevel::G1];
        if large
            .into_iter()
            .any(|size| slot.data.next_mapped(size, range.start, range.end).is_some())
        {
            self.write_protect(slot, range, Protect::ForLog);
        }
    }

    fn writes<'a>(&'a mut self, slot: &'a Slot, size: PageLevel, how: Protect) -> Writes<'a, S> {
        let left = match (how, size) {
            (Protect::ForLog, PageLevel::K4) => Writable::Restorable,
            (Protect::ForLog, PageLevel::M2 | PageLevel::G1) => Writable::Protected,
            (Protect::ByHost, _) => Writable::HostReadOnly,
        };
        Writes {
            mmu: self.mmu,
            stage2: self.mmu.effects.lock(self.held),
            removed: &mut self.removed,
            slot,
            size,
            format: self.mmu.tables.format(),
            bits: Spte::above(self.mmu.tables.format(), left),
            obsolete: self.tree.obsolete.is_some(),
        }
    }

    /// Makes every leaf that maps a page of the range old, and says which pages were young: `young` is called with the
    /// pages of a leaf that was used since it became old last.
    // REQ: AT-1, DT-3
    pub(crate) fn age(&mut self, slot: &Slot, range: Range<Gfn>, mut young: impl FnMut(Gfn, PageLevel)) {
        let mmu = self.mmu;
        let mut stage2 = mmu.effects.lock(self.held);
        let removed = &mut self.removed;
        for size in PageLevel::ALL {
            let level = TableLevel::of_page(size) as u8;
            let _: ControlFlow<()> = slot.data.each_mapped(size, range.clone(), |gfn, list| {
                for place in list.places(&mmu.pte_entries) {
                    let format = mmu.tables.format();
                    match format {
                        Format::Ept => {
                            let Some(leaf) = make_old(&mmu.tables, place, level) else {
                                continue;
                            };
                            // What hangs in an obsolete tree is mapped for nobody, but its capability is.
                            removed.and(stage2.unmap(slot.id, gfn, &leaf));
                            young(gfn, size);
                        }
                        Format::Shadow(_) => {
                            if mmu.tables.clear(place, Spte::ACCESSED).is_accessed() {
                                removed.and(Unflushed::removed(1));
                                young(gfn, size);
                            }
                        }
                    }
                }
                ControlFlow::Continue(())
            });
        }
    }

    /// Whether a leaf that maps the page was used since it became old last.
    // REQ: AT-1
    pub(crate) fn is_young(&self, slot: &Slot, gfn: Gfn) -> bool {
        let mmu = self.mmu;
        PageLevel::ALL.into_iter().any(|size| {
            let mut places = slot.data.places(&mmu.pte_entries, gfn, size);
            places.any(|place| match mmu.tables.format() {
                Format::Ept => matches!(mmu.tables.kind(place), SpteKind::Leaf(_)),
                Format::Shadow(_) => mmu.tables.read(place).is_accessed(),
            })
        })
    }
}

/// Keeps R and X of a present leaf aside; the leaf that it was.
// REQ: AT-1, DT-3
fn make_old<W: TableWords>(tables: &Tables<W>, place: SptePlace, level: u8) -> Option<Leaf> {
    loop {
        let old = tables.read(place);
        let Ok(SpteKind::Leaf(leaf)) = old.peek(Format::Ept, level) else {
            return None;
        };
        if tables.compare_exchange(place, old, Spte::access_tracked(leaf)).is_ok() {
            return Some(leaf);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are a guest's writes logged? W is taken from sptes; the first write to a page sets it again and marks the page.

use crate::Mmu;
use crate::host::{HostLayout, HostView};
use crate::locks::{Held, InSection, InSlots};
use crate::resize::large_gfns;
use crate::rmap::Protect;
use crate::slots::{Slot, SlotTable};
use crate::stage2::Stage2;
use crate::zap::{Cut, PAGES_PER_BATCH, Zap, batches};
use umbra_mmu_abi::{Gfn, Gpa, PageLevel, SlotFlags, SlotId};

/// Words that are taken before mmu_lock is let go.
const WORDS_PER_BATCH: usize = PAGES_PER_BATCH as usize / 64;

/// There is no log to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// No such slot.
    NoSlot,
    /// Its writes are not logged.
    NotLogged,
    /// The words are not all of the slot's log.
    Range,
}

impl core::fmt::Display for LogError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoSlot => "no such slot",
            Self::NotLogged => "the slot's writes are not logged",
            Self::Range => "words outside the slot's log",
        })
    }
}

impl core::error::Error for LogError {}

impl<S: Stage2> Mmu<S> {
    /// Writes to `slot` are logged from the return of this on. The slot is published with the flag: every fault that began
    /// without it has ended, so after W is gone there is no write that nobody logs. Large pages are split when they are
    /// written, or by [`Mmu::split_for_log`].
    // REQ: DT-1, LP-4
    pub(crate) fn start_log(&self, held: &mut Held<InSlots>, slot: &Slot) {
        let mut section = self.slots.read(held);
        let (slots, held) = section.split();
        for batch in batches(slot.base..slot.end()) {
            self.zap(slots, held, |zap| zap.write_protect(slot, batch, Protect::ForLog));
        }
    }

    /// Writes to `slot` are not logged any more. Sptes get W back by faults without mmu_lock. Small ones where a large one
    /// could be go, so that the next fault makes it; frames that were split are merged by the next fault.
    // REQ: LP-4
    pub(crate) fn stop_log(&self, held: &mut Held<InSlots>, slot: &Slot) {
        let mut section = self.slots.read(held);
        let (slots, held) = section.split();
        for gfn in large_gfns(slot) {
            let end = Gfn::new(gfn.raw() + PageLevel::M2.frames());
            if slot.data.next_mapped(PageLevel::K4, gfn, end).is_none() || !self.may_be_large(slot, gfn) {
                continue;
            }
            self.zap(slots, held, |zap| {
                zap.drop_leaves(slot, gfn..end, Cut::Unmap);
                zap.mmu.invalidate.bump();
            });
        }
    }

    fn may_be_large(&self, slot: &Slot, gfn: Gfn) -> bool {
        match self.host.page(slot.frame_of(gfn)) {
            HostView::Page(page) => slot.largest_page(gfn, &page, PageLevel::M2).2 == PageLevel::M2,
            HostView::Split(page) => self.host.layout(page.first.backing()) == HostLayout::Frames,
            HostView::Whole(_) | HostView::Away | HostView::Revoked => false,
        }
    }

    /// Copies the log of a slot from word `first` on (64 pages a word, the slot's first page in bit 0 of word 0) and
    /// clears what it copies. What the guest writes after this is logged again. The answer is how many pages there were.
    ///
    /// # Errors
    /// See [`LogError`].
    // REQ: DT-1
    pub fn get_and_clear_log(&self, id: SlotId, first: usize, out: &mut [u64]) -> Result<u32, LogError> {
        self.with_log(id, first, out.len(), |slots, slot, held| {
            let mut pages = 0;
            for (batch, at) in out.chunks_mut(WORDS_PER_BATCH).zip((first..).step_by(WORDS_PER_BATCH)) {
                self.zap(slots, held, |zap| {
                    for (out, word) in batch.iter_mut().zip(at..) {
                        *out = zap.take_log(slot, word, u64::MAX);
                        pages += out.count_ones();
                    }
                });
            }
            pages
        })
    }

    /// Copies the log as [`Mmu::get_and_clear_log`] does, and clears nothing: what was written is write-protected again by
    /// [`Mmu::clear_log`] (KVM: `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    ///
    /// # Errors
    /// See [`LogError`].
    // REQ: DT-1
    pub fn get_log(&self, id: SlotId, first: usize, out: &mut [u64]) -> Result<u32, LogError> {
        self.with_log(id, first, out.len(), |_, slot, _| {
            for (out, word) in out.iter_mut().zip(first..) {
                *out = slot.data.dirty.get(word);
            }
            out.iter().map(|word| word.count_ones()).sum()
        })
    }

    /// Clears the marks that `mask` names, from word `first` on, before the caller copies those pages: what the guest
    /// writes from here on is logged again. The answer is how many pages were marked.
    ///
    /// # Errors
    /// See [`LogError`].
    // REQ: DT-1
    pub fn clear_log(&self, id: SlotId, first: usize, mask: &[u64]) -> Result<u32, LogError> {
        self.with_log(id, first, mask.len(), |slots, slot, held| {
            let mut pages = 0;
            for (batch, at) in mask.chunks(WORDS_PER_BATCH).zip((first..).step_by(WORDS_PER_BATCH)) {
                self.zap(slots, held, |zap| {
                    for (mask, word) in batch.iter().zip(at..) {
                        pages += zap.take_log(slot, word, *mask).count_ones();
                    }
                });
            }
            pages
        })
    }

    fn with_log<R>(
        &self,
        id: SlotId,
        first: usize,
        words: usize,
        act: impl FnOnce(&SlotTable, &Slot, &mut Held<InSection>) -> R,
    ) -> Result<R, LogError> {
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let slot = slots.get(id).ok_or(LogError::NoSlot)?;
        if !slot.flags.contains(SlotFlags::LOG_DIRTY) {
            return Err(LogError::NotLogged);
        }
        match first.checked_add(words) {
            Some(end) if end <= slot.data.dirty.words() => Ok(act(slots, slot, held)),
            Some(_) | None => Err(LogError::Range),
        }
    }

    /// A device of the vmm has written `len` bytes of guest memory at `gpa`, not through an spte. To be called after the
    /// write, and before the guest hears of it.
    // REQ: DT-1
    pub fn device_wrote(&self, gpa: Gpa, len: u64) {
        let mut held = Held::entry();
        let section = self.slots.read(&mut held);
        let Some(last) = len.checked_sub(1).and_then(|more| gpa.checked_add(more)) else {
            return;
        };
        let (mut at, last) = (gpa.gfn(), last.gfn());
        while at <= last {
            let slot = section.lookup(at);
            if let Some(slot) = slot.filter(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY)) {
                slot.data.dirty.mark(at);
            }
            at = Gfn::new(at.raw() + 1);
        }
    }
}

impl<S: Stage2> Zap<'_, S> {
    /// Takes marks of 64 pages, and W from the sptes of those pages, so that the next write marks them again. What has W
    /// between the two is in this answer already.
    // REQ: DT-1, DT-3
    fn take_log(&mut self, slot: &Slot, word: usize, mask: u64) -> u64 {
        let marks = slot.data.dirty.take(word, mask);
        if marks != 0 {
            self.write_protect_word(slot, word, marks);
        }
        marks
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may the owner of frames do to a running guest? Take them, move them, write-protect them, see which are used: in
//! pairs, between whose start and end nobody maps them (KVM: the MMU notifier).

use crate::Mmu;
use crate::host::{HostError, HostLayout, HostMemory, PageState};
use crate::invalidate::ActivePair;
use crate::locks::{Held, Invalidating};
use crate::rmap::Protect;
use crate::slots::{Slot, SlotTable};
use crate::stage2::{Frame, Stage2};
use crate::zap::{Cut, batches};
use core::ops::Range;
use umbra_mmu_abi::{Gfn, PageLevel};

/// Frames between the start and the end of a change. Mappings of them are gone, and no new one comes. It uses one table
/// of slots from start to end: slots cannot change meanwhile.
#[must_use = "a pair that does not end keeps mappings out, and slots from changing"]
#[derive(Debug)]
pub struct HostPair {
    active: ActivePair,
    first: Frame,
    pages: u32,
}

/// Who takes mappings out of the hardware when a pair starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mappings {
    /// The MMU.
    Present,
    /// The owner has revoked the frames' capabilities: the hardware has no mapping any more.
    // REQ: HOST-2
    Revoked,
}

impl HostPair {
    /// The first frame.
    pub const fn first(&self) -> Frame {
        self.first
    }
    /// 4K pages.
    pub const fn pages(&self) -> u32 {
        self.pages
    }
}

impl<S: Stage2> Mmu<S> {
    /// Which frames are behind the backings' pages.
    pub fn host(&self) -> &HostMemory {
        &self.host
    }

    /// A change of `pages` frames from `first` begins. When this returns no processor uses them for the guest. Needs no
    /// lock that a slot change holds while it waits for this pair to end.
    ///
    /// # Errors
    /// See [`HostError`]; nothing has changed.
    // REQ: HOST-1, PF-3
    pub fn invalidate_start(&self, first: Frame, pages: u32, mappings: Mappings) -> Result<HostPair, HostError> {
        let pair = self.begin_pair(first, pages)?;
        let cut = match mappings {
            Mappings::Present => Cut::Unmap,
            Mappings::Revoked => Cut::Gone,
        };
        self.in_pair(|slots, held| {
            for (slot, batch) in batches_of(slots, first, pages) {
                self.zap(slots, held, |zap| zap.drop_leaves(slot, batch, cut));
            }
        });
        Ok(pair)
    }

    /// The change is done, and the frames are in `state`.
    // REQ: HOST-1, PF-3
    pub fn invalidate_end(&self, pair: HostPair, state: PageState) {
        let HostPair { active, first, pages } = pair;
        self.in_pair(|slots, held| {
            self.zap(slots, held, |zap| {
                let set = self.host.set_state(first, pages, state);
                set.expect("the range was checked at the start, and no frame changes its size in a pair");
                for _ in ranges(slots, first, pages) {
                    zap.mmu.invalidate.end();
                }
            });
        });
        self.invalidate.leave(active);
    }

    /// Takes frames away, for other uses: a guest that touches them faults with [`crate::fault::HostNeed::Frame`].
    ///
    /// # Errors
    /// See [`HostError`].
    // REQ: HOST-1, HOST-2
    pub fn reclaim(&self, first: Frame, pages: u32) -> Result<(), HostError> {
        let pair = self.invalidate_start(first, pages, Mappings::Present)?;
        self.invalidate_end(pair, PageState::Away);
        Ok(())
    }

    /// Frames are there, with all rights: they were away, or write-protected. Their content is the owner's business.
    ///
    /// # Errors
    /// See [`HostError`].
    // REQ: HOST-1
    pub fn give_back(&self, first: Frame, pages: u32) -> Result<(), HostError> {
        let pair = self.invalidate_start(first, pages, Mappings::Present)?;
        self.invalidate_end(pair, PageState::Resident);
        Ok(())
    }

    /// The owner has revoked frames for good, and their capabilities with them.
    ///
    /// # Errors
    /// See [`HostError`].
    // REQ: HOST-2
    pub fn frames_revoked(&self, first: Frame, pages: u32) -> Result<(), HostError> {
        let pair = self.invalidate_start(first, pages, Mappings::Revoked)?;
        self.invalidate_end(pair, PageState::Revoked);
        Ok(())
    }

    /// The guest gives pages up (a balloon): their frames are taken away. The answer is how many there were.
    ///
    /// # Errors
    /// See [`HostError`]: a 2M frame of which the guest gives up a part has to be split before. What came before is gone.
    // REQ: HOST-2
    pub fn balloon(&self, gfn: Gfn, pages: u32) -> Result<u32, HostError> {
        let mut taken = 0;
        let (mut at, end) = (gfn, Gfn::new(gfn.raw() + u64::from(pages)));
        while at < end {
            // Not in a pair: slots may change between two of them, and each looks for itself.
            let found = self.with_slots(|slots| {
                let slot = slots.lookup(at)?;
                let last = slot.end().min(end);
                Some((slot.frame_of(at), (last.raw() - at.raw()) as u32))
            });
            let Some((first, count)) = found else {
                at = Gfn::new(at.raw() + 1);
                continue;
            };
            self.reclaim(first, count)?;
            taken += count;
            at = Gfn::new(at.raw() + u64::from(count));
        }
        Ok(taken)
    }

    /// The guest may only read these frames until they are given back; a write faults with
    /// [`crate::fault::HostNeed::Write`]. Mappings stay, without W.
    ///
    /// # Errors
    /// See [`HostError`].
    // REQ: HOST-1
    pub fn write_protect_frames(&self, first: Frame, pages: u32) -> Result<(), HostError> {
        let pair = self.begin_pair(first, pages)?;
        self.in_pair(|slots, held| {
            for (slot, batch) in batches_of(slots, first, pages) {
                self.zap(slots, held, |zap| match self.host.layout(first.backing()) {
                    HostLayout::Frames => zap.write_protect(slot, batch, Protect::ByHost),
                    // A large spte may cover more than is protected.
                    HostLayout::Linear => zap.drop_leaves(slot, batch, Cut::Unmap),
                });
            }
        });
        self.invalidate_end(pair, PageState::WriteProtected);
        Ok(())
    }

    /// Makes frames old, and calls `young` with those that the guest used since they became old last.
    ///
    /// # Errors
    /// See [`HostError`].
    // REQ: HOST-1, AT-1
    pub fn test_and_clear_young(
        &self,
        first: Frame,
        pages: u32,
        mut young: impl FnMut(Frame, PageLevel),
    ) -> Result<(), HostError> {
        self.host.check(first, pages)?;
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        for (slot, batch) in batches_of(slots, first, pages) {
            self.zap(slots, held, |zap| {
                zap.age(slot, batch, |gfn, size| young(slot.frame_of(gfn.max(slot.base)), size));
            });
        }
        Ok(())
    }

    /// Whether the guest used the frame since it became old last.
    // REQ: HOST-1, AT-1
    pub fn test_young(&self, frame: Frame) -> bool {
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let mut found = ranges(slots, frame, 1);
        self.zap(slots, held, |zap| {
            found.any(|(slot, range)| zap.is_young(slot, range.start))
        })
    }

    /// Takes frames away that the guest has not used since they became old: `wanted` at the most, of `pages` from
    /// `first`. Frames of 2M count as 512, and go as a whole. `taken` is called with each; the answer is how many pages.
    ///
    /// # Errors
    /// See [`HostError`].
    // REQ: HOST-1, HOST-2, AT-1
    pub fn reclaim_old(
        &self,
        first: Frame,
        pages: u32,
        wanted: u32,
        mut taken: impl FnMut(Frame, PageLevel),
    ) -> Result<u32, HostError> {
        self.host.check(first, pages)?;
        let (mut page, mut count) = (first.page(), 0);
        while page < first.page() + pages && count < wanted {
            let frame = Frame::of_checked(first.backing(), page);
            let large = self.host.layout(frame.backing()) == HostLayout::Frames && self.host.is_large(frame);
            let size = if large { PageLevel::M2 } else { PageLevel::K4 };
            let resident = self.host.state(frame) == PageState::Resident;
            if resident && !self.test_young(frame) {
                // Used just now, it comes back by a fault: old is what it was when we looked.
                self.reclaim(frame, size.frames() as u32)?;
                taken(frame, size);
                count += size.frames() as u32;
            }
            page += size.frames() as u32;
        }
        Ok(count)
    }

    /// Keeps mappings of these frames out until as many ends.
    // REQ: HOST-1
    fn begin_pair(&self, first: Frame, pages: u32) -> Result<HostPair, HostError> {
        let active = self.invalidate.enter();
        let begun = self.in_pair(|slots, held| {
            self.zap(slots, held, |_| {
                // Inside mmu_lock: no frame changes its size from here on, because a pair is active.
                self.host.check(first, pages)?;
                for (_, range) in ranges(slots, first, pages) {
                    self.invalidate.begin(range.start, range.end);
                }
                Ok(())
            })
        });
        match begun {
            Ok(()) => Ok(HostPair { active, first, pages }),
            Err(error) => {
                self.invalidate.leave(active);
                Err(error)
            }
        }
    }

    /// Reads the slots between start and end of a pair.
    fn in_pair<R>(&self, act: impl FnOnce(&SlotTable, &mut Held<crate::locks::InvalidatingSection>) -> R) -> R {
        let mut entry = Held::entry();
        let mut held: Held<Invalidating> = entry.invalidating();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        act(slots, held)
    }
}

/// Where slots have these frames.
fn ranges(slots: &SlotTable, first: Frame, pages: u32) -> impl Iterator<Item = (&Slot, Range<Gfn>)> {
    slots
        .iter()
        .filter_map(move |slot| slot.gfns_of(first, pages).map(|range| (slot, range)))
}

/// The same in pieces that are short enough to hold mmu_lock for.
fn batches_of(slots: &SlotTable, first: Frame, pages: u32) -> impl Iterator<Item = (&Slot, Range<Gfn>)> {
    ranges(slots, first, pages).flat_map(|(slot, range)| batches(range).map(move |batch| (slot, batch)))
}

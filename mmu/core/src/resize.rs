// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the frame behind a 2M page become 512 frames of 4K, and one again? Nothing maps it meanwhile.

use crate::Mmu;
use crate::host::{HostError, HostLayout, PageState, SplitFor};
use crate::locks::{Held, InSection};
use crate::slots::{Slot, SlotTable};
use crate::stage2::{Frame, Stage2, Stage2Error};
use crate::zap::{Cut, Zap};
use umbra_mmu_abi::{Gfn, PageLevel, SlotFlags, SlotId};

/// What becomes of the frames of a 2M page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// One becomes 512.
    Split(SplitFor),
    /// 512 become one.
    Merge,
}

/// Why frames keep their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeError {
    /// The page is not of that size, or cannot be.
    Host(HostError),
    /// A slot has a part of the page only, or at an address where no large page can be.
    Slot(SlotId),
    /// The owner of the frames could not.
    Stage2(Stage2Error),
    /// The owner of some frames is between start and end of a change.
    Busy,
    /// The pool has no table for sptes of 4K: there has to be one for all that slots can map.
    Tables,
}

impl From<HostError> for ResizeError {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl core::fmt::Display for ResizeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Host(error) => write!(f, "the frames stay as they are: {error:?}"),
            Self::Slot(id) => write!(f, "slot {} does not have all of the page, or not aligned", id.0),
            Self::Stage2(error) => error.fmt(f),
            Self::Busy => f.write_str("frames are being changed"),
            Self::Tables => f.write_str("no table is left for small pages"),
        }
    }
}

impl core::error::Error for ResizeError {}

const PAGES: u32 = PageLevel::M2.frames() as u32;

impl<S: Stage2> Mmu<S> {
    /// Splits or merges the frames of the 2M page around `frame`. Their content stays; guests that use it fault and find
    /// it again.
    ///
    /// # Errors
    /// See [`ResizeError`]; the sizes are as they were.
    // REQ: HOST-2, LP-4
    pub fn resize(&self, frame: Frame, how: Resize) -> Result<(), ResizeError> {
        self.zap_in_section(&mut Held::entry(), |zap| zap.resize(frame, how))
    }

    /// Splits all 2M frames of a slot whose writes are logged, so that no fault has to; the answer is how many.
    ///
    /// # Errors
    /// The owner of the frames could not split one of them; those before are split.
    // REQ: LP-4
    pub fn split_for_log(&self, id: SlotId) -> Result<u32, ResizeError> {
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let Some(slot) = slots.get(id).filter(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY)) else {
            return Ok(0);
        };
        let mut split = 0;
        for gfn in large_gfns(slot) {
            let frame = slot.frame_of(gfn);
            // Where the container is linear, smaller sptes are enough, and faults make no others while writes are logged.
            if self.host.layout(frame.backing()) == HostLayout::Frames && self.host.is_large(frame) {
                // One lock for each: a fault waits for one frame.
                self.zap(slots, held, |zap| zap.resize(frame, Resize::Split(SplitFor::Log)))?;
                split += 1;
            }
        }
        Ok(split)
    }

    /// What a fault asks for. Where it is refused, the host remembers that, and the next attempt does without.
    // REQ: LP-4
    #[cold]
    pub(crate) fn resize_in_fault(&self, slots: &SlotTable, held: &mut Held<InSection>, frame: Frame, how: Resize) {
        self.zap(slots, held, |zap| {
            match (zap.resize(frame, how), how) {
                // The guest comes again.
                (Ok(()) | Err(ResizeError::Busy), _) => {}
                (Err(_), Resize::Split(_)) => self.host.keep_whole(frame),
                (Err(_), Resize::Merge) => self.host.keep(frame),
            }
            self.invalidate.bump();
        });
    }
}

/// The first gfn of each large page that a slot can have.
pub(crate) fn large_gfns(slot: &Slot) -> impl Iterator<Item = Gfn> {
    let step = PageLevel::M2.frames();
    let first = slot.base.raw().next_multiple_of(step);
    (first..slot.end().raw())
        .step_by(step as usize)
        .take_while(move |gfn| gfn + step <= slot.base.raw() + u64::from(slot.npages))
        .map(Gfn::new)
}

impl<S: Stage2> Zap<'_, S> {
    fn resize(&mut self, frame: Frame, how: Resize) -> Result<(), ResizeError> {
        let (mmu, slots) = (self.mmu, self.slots);
        let first = mmu.host.chunk_of(frame)?;
        if mmu.invalidate.is_active() {
            return Err(ResizeError::Busy);
        }
        let possible = match how {
            Resize::Split(_) => mmu.host.is_large(frame),
            Resize::Merge => {
                let there = |page| Frame::new(first.backing(), page).map(|page| mmu.host.state(page));
                let pages = first.page()..first.page() + PAGES;
                !mmu.host.is_large(frame) && pages.map(there).all(|state| state == Some(PageState::Resident))
            }
        };
        if !possible {
            return Err(HostError::NotUniform.into());
        }
        let frames = mmu.host.layout(frame.backing()) == HostLayout::Frames;
        if how == Resize::Merge && frames {
            let cut = |slot: &&Slot| {
                slot.gfns_of(first, PAGES).is_some_and(|range| {
                    let whole = range.end.raw() - range.start.raw() == PageLevel::M2.frames();
                    !whole || range.start != range.start.align_down(PageLevel::M2)
                })
            };
            if let Some(slot) = slots.iter().find(cut) {
                return Err(ResizeError::Slot(slot.id));
            }
        }
        if let (Resize::Split(_), true) = (how, frames) {
            let more = slots.iter().filter(|slot| slot.gfns_of(first, PAGES).is_some()).count();
            if slots.tables_needed(None, &mmu.host) + more >= mmu.tables.capacity() {
                return Err(ResizeError::Tables);
            }
        }
        self.drop_frames(first, PAGES, Cut::Unmap);
        self.flush();
        if frames {
            let mut stage2 = mmu.effects.lock(self.held);
            match how {
                Resize::Split(_) => stage2.split_frame(first),
                Resize::Merge => stage2.merge_frames(first),
            }
            .map_err(ResizeError::Stage2)?;
        }
        match how {
            Resize::Split(why) => mmu.host.split(frame, why)?,
            Resize::Merge => mmu.host.collapse(frame)?,
        }
        // After the change: who looked before has the old number.
        // REQ: PF-3
        mmu.invalidate.bump();
        Ok(())
    }
}

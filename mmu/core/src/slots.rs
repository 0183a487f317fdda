// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which memory does the guest have? The table of memslots: looked up by gfn, changed as a copy, then published.

use crate::host::{BackingKind, HostMemory, HostPage};
use crate::slot_data::SlotData;
use crate::stage2::{Frame, GuestAccess, Resource};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::select_unpredictable;
use core::ops::Range;
use umbra_mmu_abi::{Backing, Gfn, PageLevel, SlotError, SlotFlags, SlotId};

/// Slots that a table holds (KVM: `KVM_MEM_SLOTS_NUM`).
pub const MAX_SLOTS: usize = 512;

/// A vmm's slot numbers are below this (KVM: `KVM_USER_MEM_SLOTS`). The others are for memory that a vmm does not see
/// (KVM: `KVM_INTERNAL_MEM_SLOTS`); nothing uses them yet.
pub const USER_MEM_SLOTS: usize = 509;

/// Guest-physical frames that four levels of tables translate: 48 bits of address.
pub const GFN_LIMIT: u64 = 1 << 36;

/// Whether a slot can be mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// In use.
    Live,
    /// Its mappings are going; no new one may come (KVM: `KVM_MEMSLOT_INVALID`).
    // REQ: MEM-6
    Invalid,
}

/// A checked memslot: one cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// First guest frame.
    pub base: Gfn,
    /// Length in 4K pages, never 0.
    pub npages: u32,
    /// Where its frames come from.
    pub backing: Backing,
    /// Read-only or not.
    pub flags: SlotFlags,
    /// In use or going.
    pub state: SlotState,
    /// What is known about its pages.
    pub data: Arc<SlotData>,
}

impl Slot {
    /// Checks what a peer asked for. Nothing of it is used before. What is known about the pages of the slot that it
    /// changes is kept, if they stay where they are.
    ///
    /// # Errors
    /// See [`SlotError`].
    // REQ: MEM-2
    pub fn check(
        id: SlotId,
        base: Gfn,
        npages: u32,
        backing: Backing,
        flags: SlotFlags,
        host: &HostMemory,
        old: Option<&Self>,
    ) -> Result<Self, SlotError> {
        let in_range = base.raw() < GFN_LIMIT && npages as u64 <= GFN_LIMIT - base.raw();
        if id.0 as usize >= USER_MEM_SLOTS || npages == 0 || !in_range {
            return Err(SlotError::Invalid);
        }
        let pages = host.pages(backing.id).ok_or(SlotError::NoEntry)?;
        if backing.first_page as u64 + npages as u64 > pages as u64 {
            return Err(SlotError::NoSpace);
        }
        // A large frame maps as a whole or not at all. An image is for read-only slots.
        // REQ: LP-2, MEM-3
        let rights = match host.kind(backing.id).map(BackingKind::access) {
            Some(GuestAccess::ReadExec) => flags.contains(SlotFlags::READONLY),
            Some(GuestAccess::All) => true,
            None => false,
        };
        if !rights || !host.fits(backing, npages, base) {
            return Err(SlotError::Invalid);
        }
        let kept = old.filter(|old| (old.base, old.npages, old.backing) == (base, npages, backing));
        let data = match kept {
            Some(old) => old.data.clone(),
            None => Arc::new(SlotData::new(base, npages).map_err(|_| SlotError::NoSpace)?),
        };
        Ok(Self {
            id,
            base,
            npages,
            backing,
            flags,
            state: SlotState::Live,
            data,
        })
    }

    /// The first gfn after it.
    pub fn end(&self) -> Gfn {
        Gfn::new(self.base.raw() + self.npages as u64)
    }

    /// Whether it holds `gfn`.
    #[inline]
    pub fn contains(&self, gfn: Gfn) -> bool {
        gfn.raw().wrapping_sub(self.base.raw()) < self.npages as u64
    }

    /// What the guest may do in it.
    pub fn access(&self) -> GuestAccess {
        match self.flags.contains(SlotFlags::READONLY) {
            true => GuestAccess::ReadExec,
            false => GuestAccess::All,
        }
    }

    /// The frame of one 4K page of the slot.
    #[inline]
    pub fn frame_of(&self, gfn: Gfn) -> Frame {
        // The check bounds every page.
        Frame::of_checked(
            self.backing.id,
            self.backing.first_page + (gfn.raw() - self.base.raw()) as u32,
        )
    }

    /// Where `pages` frames from `first` are in the slot: the first gfn and the one after the last.
    // REQ: HOST-1
    pub fn gfns_of(&self, first: Frame, pages: u32) -> Option<Range<Gfn>> {
        if first.backing() != self.backing.id {
            return None;
        }
        let start = first.page().max(self.backing.first_page);
        let end = (first.page() + pages).min(self.backing.first_page + self.npages);
        (start < end).then(|| self.gfn_of_page(start)..self.gfn_of_page(end))
    }

    /// The largest page, `most` at the most, that an spte may map at `gfn` out of the host's page: its first gfn and frame,
    /// and its size.
    // REQ: LP-1, LP-2
    #[inline]
    pub fn largest_page(&self, gfn: Gfn, host: &HostPage, most: PageLevel) -> (Gfn, Frame, PageLevel) {
        let frame = self.frame_of(gfn);
        if host.level > PageLevel::K4 {
            for size in [PageLevel::G1, PageLevel::M2] {
                let into = (gfn.raw() - gfn.align_down(size).raw()) as u32;
                // As far into the frame as into the page.
                let aligned = (frame.page() - host.first.page()) & (size.frames() as u32 - 1) == into;
                if size <= host.level && size <= most && aligned && self.data.large.allows(size, gfn) {
                    let first = Frame::of_checked(frame.backing(), frame.page() - into);
                    return (gfn.align_down(size), first, size);
                }
            }
        }
        (gfn, frame, PageLevel::K4)
    }

    /// Whether another slot has a frame of this one.
    fn shares_frames(&self, other: &Self) -> bool {
        let (a, b) = (self.backing.first_page, other.backing.first_page);
        self.backing.id == other.backing.id && a < b + other.npages && b < a + self.npages
    }

    /// The gfn of a frame, if the slot has it.
    fn gfn_of_frame(&self, frame: Frame) -> Option<Gfn> {
        let into = frame.page().wrapping_sub(self.backing.first_page);
        (frame.backing() == self.backing.id && into < self.npages).then(|| self.gfn_of_page(frame.page()))
    }

    /// The host's page, if an spte may map all of it: [`Slot::largest_page`], for the usual case.
    // REQ: LP-2
    #[inline(always)]
    pub(crate) fn whole_page(&self, gfn: Gfn, host: &HostPage) -> Option<(Gfn, Frame, PageLevel)> {
        let at = gfn.align_down(host.level);
        let whole = at >= self.base && self.frame_of(at) == host.first && self.data.large.allows(host.level, gfn);
        whole.then_some((at, host.first, host.level))
    }

    fn gfn_of_page(&self, page: u32) -> Gfn {
        Gfn::new(self.base.raw() + (page - self.backing.first_page) as u64)
    }
}

/// The published slots, in the order of gfns. Immutable while anybody reads it.
#[derive(Clone, Debug)]
pub struct SlotTable {
    sorted: Vec<Slot>,
    /// Their bases alone, then [`NO_BASE`]: what the search looks at.
    bases: [u64; MAX_SLOTS],
    /// Some frame has more than one gfn.
    shares_frames: bool,
}

/// A guess where the next slot is found. It may be of another table.
#[derive(Clone, Copy, Debug, Default)]
pub struct NearSlot(u32);

/// Above every gfn.
const NO_BASE: u64 = u64::MAX;
const _: () = assert!(MAX_SLOTS.is_power_of_two());

impl Default for SlotTable {
    fn default() -> Self {
        Self {
            sorted: Vec::new(),
            bases: [NO_BASE; MAX_SLOTS],
            shares_frames: false,
        }
    }
}

impl SlotTable {
    /// The slot that holds `gfn`, also one whose mappings are going. O(log n): one bit of its place in each step, three
    /// instructions each, wherever the slots are.
    // REQ: MEM-4
    #[inline]
    pub fn lookup(&self, gfn: Gfn) -> Option<&Slot> {
        self.sorted.get(self.position(gfn)).filter(|slot| slot.contains(gfn))
    }

    /// The same for one who mostly looks for neighbours: `near` is where the last slot was (KVM: `last_used_slot`).
    #[inline(always)]
    pub fn lookup_near(&self, gfn: Gfn, near: &mut NearSlot) -> Option<&Slot> {
        match self.sorted.get(near.0 as usize) {
            Some(slot) if slot.contains(gfn) => Some(slot),
            Some(_) | None => self.lookup_far(gfn, near),
        }
    }

    #[cold]
    #[inline(never)]
    fn lookup_far(&self, gfn: Gfn, near: &mut NearSlot) -> Option<&Slot> {
        near.0 = self.position(gfn) as u32;
        self.lookup(gfn)
    }

    /// Where the last slot is that begins at `gfn` or before; 0 if there is none.
    #[inline(always)]
    fn position(&self, gfn: Gfn) -> usize {
        let mut at = 0;
        let mut bit = MAX_SLOTS / 2;
        while bit > 0 {
            // `at` has no bit from this one down, so the sum is below MAX_SLOTS, and the compiler sees it.
            let right = at + bit;
            at = select_unpredictable(self.bases[right] <= gfn.raw(), right, at);
            bit /= 2;
        }
        at
    }

    /// Fits the bases to the slots.
    fn index(&mut self) {
        self.bases.fill(NO_BASE);
        for (base, slot) in self.bases.iter_mut().zip(&self.sorted) {
            *base = slot.base.raw();
        }
    }

    /// The slot of a number.
    pub fn get(&self, id: SlotId) -> Option<&Slot> {
        self.sorted.iter().find(|slot| slot.id == id)
    }

    /// All of them, in the order of gfns.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.sorted.iter()
    }

    /// Whether `new` overlaps a slot of another number.
    // REQ: MEM-2
    pub fn overlaps(&self, new: &Slot) -> bool {
        self.sorted
            .iter()
            .any(|old| old.id != new.id && old.base.raw() < new.end().raw() && new.base.raw() < old.end().raw())
    }

    /// Room for all slots that there can be.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn with_room() -> Result<Self, Resource> {
        let mut table = Self::default();
        table
            .sorted
            .try_reserve_exact(MAX_SLOTS)
            .map_err(|_| Resource::Memory)?;
        Ok(table)
    }

    /// Becomes `from` with `id` replaced by `new`, or without it.
    // REQ: MEM-1, MEM-4
    pub fn copy_with(&mut self, from: &Self, id: SlotId, new: Option<Slot>) {
        self.sorted.clear();
        self.sorted
            .extend(from.sorted.iter().filter(|slot| slot.id != id).cloned());
        if let Some(new) = new {
            let at = self.sorted.partition_point(|slot| slot.base < new.base);
            self.sorted.insert(at, new);
        }
        self.index();
        self.shares_frames = (1..self.sorted.len()).any(|at| {
            let (before, slot) = (&self.sorted[..at], &self.sorted[at]);
            before.iter().any(|other| slot.shares_frames(other))
        });
    }

    /// Whether some frame has more than one gfn.
    // REQ: MEM-2
    #[inline]
    pub fn shares_frames(&self) -> bool {
        self.shares_frames
    }

    /// Every gfn of the frame that `gfn` has, itself included and first.
    // REQ: MEM-2
    #[inline]
    pub fn aliases(&self, gfn: Gfn) -> impl Iterator<Item = Gfn> + '_ {
        let frame = self
            .shares_frames
            .then(|| self.lookup(gfn).map(|slot| slot.frame_of(gfn)))
            .flatten();
        let slots = if frame.is_some() { self.sorted.as_slice() } else { &[] };
        let others = slots
            .iter()
            .filter_map(move |slot| frame.and_then(|frame| slot.gfn_of_frame(frame)));
        core::iter::once(gfn).chain(others.filter(move |other| *other != gfn))
    }

    /// Tables of sptes that all these slots and `new` can need at once, the root included, as the host's frames are now.
    pub fn tables_needed(&self, new: Option<&Slot>, host: &HostMemory) -> usize {
        let replaced = |slot: &&Slot| new.is_none_or(|new| new.id != slot.id);
        let before = |slot: &&Slot| new.is_none_or(|new| slot.base < new.base);
        let old = || self.sorted.iter().filter(replaced);
        let all = || {
            old()
                .filter(before)
                .chain(new)
                .chain(old().filter(|slot| !before(slot)))
        };
        let mut tables = 1;
        // Shifts from a gfn to the number of the PD and PDPT that translates it.
        for shift in [18, 27] {
            let mut last = None;
            for slot in all() {
                let (first, end) = (slot.base.raw() >> shift, (slot.end().raw() - 1) >> shift);
                tables += (end - first) as usize + usize::from(last != Some(first));
                last = Some(end);
            }
        }
        // A page table for each 2M that is not one large frame.
        let mut last = None;
        for slot in all() {
            for region in slot.base.raw() >> 9..=(slot.end().raw() - 1) >> 9 {
                let gfn = Gfn::new(slot.base.raw().max(region << 9));
                if last != Some(region) && !host.is_large(slot.frame_of(gfn)) {
                    tables += 1;
                    last = Some(region);
                }
            }
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_mmu_abi::BackingId;

    fn slot(id: u16, base: u64, npages: u32) -> Slot {
        Slot {
            id: SlotId(id),
            base: Gfn::new(base),
            npages,
            backing: Backing {
                id: BackingId(0),
                first_page: 0,
            },
            flags: SlotFlags::empty(),
            state: SlotState::Live,
            data: Arc::new(SlotData::new(Gfn::new(base), npages).unwrap()),
        }
    }

    // REQ: MEM-4: tables of every length, with slots that lie close, far apart, and at both ends of the address width.
    #[test]
    fn every_slot_of_a_table_is_found_and_nothing_between() {
        for count in 0..=MAX_SLOTS as u16 {
            let mut table = SlotTable::default();
            for id in 0..count {
                let far = if id % 2 == 0 { 0 } else { GFN_LIMIT - (1 << 20) };
                table
                    .sorted
                    .push(slot(id, far + u64::from(id) * 5, 1 + u32::from(id) % 4));
            }
            table.sorted.sort_by_key(|slot| slot.base);
            table.index();
            for wanted in table.iter() {
                let found = |gfn: u64| table.lookup(Gfn::new(gfn)).map(|slot| slot.id);
                assert_eq!(found(wanted.base.raw()), Some(wanted.id));
                assert_eq!(found(wanted.end().raw() - 1), Some(wanted.id));
                assert_eq!(found(wanted.end().raw()), None);
                assert_eq!(found(wanted.base.raw().wrapping_sub(1)), None);
            }
            for gfn in [0xffff, GFN_LIMIT - 1, GFN_LIMIT, u64::MAX >> 1] {
                assert!(table.lookup(Gfn::new(gfn)).is_none());
            }
        }
    }

    // REQ: LP-1, LP-2: every size of the host's page and of what is asked for, for slots that begin and end everywhere around
    // large pages, and frames that lie as far into theirs as the gfn does, or not.
    #[test]
    fn a_page_is_as_large_as_host_guest_and_slot_allow() {
        let giant = PageLevel::G1.frames();
        let large = PageLevel::M2.frames();
        let ends = [0, 1, large, giant, giant + large];
        for (base, first_page) in ends.into_iter().flat_map(|base| ends.map(|first| (base, first as u32))) {
            let npages = 2 * giant + large + 3;
            let slot = Slot {
                backing: Backing {
                    id: BackingId(0),
                    first_page,
                },
                ..slot(0, base, npages as u32)
            };
            for gfn in
                [0, 1, large - 1, large, giant - 1, giant, giant + large, 2 * giant].map(|more| Gfn::new(base + more))
            {
                for (level, most) in PageLevel::ALL
                    .into_iter()
                    .flat_map(|level| PageLevel::ALL.map(|most| (level, most)))
                {
                    let frame = slot.frame_of(gfn);
                    let into = frame.page() & (level.frames() as u32 - 1);
                    let host = HostPage {
                        first: Frame::of_checked(BackingId(0), frame.page() - into),
                        level,
                        access: GuestAccess::All,
                    };
                    let fits = |size: &PageLevel| {
                        let at = gfn.align_down(*size).raw();
                        let inside = base <= at && at + size.frames() <= base + npages;
                        let same = (u64::from(first_page) + at)
                            .wrapping_sub(base)
                            .is_multiple_of(size.frames());
                        *size == PageLevel::K4 || *size <= level && *size <= most && inside && same
                    };
                    let wanted = PageLevel::ALL.into_iter().rfind(fits).unwrap();
                    let found = slot.largest_page(gfn, &host, most);
                    let at = gfn.align_down(wanted);
                    assert_eq!(
                        found,
                        (at, slot.frame_of(at), wanted),
                        "{base:#x} {first_page:#x} {gfn} {level:?} {most:?}"
                    );
                }
            }
        }
    }
}

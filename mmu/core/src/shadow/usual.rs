// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do most faults come down to? A 4K page below the shadow page of the fault before: only the last entry is walked,
//! and only the leaf is made.
//!
//! A vCPU remembers the leaf page of its last fault, as a processor has a cache of directory entries. It is exact, where a
//! processor's may be old: the upper tables are read-only to the guest, each write to them takes an spte away that points
//! at a table, and any such change moves [`Mmu::structure`]. What it decides, the long way would decide as well; whatever
//! is not usual is left to it.

use super::Shadow;
use super::fetch::{Fetched, Wish};
use super::gpte::{ACCESSED, DIRTY, PRESENT};
use super::sync::Source;
use super::walk::{GuestWalk, Paging};
use crate::Mmu;
use crate::fault::{ErrorCode, Fault, Outcome};
use crate::locks::Held;
use crate::role::PteAccess;
use crate::slots::{Slot, SlotState};
use crate::stage2::{GuestAccess, GuestRam, Stage2};
use crate::sync::atomic::Ordering;
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::vcpu::Vcpu;
use umbra_mmu_abi::{Gfn, PageLevel, SlotFlags};

/// Faults until the long way is taken again, so that the pages above count as used.
// REQ: SP-11
const USES: u8 = 32;

/// The way to the leaf page of the last fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastPath {
    /// The 2M of linear addresses that the page translates.
    region: u64,
    /// [`Mmu::structure`] when it was found.
    structure: u64,
    uses: u8,
    /// The page.
    page: TableId,
    /// The guest's table, and what the entries above it allow.
    gfn: Gfn,
    above: PteAccess,
}

impl LastPath {
    /// After a walk that ended in a page of 4K below `page`. `structure` was read while mmu_lock was held.
    pub(super) fn new(paging: &Paging, gva: u64, walk: &GuestWalk, page: TableId, structure: u64) -> Option<Self> {
        (walk.leaf == 1).then(|| Self {
            region: gva >> 21,
            structure,
            uses: USES,
            page,
            gfn: walk.table(1, &paging.format),
            above: walk.above(1, &paging.format),
        })
    }
}

impl<S: Stage2> Mmu<S> {
    /// Answers the fault if it is one of those. `None`: the long way; at most the guest's flags are set, as they will be.
    // REQ: PF-1, PF-2, PF-3
    #[inline(never)]
    pub(super) fn shadow_usual(&self, vcpu: &mut Vcpu, fault: &Fault) -> Option<Outcome> {
        let Vcpu {
            reserve,
            paging,
            near_slot,
            ..
        } = vcpu;
        let state = paging.as_mut()?;
        let (paging, code) = (&state.paging, fault.code);
        let gva = paging.linear(fault.address);
        let path = state.path.as_mut()?;
        let current = path.region == gva >> 21 && path.structure == self.structure.load(Ordering::Acquire);
        if !current || path.uses == 0 {
            return None;
        }
        path.uses -= 1;
        let seq = self.invalidate.seq();
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        // (c), (d): the last entry.
        let format = &paging.format;
        let offset = format.offset(format.index(1, gva));
        let live = |slot: &&Slot| slot.state == SlotState::Live;
        let table_slot = slots.lookup_near(path.gfn, near_slot).filter(live)?;
        let table = table_slot.frame_of(path.gfn);
        if !self.host.is_plain(table) {
            return None;
        }
        let old = self.ram.read(table, offset, format.size());
        let allowed = path.above & format.access(old);
        if old & PRESENT == 0 || format.is_reserved(1, old) || paging.forbids(allowed, code) {
            return None;
        }
        let (wish, dirty) = match code.contains(ErrorCode::W) {
            true => (Wish::Write, DIRTY),
            false => (Wish::Read, 0),
        };
        let gpte = old | ACCESSED | dirty;
        if gpte != old {
            let read_only = table_slot.flags.contains(SlotFlags::READONLY);
            let size = format.size();
            if read_only || self.ram.compare_exchange(table, offset, size, old, gpte).is_err() {
                return None;
            }
            // REQ: DT-1
            if table_slot.flags.contains(SlotFlags::LOG_DIRTY) {
                table_slot.data.dirty.mark(path.gfn);
            }
        }
        let access = format.leaf_access(path.above, gpte);
        // (e)
        let gfn = format.page(1, gpte);
        let slot = match table_slot.contains(gfn) {
            true => table_slot,
            false => slots.lookup(gfn).filter(live)?,
        };
        let writes = access.contains(PteAccess::WRITE) && !slot.flags.contains(SlotFlags::READONLY);
        if !self.host.is_plain(slot.frame_of(gfn)) || wish == Wish::Write && !writes {
            return None;
        }
        // (g)
        let index = (gva >> 12) as u16 & (ENTRIES as u16 - 1);
        let place = SptePlace {
            table: path.page,
            index,
        };
        let fetched = self.with_shadow_and(slots, Some(slot), held, reserve, |shadow| {
            // Making room may have taken the page itself.
            let ready = !self.invalidate.must_retry(seq, gfn)
                && !self.invalidate.must_retry(seq, path.gfn)
                && shadow.make_room()
                && path.structure == self.structure.load(Ordering::Relaxed);
            if !ready {
                return None;
            }
            // The table of slots is the same, so the guest's table is where it was.
            let source = Source::of(table, self.tables.get(path.page).role());
            if (shadow.entry(&source, index) ^ gpte) & !(ACCESSED | DIRTY) != 0 {
                return None;
            }
            shadow.pages.tick();
            shadow.pages.touch(path.page);
            let fetched = shadow.set_leaf(place, slot, GuestAccess::All, PageLevel::K4, gfn, access, wish);
            if fetched == Fetched::Mapped && shadow.next_is_used(&source, index) {
                shadow.prefetch(Some(&source), place);
            }
            Some(fetched)
        })?;
        match fetched {
            Fetched::Mapped => Some(self.resume()),
            Fetched::WriteProtected => {
                let gpa = umbra_mmu_abi::Gpa::new(gfn.gpa().raw() | gva & (PageLevel::K4.bytes() - 1));
                Some(Outcome::EmulateTableWrite { gpa })
            }
            Fetched::Changed => None,
        }
    }
}

impl<S: Stage2> Shadow<'_, S> {
    /// Whether prefetching pays: a guest that uses pages for the first time has no neighbours to offer.
    #[inline]
    fn next_is_used(&self, source: &Source, index: u16) -> bool {
        const USED: u64 = PRESENT | ACCESSED;
        let next = index ^ 1;
        self.entry(source, next) & USED == USED
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is everything as it should be? Sptes, reverse maps, slots and hardware are compared with each other.

use crate::Mmu;
use crate::host::{HostLayout, HostView};
use crate::locks::Held;
use crate::slots::Slot;
use crate::spte::{Leaf, SpteKind, Writable};
use crate::stage2::{GuestAccess, Observed, Stage2, TableLevel};
use crate::sync::atomic::Ordering;
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::zap::Zap;
use umbra_mmu_abi::{Gfn, PageLevel, SlotFlags, SlotId};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Audit {
    /// Leaf sptes that were compared.
    pub leaves: u32,
    /// Things that do not fit.
    pub differences: u32,
    /// The first of them.
    pub first: Option<Difference>,
}

/// Something that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A word that is no spte.
    BadSpte(SptePlace, u64),
    /// Counts, parent or level of a table contradict its words.
    Table(TableId),
    /// A leaf outside every slot, or not of the slot's frame, size or rights.
    Slot(Gfn),
    /// A leaf that its reverse map does not have.
    Rmap(Gfn),
    /// Reverse map entries without a leaf: so many more.
    RmapCount(SlotId, u32),
    /// Hardware has something else.
    Hardware(Gfn, Observed),
    /// Hardware holds so many mappings of the slot, and the sptes another number.
    HardwareCount(SlotId, u32),
    /// An MMIO spte of another frame, or in a table that is not marked.
    Mmio(Gfn),
    /// The pool's tables do not add up.
    Pool,
}

impl Audit {
    pub(crate) fn differs(&mut self, difference: Difference) {
        self.differences += 1;
        self.first.get_or_insert(difference);
    }
    pub(crate) fn expect(&mut self, holds: bool, difference: Difference) {
        if !holds {
            self.differs(difference);
        }
    }
}

impl<S: Stage2> Mmu<S> {
    /// Compares everything with everything, while nobody changes anything. Takes time in proportion to what is mapped and
    /// to the slots' pages.
    // REQ: RM-3
    pub fn audit(&self) -> Audit {
        self.zap_in_section(&mut Held::entry(), |all| all.audit())
    }
}

/// Leaves of one slot.
#[derive(Clone, Copy, Default)]
struct Leaves {
    present: u32,
    access_tracked: u32,
}

impl<S: Stage2> Zap<'_, S> {
    fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        if self.shadow(|shadow| shadow.audit(&mut audit)).is_some() {
            return audit;
        }
        let mut tables = self.audit_tree(self.mmu.root(), &mut audit);
        let mut root = self.tree.obsolete;
        while let Some(id) = root {
            tables += self.audit_tree(id, &mut audit);
            root = self.mmu.tables.chained(id);
        }
        let unused = self.mmu.tables.unused(self.held).all();
        audit.expect(tables + unused == self.mmu.tables.capacity(), Difference::Pool);
        let counted = PageLevel::ALL.map(|level| self.mmu.stats.mapped(level).load(Ordering::Relaxed));
        audit.expect(counted.iter().sum::<u64>() == audit.leaves.into(), Difference::Pool);
        for slot in self.slots.iter() {
            let id = slot.id;
            let mapped = slot.data.count(&self.mmu.pte_entries);
            // Every leaf was found in its reverse map; equal totals mean that nothing else is in there.
            let leaves = self.leaves_in(slot.base, slot.end());
            let known = leaves.present + leaves.access_tracked;
            audit.expect(mapped == known, Difference::RmapCount(id, mapped.abs_diff(known)));
            let hardware = self.mmu.effects.lock(self.held).count_mapped(id);
            audit.expect(hardware == leaves.present, Difference::HardwareCount(id, hardware));
        }
        audit
    }

    /// The tables of one tree, counted.
    fn audit_tree(&mut self, table: TableId, audit: &mut Audit) -> usize {
        let all = &self.mmu.tables;
        let mut tables = 1;
        let (mut used, mut leaves) = (0, 0);
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            let gfn = all.gfn_of(place);
            let kind = match all.decode(place) {
                Ok(kind) => kind,
                Err(bad) => {
                    audit.differs(Difference::BadSpte(place, bad.0));
                    continue;
                }
            };
            used += u16::from(kind != SpteKind::Empty);
            match kind {
                SpteKind::Empty => {}
                SpteKind::Table(below) => {
                    let above = all.get(table);
                    let table = all.get(below);
                    let parents = table.parent_ptes().places(&self.mmu.pte_entries);
                    let fits = parents.eq([place])
                        && Some(table.level()) == above.level().below()
                        && table.gfn() == gfn
                        && table.valid_gen() == above.valid_gen();
                    audit.expect(fits, Difference::Table(below));
                    tables += self.audit_tree(below, audit);
                }
                SpteKind::Leaf(leaf) => {
                    leaves += 1;
                    self.audit_leaf(place, gfn, &leaf, Observed::Mapped, audit);
                }
                SpteKind::AccessTracked(leaf) => {
                    leaves += 1;
                    self.audit_leaf(place, gfn, &leaf, Observed::Unmapped, audit);
                }
                SpteKind::Mmio(mmio) => {
                    let fits = mmio.gfn == gfn && all.get(table).mmio_cached();
                    audit.expect(fits, Difference::Mmio(gfn));
                }
            }
        }
        let at = all.get(table);
        let linked = leaves == 0 || at.handle().is_some() || at.level() == TableLevel::Pml4;
        audit.expect(
            (at.used(), at.leaves()) == (used, leaves) && linked,
            Difference::Table(table),
        );
        tables
    }

    fn audit_leaf(&mut self, place: SptePlace, gfn: Gfn, leaf: &Leaf, wanted: Observed, audit: &mut Audit) {
        audit.leaves += 1;
        let Some(slot) = self.slots.lookup(gfn) else {
            return audit.differs(Difference::Slot(gfn));
        };
        audit.expect(self.fits_slot_and_host(slot, gfn, leaf), Difference::Slot(gfn));
        let mut places = slot.data.places(&self.mmu.pte_entries, gfn, leaf.level);
        audit.expect(places.any(|p| p == place), Difference::Rmap(gfn));
        drop(places);
        // What hangs below a cut-off table is mapped as far as its capability goes, and reachable for nobody.
        let observed = self.mmu.effects.lock(self.held).observe(slot.id, gfn, leaf);
        audit.expect(
            observed == wanted || self.mmu.is_obsolete(place.table),
            Difference::Hardware(gfn, observed),
        );
    }

    /// Whether the slot has the leaf's frame there, and the host has it too, with these rights and this size.
    fn fits_slot_and_host(&self, slot: &Slot, gfn: Gfn, leaf: &Leaf) -> bool {
        let whole = slot.base <= gfn && gfn.raw() + leaf.level.frames() <= slot.end().raw();
        if !whole || slot.frame_of(gfn) != leaf.frame || gfn != gfn.align_down(leaf.level) {
            return false;
        }
        let logs = slot.flags.contains(SlotFlags::LOG_DIRTY);
        let (page, most) = match self.mmu.host.page(leaf.frame) {
            // Of a large page, a write is not known to be of which page.
            HostView::Page(page) if logs && leaf.level > PageLevel::K4 => (page, Writable::Protected),
            HostView::Page(page) | HostView::Split(page) | HostView::Whole(page) => (page, Writable::Now),
            HostView::Away | HostView::Revoked => return false,
        };
        let size = match self.mmu.host.layout(leaf.frame.backing()) {
            HostLayout::Frames => leaf.level == page.level,
            HostLayout::Linear => leaf.level <= page.level,
        };
        let rights = match (slot.access(), page.access) {
            (GuestAccess::All, GuestAccess::All) => leaf.writable <= most,
            (GuestAccess::ReadExec, _) | (_, GuestAccess::ReadExec) => leaf.writable == Writable::HostReadOnly,
        };
        size && rights && slot.data.large.allows(leaf.level, gfn)
    }

    /// Leaves between two gfns, in the current tree and the obsolete ones.
    fn leaves_in(&self, base: Gfn, end: Gfn) -> Leaves {
        let mut leaves = Leaves::default();
        self.leaves_below(self.mmu.root(), base, end, &mut leaves);
        let mut root = self.tree.obsolete;
        while let Some(id) = root {
            self.leaves_below(id, base, end, &mut leaves);
            root = self.mmu.tables.chained(id);
        }
        leaves
    }

    fn leaves_below(&self, table: TableId, base: Gfn, end: Gfn, leaves: &mut Leaves) {
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            let gfn = self.mmu.tables.gfn_of(place);
            let inside = u32::from(base <= gfn && gfn < end);
            match self.mmu.tables.decode(place) {
                Ok(SpteKind::Table(below)) => self.leaves_below(below, base, end, leaves),
                Ok(SpteKind::Leaf(_)) => leaves.present += inside,
                Ok(SpteKind::AccessTracked(_)) => leaves.access_tracked += inside,
                Ok(SpteKind::Empty | SpteKind::Mmio(_)) | Err(_) => {}
            }
        }
    }
}

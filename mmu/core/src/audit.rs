// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is everything as it should be? Sptes, reverse maps, slots and hardware are compared with each other.

use crate::Mmu;
use crate::spte::{Leaf, SpteKind, Writable};
use crate::stage2::{GuestAccess, Observed, Stage2, TableLevel};
use crate::table::{ENTRIES, SptePlace, TableId};
use umbra_mmu_abi::{Gfn, SlotId};

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
    fn differs(&mut self, difference: Difference) {
        self.differences += 1;
        self.first.get_or_insert(difference);
    }
    fn expect(&mut self, holds: bool, difference: Difference) {
        if !holds {
            self.differs(difference);
        }
    }
}

impl<S: Stage2> Mmu<S> {
    /// Compares everything with everything. Takes time in proportion to what is mapped and to the slots' pages.
    // REQ: RM-3
    pub fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        let mut tables = self.audit_tree(self.root, &mut audit);
        let mut root = self.obsolete;
        while let Some(id) = root {
            tables += self.audit_tree(id, &mut audit);
            root = self.tables.chained(id);
        }
        audit.expect(
            tables + self.tables.free_count() == self.tables.capacity(),
            Difference::Pool,
        );
        let counted = self.stats.mapped_4k + self.stats.mapped_2m + self.stats.mapped_1g;
        audit.expect(counted == audit.leaves as u64, Difference::Pool);
        for at in 0..self.rmaps.len() {
            let id = SlotId(at as u16);
            let Some(rmap) = &self.rmaps[at] else { continue };
            let mapped = rmap.count(&self.rmap_entries);
            // Every leaf was found in its reverse map; equal totals mean that nothing else is in there.
            let leaves = self
                .slots
                .published()
                .get(id)
                .map_or(0, |slot| self.leaves_in(slot.base, slot.end()));
            audit.expect(mapped == leaves, Difference::RmapCount(id, mapped.abs_diff(leaves)));
            let hardware = self.stage2.count_mapped(id);
            audit.expect(hardware == mapped, Difference::HardwareCount(id, hardware));
        }
        audit
    }

    /// The tables of one tree, counted.
    fn audit_tree(&mut self, table: TableId, audit: &mut Audit) -> usize {
        let mut tables = 1;
        let (mut used, mut leaves) = (0, 0);
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            let gfn = self.tables.gfn_of(place);
            let kind = match self.tables.decode(place) {
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
                    let (level, valid_gen) = (self.tables.get(table).role().level, self.tables.get(table).valid_gen());
                    let table = self.tables.get(below);
                    let fits = table.parent() == Some(place)
                        && Some(table.role().level) == level.below()
                        && table.gfn() == gfn
                        && table.valid_gen() == valid_gen;
                    audit.expect(fits, Difference::Table(below));
                    tables += self.audit_tree(below, audit);
                }
                SpteKind::Leaf(leaf) | SpteKind::AccessTracked(leaf) => {
                    leaves += 1;
                    audit.leaves += 1;
                    self.audit_leaf(place, gfn, &leaf, audit);
                }
                SpteKind::Mmio(mmio) => {
                    let fits = mmio.gfn == gfn && self.tables.get(table).mmio_cached();
                    audit.expect(fits, Difference::Mmio(gfn));
                }
            }
        }
        let at = self.tables.get(table);
        let linked = leaves == 0 || at.handle().is_some() || at.role().level == TableLevel::Pml4;
        audit.expect(
            (at.used(), at.leaves()) == (used, leaves) && linked,
            Difference::Table(table),
        );
        tables
    }

    fn audit_leaf(&mut self, place: SptePlace, gfn: Gfn, leaf: &Leaf, audit: &mut Audit) {
        let Some(slot) = self.slots.published().lookup(gfn) else {
            return audit.differs(Difference::Slot(gfn));
        };
        let (at, frame, level) = slot.page_at(gfn);
        let rights = match slot.access() {
            GuestAccess::ReadExec => leaf.writable == Writable::HostReadOnly,
            GuestAccess::All => leaf.writable != Writable::HostReadOnly,
        };
        audit.expect(
            (at, frame, level) == (gfn, leaf.frame, leaf.level) && rights,
            Difference::Slot(gfn),
        );
        let id = slot.id;
        let known = self.rmaps[id.0 as usize]
            .as_ref()
            .is_some_and(|rmap| rmap.places(&self.rmap_entries, gfn, leaf.level).any(|p| p == place));
        audit.expect(known, Difference::Rmap(gfn));
        // What hangs below a cut-off table is mapped as far as its capability goes, and reachable for nobody.
        let observed = self.stage2.observe(id, gfn, leaf);
        let fits = match observed {
            Observed::Mapped => true,
            Observed::Unmapped | Observed::Different => false,
        };
        audit.expect(
            fits || self.is_obsolete(place.table),
            Difference::Hardware(gfn, observed),
        );
    }

    /// Leaves between two gfns, in the current tree and the obsolete ones.
    fn leaves_in(&self, base: Gfn, end: Gfn) -> u32 {
        let mut leaves = self.leaves_below(self.root, base, end);
        let mut root = self.obsolete;
        while let Some(id) = root {
            leaves += self.leaves_below(id, base, end);
            root = self.tables.chained(id);
        }
        leaves
    }

    fn leaves_below(&self, table: TableId, base: Gfn, end: Gfn) -> u32 {
        let inside = |gfn: Gfn| base <= gfn && gfn < end;
        (0..ENTRIES as u16)
            .map(|index| SptePlace { table, index })
            .map(|place| match self.tables.decode(place) {
                Ok(SpteKind::Table(below)) => self.leaves_below(below, base, end),
                Ok(SpteKind::Leaf(_) | SpteKind::AccessTracked(_)) => u32::from(inside(self.tables.gfn_of(place))),
                Ok(SpteKind::Empty | SpteKind::Mmio(_)) | Err(_) => 0,
            })
            .sum()
    }
}

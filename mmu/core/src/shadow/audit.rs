// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do shadow pages, their lists and counts, the reverse maps and the guest's tables agree?

use super::Shadow;
use crate::audit::{Audit, Difference};
use crate::role::PteAccess;
use crate::slots::{Slot, SlotState};
use crate::spte::{Leaf, Rights, SpteKind, Writable};
use crate::stage2::Stage2;
use crate::table::{ENTRIES, SptePlace, TableId};
use umbra_mmu_abi::{Gfn, PageLevel, SlotFlags};

impl<S: Stage2> Shadow<'_, S> {
    /// Compares everything with everything.
    // REQ: RM-3
    pub(crate) fn audit(&mut self, audit: &mut Audit) {
        let mut tables = 0;
        let mut at = self.pages.oldest();
        while let Some(id) = at {
            at = self.pages.used_after(id);
            tables += 1;
            self.audit_page(id, audit);
        }
        audit.expect(tables == self.pages.count(), Difference::Pool);
        let indirect = self.pages.iter().filter(|id| self.pages.gfns(*id).is_some()).count();
        // REQ: SP-3
        audit.expect(indirect == self.pages.gfn_arrays(), Difference::Pool);
        // Every leaf was found in its reverse map; equal totals mean that nothing else is in there.
        let known: u32 = self.slots.iter().map(|slot| slot.data.count(self.entries())).sum();
        audit.expect(known == audit.leaves, Difference::Pool);
        for slot in self.slots.iter() {
            self.audit_large(slot, audit);
        }
    }

    fn audit_page(&mut self, id: TableId, audit: &mut Audit) {
        let table = self.tables().get(id);
        let (role, gfn) = (table.role(), table.gfn());
        let (mut used, mut leaves) = (0, 0);
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table: id, index };
            let kind = match self.tables().decode(place) {
                Ok(kind) => kind,
                Err(bad) => {
                    audit.differs(Difference::BadSpte(place, bad.0));
                    continue;
                }
            };
            used += u16::from(kind != SpteKind::Empty);
            match kind {
                SpteKind::Empty => {}
                SpteKind::Table(child) => self.audit_link(place, child, audit),
                SpteKind::Leaf(leaf) => {
                    leaves += 1;
                    audit.leaves += 1;
                    self.audit_leaf(place, &leaf, audit);
                }
                SpteKind::Mmio(mmio) => {
                    let fits = mmio.gfn == self.gfn_of(place) && table.mmio_cached();
                    audit.expect(fits, Difference::Mmio(mmio.gfn));
                }
                SpteKind::AccessTracked(_) => audit.differs(Difference::Table(id)),
            }
        }
        audit.expect((table.used(), table.leaves()) == (used, leaves), Difference::Table(id));
        // REQ: SP-1, SP-5, SP-6: one page for a key; a zapped page is empty and hidden; unsync pages are leaf pages.
        let found = self.pages.same_hash(gfn).filter(|other| {
            let other = self.tables().get(*other);
            other.gfn() == gfn && other.role() == role && other.valid_gen() == table.valid_gen()
        });
        let page = self.pages.get(id);
        let wanted = usize::from(!role.invalid());
        audit.expect(found.count() == wanted, Difference::Table(id));
        audit.expect(
            !role.invalid() || used == 0 && page.root_count > 0,
            Difference::Table(id),
        );
        audit.expect(
            !page.unsync || role.level() == 1 && !role.direct(),
            Difference::Table(id),
        );
        let marked: u32 = page.unsync_child_bitmap.iter().map(|word| word.count_ones()).sum();
        audit.expect(marked == page.unsync_children as u32, Difference::Table(id));
        if !role.invalid() && !role.direct() && !page.unsync {
            self.audit_protected(gfn, id, audit);
            if self.is_leaf_source(id) {
                self.audit_source(id, audit);
            }
        }
    }

    fn is_leaf_source(&self, id: TableId) -> bool {
        self.tables().get(id).role().level() == 1
    }

    /// The page below knows its parent, belongs there, and the way to its unsync pages is marked.
    fn audit_link(&self, place: SptePlace, child: TableId, audit: &mut Audit) {
        let (above, below) = (self.tables().get(place.table).role(), self.tables().get(child).role());
        let parent = self
            .tables()
            .get(child)
            .parent_ptes()
            .places(self.entries())
            .any(|p| p == place);
        let page = self.pages.get(child);
        let reachable = page.unsync || page.unsync_children > 0;
        let bit = self.pages.get(place.table).unsync_child_bitmap[place.index as usize / 64] >> (place.index % 64) & 1;
        let fits = parent && below.level() + 1 == above.level() && !below.invalid() && (bit == 1 || !reachable);
        audit.expect(fits, Difference::Table(child));
        audit.expect(
            self.tables().get(place.table).valid_gen() == self.tables().get(child).valid_gen(),
            Difference::Table(child),
        );
    }

    fn audit_leaf(&self, place: SptePlace, leaf: &Leaf, audit: &mut Audit) {
        let gfn = self.gfn_of(place);
        let Some(slot) = self.slot(gfn).filter(|slot| slot.state == SlotState::Live) else {
            return audit.differs(Difference::Slot(gfn));
        };
        let whole = gfn.raw() + leaf.level.frames() <= slot.end().raw() && gfn.align_down(leaf.level) == gfn;
        let right = whole && slot.frame_of(gfn) == leaf.frame;
        let rights = leaf.writable == Writable::HostReadOnly || !slot.flags.contains(SlotFlags::READONLY);
        audit.expect(right && rights, Difference::Slot(gfn));
        let known = slot.data.places(self.entries(), gfn, leaf.level).any(|p| p == place);
        audit.expect(known, Difference::Rmap(gfn));
        // REQ: LP-2
        let large = leaf.level == PageLevel::K4
            || leaf.writable < Writable::Restorable
            || slot.data.large.allows(leaf.level, gfn);
        audit.expect(large, Difference::Slot(gfn));
        // REQ: DT-1
        let logged = leaf.writable != Writable::Now
            || !slot.flags.contains(SlotFlags::LOG_DIRTY)
            || slot.data.dirty.is_marked(gfn);
        audit.expect(logged, Difference::Slot(gfn));
    }

    /// Nobody may write to a table that is shadowed and synchronised.
    // REQ: SP-8
    fn audit_protected(&self, gfn: Gfn, id: TableId, audit: &mut Audit) {
        for gfn in self.slots.aliases(gfn) {
            self.audit_protected_gfn(gfn, id, audit);
        }
    }

    fn audit_protected_gfn(&self, gfn: Gfn, id: TableId, audit: &mut Audit) {
        let Some(slot) = self.slot(gfn) else { return };
        for size in PageLevel::ALL {
            for place in slot.data.places(self.entries(), gfn, size) {
                let protected = match self.kind(place, self.tables().read(place)) {
                    SpteKind::Leaf(leaf) => leaf.writable < Writable::Restorable,
                    _ => false,
                };
                audit.expect(protected, Difference::Table(id));
            }
        }
    }

    /// What a synchronised leaf page says is what the guest's entries say, or less.
    fn audit_source(&self, id: TableId, audit: &mut Audit) {
        let Some(source) = self.source(id) else { return };
        let (role, gfn) = (self.tables().get(id).role(), self.tables().get(id).gfn());
        let readonly = self
            .slot(gfn)
            .is_some_and(|slot| slot.flags.contains(SlotFlags::READONLY));
        // Where D cannot be set, a write is allowed all the same.
        let stuck = if readonly { super::gpte::DIRTY } else { 0 };
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table: id, index };
            let kind = self.kind(place, self.tables().read(place));
            let gpte = self.entry(&source, index) | stuck;
            let format = self.pages.formats.of(role);
            let sound = gpte & super::gpte::PRESENT != 0 && !format.is_reserved(1, gpte);
            let same = sound && format.page(1, gpte) == self.gfn_of(place);
            let access = format.leaf_access(role.access(), gpte);
            let fits = match kind {
                SpteKind::Empty => true,
                SpteKind::Leaf(leaf) => {
                    let allows = |right, access_bit| !leaf.rights.contains(right) || access.contains(access_bit);
                    // With cr0.wp=0, a writable page of the supervisor's may be a read-only one.
                    let kernel = !role.cr0_wp() && !leaf.rights.contains(Rights::USER);
                    let writes = leaf.writable < Writable::Restorable || access.contains(PteAccess::WRITE) || kernel;
                    same && allows(Rights::USER, PteAccess::USER) && allows(Rights::EXEC, PteAccess::EXEC) && writes
                }
                SpteKind::Mmio(_) => same,
                SpteKind::Table(_) | SpteKind::AccessTracked(_) => false,
            };
            audit.expect(fits, Difference::Table(id));
        }
    }

    /// The counts against large pages are those of the shadowed tables.
    // REQ: LP-3
    fn audit_large(&self, slot: &Slot, audit: &mut Audit) {
        for size in [PageLevel::M2, PageLevel::G1] {
            let mut at = slot.base.align_down(size);
            while at < slot.end() {
                let end = Gfn::new(at.raw() + size.frames());
                let inside = |gfn: Gfn| at <= gfn && gfn < end && slot.contains(gfn);
                let shadowed = self
                    .pages
                    .iter()
                    .map(|id| self.tables().get(id))
                    .filter(|table| !table.role().direct() && !table.role().invalid() && inside(table.gfn()));
                let cut = u32::from(at < slot.base) + u32::from(end > slot.end());
                let count = slot.data.large.count(size, at.max(slot.base));
                audit.expect(count == shadowed.count() as u32 + cut, Difference::Slot(at));
                at = end;
            }
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a fault extend the tables? Down from the root: shadow pages where they are missing, then the leaf.
//!
//! The guest's tables were walked before mmu_lock was taken, and other vCPUs write to them. Before an spte is made from an
//! entry, the entry is read again, while its table is read-only:
//!
//! | this thread                               | a vCPU that changes the entry             |
//! |-------------------------------------------|-------------------------------------------|
//! | walks: old entry                          |                                           |
//! |                                           | its write is emulated: memory, then sptes |
//! | mmu_lock; the entry is another: try again |                                           |
//!
//! If the entry still is the old one, the write has not reached memory, and whoever emulates it will come to the spte.

use super::gpte::{ACCESSED, DIRTY, at};
use super::sync::{Source, rights};
use super::unsync::Unsync;
use super::walk::{GuestWalk, Paging};
use super::{Shadow, memory};
use crate::generation::Stamp;
use crate::host::HostPage;
use crate::role::{PteAccess, Role};
use crate::slots::Slot;
use crate::spte::{Leaf, MmioSpte, Spte, SpteKind, Writable};
use crate::stage2::{GuestAccess, Stage2};
use crate::table::{SptePlace, TableId};
use crate::trace::Event;
use umbra_mmu_abi::{Gfn, PageLevel, SlotFlags};

/// What a leaf is to map.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// Memory: the slot, and the host's page behind it.
    Page(&'a Slot, HostPage),
    /// Nothing: an MMIO spte under this stamp, or, while slots change, none.
    Mmio(Option<Stamp>),
}

/// Why a leaf is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// The guest reads or fetches there.
    Read,
    /// The guest writes there.
    Write,
    /// Nobody asked.
    Prefetch,
}

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The spte is in place.
    Mapped,
    /// The write goes to a guest table that stays read-only: it has to be emulated.
    // REQ: PF-1 (h)
    WriteProtected,
    /// The guest's tables have changed since they were walked.
    Changed,
}

impl<S: Stage2> Shadow<'_, S> {
    /// Makes `walk` from `root` down true in the sptes.
    // REQ: PF-1 (g)
    pub(super) fn fetch(
        &mut self,
        paging: &Paging,
        root: TableId,
        gva: u64,
        walk: &GuestWalk,
        target: Target<'_>,
        wish: Wish,
    ) -> Fetched {
        let map = self.mapping_level(paging, walk, target);
        let mut table = root;
        let mut level = paging.role.level();
        self.pages.tick();
        self.pages.touch(root);
        // The guest's own upper tables, each with its shadow page.
        while level > walk.leaf.max(1) && walk.leaf > 0 {
            let place = place_of(table, level, gva);
            table = match self.tables().read(place).peek_table(self.tables().format()) {
                Some(child) => child,
                None => {
                    let below = level - 1;
                    let above = walk.above(below, &paging.format);
                    let role = child_role(paging, below, gva).with_access(above);
                    let child = self.page_for(walk.table(below, &paging.format), role);
                    let source = self.source(table);
                    if self.changed(source.as_ref(), walk, level, place.index) {
                        return Fetched::Changed;
                    }
                    self.link(place, child);
                    child
                }
            };
            self.pages.touch(table);
            level -= 1;
        }
        let source = self.source(table);
        if walk.leaf > 0 && self.changed(source.as_ref(), walk, walk.leaf, place_of(table, level, gva).index) {
            return Fetched::Changed;
        }
        // A large guest page on smaller host pages is split by direct pages. What the supervisor writes to with cr0.wp=0 has
        // pages of its own: those of the guest's rights are found again when the dirty bit is clear.
        // REQ: LP-1, PF-4
        let access = granted(&paging.role, walk.access, wish);
        while level > map as u8 {
            let place = place_of(table, level, gva);
            let base = walk.gfn.raw() >> ((level - 1) * 9) << ((level - 1) * 9);
            let role = paging.role.with_level(level - 1).with_direct(true).with_access(access);
            table = self.direct_below(place, Gfn::new(base), role);
            self.pages.touch(table);
            level -= 1;
        }
        let place = place_of(table, level, gva);
        self.leaf_page = table;
        let fetched = match target {
            Target::Page(slot, host) => self.set_leaf(place, slot, host.access, map, walk.gfn, walk.access, wish),
            Target::Mmio(stamp) => {
                self.set_mmio(place, walk.gfn, walk.access, stamp);
                Fetched::Mapped
            }
        };
        if fetched == Fetched::Mapped && level == 1 {
            // The table of a page that is split is not the guest's.
            self.prefetch(source.as_ref().filter(|_| walk.leaf == 1), place);
        }
        fetched
    }

    /// The largest page that guest, host and slot all allow.
    // REQ: LP-1, LP-2, LP-3
    fn mapping_level(&self, paging: &Paging, walk: &GuestWalk, target: Target<'_>) -> PageLevel {
        let Target::Page(slot, host) = target else {
            return PageLevel::K4;
        };
        let guest = match walk.leaf {
            // Without paging, the root's entries have 2M.
            0 => PageLevel::M2,
            1 => PageLevel::K4,
            2 => PageLevel::M2,
            _ => PageLevel::G1,
        };
        let top = match paging.role.level() {
            2 => PageLevel::M2,
            _ => PageLevel::G1,
        };
        match slot.flags.contains(SlotFlags::LOG_DIRTY) || self.slots.shares_frames() {
            // Writes are logged page by page; and tables under another gfn do not count against a large page here.
            true => PageLevel::K4,
            false => slot.largest_page(walk.gfn, &host, guest.min(top)).2,
        }
    }

    /// Whether an entry of the walk is another one by now, but for its flags.
    #[inline]
    fn changed(&self, source: Option<&Source>, walk: &GuestWalk, level: u8, index: u16) -> bool {
        let Some(source) = source else { return true };
        let now = self.entry(source, index);
        (now ^ walk.gptes[at(level)]) & !(ACCESSED | DIRTY) != 0
    }

    /// The shadow page of a guest table in a role: found, or made. Then its frame is read-only to the guest, or the page
    /// was unsync and is up to date.
    // REQ: SP-1, SP-7, SP-8
    pub(super) fn page_for(&mut self, gfn: Gfn, role: Role) -> TableId {
        if let Some(found) = self.lookup(gfn, role) {
            self.pages.touch(found);
            if self.pages.get(found).unsync {
                // Up to date from here, as after a flush; and still unsync, so that it costs no write-protection.
                self.refresh(found);
                self.commit();
            } else {
                // The flushes of the vCPU that comes here now did not reach what is below.
                self.sync_children(found);
            }
            return found;
        }
        let slot = self.slot(gfn);
        if !role.direct() {
            self.zap_other_format(gfn, role);
        }
        let id = self.make(gfn, role, slot);
        if role.direct() {
            return id;
        }
        if let Some(slot) = slot {
            slot.data.large.disallow(gfn);
        }
        // What the guest wrote to it in other roles, nobody has looked at since.
        self.sync_gfn(gfn);
        id
    }

    /// Zaps the pages of a guest table whose entries have another size. A flag that is set in an entry changes nothing that
    /// sptes of the same format are made of; in another format it may be a bit of an address.
    fn zap_other_format(&mut self, gfn: Gfn, role: Role) {
        loop {
            let tables = self.tables();
            let other = self.pages_of(gfn).find(|id| {
                let its = tables.get(*id).role();
                its.cr4_pae() != role.cr4_pae() && !its.invalid()
            });
            let Some(id) = other else { break };
            self.zap_page(id);
        }
        self.commit();
    }

    /// A page of the present generation, by its key.
    // REQ: SP-1, ZAP-2
    pub(super) fn lookup(&self, gfn: Gfn, role: Role) -> Option<TableId> {
        self.pages.same_hash(gfn).find(|id| {
            let table = self.tables().get(*id);
            table.gfn() == gfn && table.role() == role && !self.mmu.is_obsolete(*id)
        })
    }

    fn make(&mut self, gfn: Gfn, role: Role, slot: Option<&Slot>) -> TableId {
        let valid_gen = self.mmu.valid_gen();
        let id = self.tables().take(self.held, gfn, role, valid_gen);
        let id = id.expect("room was made before the fault");
        let slot = slot.filter(|_| !role.direct()).map(|slot| slot.id);
        self.pages.insert(id, gfn, role, slot);
        id
    }

    /// The page is no reason against large sptes any more.
    pub(super) fn unaccount(&mut self, id: TableId) {
        let table = self.tables().get(id);
        if let (false, Some(slot)) = (table.role().direct(), self.slot(table.gfn())) {
            slot.data.large.allow(table.gfn());
        }
    }

    /// Makes an spte point at a page.
    // REQ: SP-4
    pub(super) fn link(&mut self, place: SptePlace, child: TableId) {
        if !self.tables().read(place).is_empty() {
            self.zap_spte(place);
            self.commit();
        }
        self.tables()
            .get(child)
            .parent_ptes()
            .add(self.entries(), self.reserve, place);
        self.tables().set(place, Spte::table(self.tables().format(), child));
        let page = self.pages.get(child);
        if page.unsync || page.unsync_children > 0 {
            self.mark_child(place);
        }
    }

    /// The direct page below an spte. One that was made under other rights of the guest's entry is not for this access.
    fn direct_below(&mut self, place: SptePlace, gfn: Gfn, role: Role) -> TableId {
        if let Some(child) = self.tables().read(place).peek_table(self.tables().format())
            && self.tables().get(child).role() == role
            && self.tables().get(child).gfn() == gfn
        {
            return child;
        }
        let child = self.page_for(gfn, role);
        self.link(place, child);
        child
    }

    /// Writes a leaf that maps `gfn` with the page of `size` around it.
    // REQ: PF-4, LP-2
    #[expect(clippy::too_many_arguments, reason = "all of them make the one word")]
    #[inline(always)]
    pub(super) fn set_leaf(
        &mut self,
        place: SptePlace,
        slot: &Slot,
        host: GuestAccess,
        size: PageLevel,
        gfn: Gfn,
        access: PteAccess,
        wish: Wish,
    ) -> Fetched {
        let role = self.tables().get(place.table).role();
        let access = granted(&role, access, wish);
        let host_writable = host == GuestAccess::All && !slot.flags.contains(SlotFlags::READONLY);
        let logged = slot.flags.contains(SlotFlags::LOG_DIRTY);
        let unsync = if wish == Wish::Prefetch {
            Unsync::Unwanted
        } else {
            Unsync::Allowed
        };
        let mut refused = false;
        let writable = if !host_writable {
            Writable::HostReadOnly
        } else if !access.contains(PteAccess::WRITE) {
            Writable::Protected
        } else if size == PageLevel::K4 && self.allow_writes(slot, gfn, unsync).is_err() {
            refused = true;
            Writable::Protected
        } else if logged && wish != Wish::Write {
            // REQ: DT-1: the first write has to come by.
            Writable::Restorable
        } else {
            Writable::Now
        };
        let at = gfn.align_down(size);
        let new = Leaf {
            frame: slot.frame_of(at),
            level: size,
            writable,
            rights: rights(access),
        };
        self.put_leaf(place, slot, at, new);
        if logged && writable == Writable::Now {
            slot.data.dirty.mark(gfn);
        }
        match refused && wish == Wish::Write {
            true => Fetched::WriteProtected,
            false => Fetched::Mapped,
        }
    }

    /// Puts a leaf where nothing is, or something else for this gfn, or what the guest's tables said before.
    #[inline(always)]
    fn put_leaf(&mut self, place: SptePlace, slot: &Slot, gfn: Gfn, new: Leaf) {
        let old = self.tables().read(place);
        if !old.is_empty() && !self.make_way(place, old, gfn, new) {
            return;
        }
        self.pages.set_gfn(place.table, place.index, gfn);
        self.tables().set(place, Spte::leaf(self.tables().format(), new));
        slot.data.add(self.entries(), self.reserve, gfn, new.level, place);
        self.mmu.count_mapped(new.level);
        self.mmu.trace.event(|| Event::Map { gfn, level: new.level });
    }

    /// What is at the place becomes the new leaf, or goes; `true`: the place is empty now.
    #[inline(never)]
    fn make_way(&mut self, place: SptePlace, old: Spte, gfn: Gfn, new: Leaf) -> bool {
        match self.kind(place, old) {
            SpteKind::Leaf(leaf) if leaf.frame == new.frame && self.gfn_of(place) == gfn => {
                if leaf != new {
                    self.change_leaf(place, new);
                }
                false
            }
            SpteKind::Empty
            | SpteKind::Leaf(_)
            | SpteKind::Table(_)
            | SpteKind::Mmio(_)
            | SpteKind::AccessTracked(_) => {
                self.zap_spte(place);
                self.commit();
                true
            }
        }
    }

    /// Caches that `gfn` has no memory. What is mapped there goes first, with its reverse map (CVE-2026-23401).
    // REQ: GEN-1, GEN-8
    fn set_mmio(&mut self, place: SptePlace, gfn: Gfn, access: PteAccess, stamp: Option<Stamp>) {
        if !self.tables().read(place).is_empty() {
            self.zap_spte(place);
        }
        let Some(stamp) = stamp else { return };
        let generation = stamp.generation();
        let spte = MmioSpte {
            gfn,
            access: memory::mmio_access(access),
            generation,
        };
        self.pages.set_gfn(place.table, place.index, gfn);
        self.tables().set(place, Spte::mmio(self.tables().format(), spte));
        self.tables().mark_mmio(self.held, place.table);
        self.mmu.trace.event(|| Event::MarkMmio { gfn, generation });
    }
}

/// The spte of a table that translates `gva`: as hardware finds it.
pub(super) fn place_of(table: TableId, level: u8, gva: u64) -> SptePlace {
    SptePlace {
        table,
        index: (gva >> (12 + 9 * (level as u32 - 1))) as u16 & 0x1ff,
    }
}

/// The role of an indirect page of `level`, but for its access.
// REQ: SP-1, SP-2
pub(super) fn child_role(paging: &Paging, level: u8, gva: u64) -> Role {
    let quadrant = match (paging.role.cr4_pae(), level) {
        (true, _) => 0,
        // A host table of level 1 has 2M of the guest's 4M; one of level 2 has 1G of its 4G.
        (false, 1) => (gva >> 21) as u8 & 1,
        (false, _) => (gva >> 30) as u8 & 3,
    };
    paging.role.with_level(level).with_direct(false).with_quadrant(quadrant)
}

/// What an spte allows for an access that the guest's entries allow.
// REQ: PF-4
#[inline]
fn granted(role: &Role, access: PteAccess, wish: Wish) -> PteAccess {
    if wish != Wish::Write || access.contains(PteAccess::WRITE) {
        return access;
    }
    // cr0.wp=0: the supervisor writes to a read-only page, and gets one that is its own: user mode faults there, and is
    // given the other kind. It must not fetch from what is no user page any more, where SMEP binds it.
    debug_assert!(!role.cr0_wp());
    let kernel = (access | PteAccess::WRITE).difference(PteAccess::USER);
    match role.smep_andnot_wp() && access.contains(PteAccess::USER) {
        true => kernel.difference(PteAccess::EXEC),
        false => kernel,
    }
}

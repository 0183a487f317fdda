// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does an unsync page catch up with the guest's table? Its gfn becomes read-only, then every spte is compared.
//!
//! In this order, with the flush between: a processor that still had a writable translation could otherwise change an entry
//! after it was compared.
//!
//! | this thread                      | a vCPU                      |
//! |----------------------------------|-----------------------------|
//! | W of the table's frame: clear    | may write by its TLB        |
//! | flush                            |                             |
//! | compare entries with sptes       | a write faults, and waits   |

use super::unsync::Unsync;
use super::{Shadow, memory};
use crate::role::{PteAccess, Role};
use crate::slots::Slot;
use crate::spte::{Leaf, Rights, SpteKind, Writable};
use crate::stage2::{Frame, GpteSize, Stage2};
use crate::table::{ENTRIES, SptePlace, TableId};
use umbra_mmu_abi::{Gfn, SlotFlags};

/// The two passes over unsync pages: one flush between serves all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Protect,
    Compare,
}

/// A guest table as its entries are read for the sptes of one shadow page.
#[derive(Clone, Copy)]
pub(super) struct Source {
    frame: Frame,
    size: GpteSize,
    pub(super) role: Role,
}

impl Source {
    /// The guest table in `frame`, for the shadow pages of a role.
    #[inline]
    pub(super) fn of(frame: Frame, role: Role) -> Self {
        let size = match role.cr4_pae() {
            true => GpteSize::B8,
            false => GpteSize::B4,
        };
        Self { frame, size, role }
    }

    /// Where the entry is that an spte is made from: 4-byte tables have 1024 entries, of which a page shadows a part.
    // REQ: SP-2
    pub(super) fn index(role: Role, index: u16) -> u16 {
        match (role.cr4_pae(), role.level()) {
            (true, _) => index,
            (false, 1) => role.quadrant() as u16 * ENTRIES as u16 + index,
            // Two sptes of 2M for an entry of 4M.
            (false, _) => (role.quadrant() as u16 * ENTRIES as u16 + index) / 2,
        }
    }
}

impl<S: Stage2> Shadow<'_, S> {
    /// Synchronises every unsync page that can be reached from a root.
    // REQ: SP-7
    pub(super) fn sync_children(&mut self, root: TableId) {
        if self.pages.get(root).unsync_children == 0 {
            return;
        }
        self.pass_over(root, Pass::Protect);
        self.commit();
        self.pass_over(root, Pass::Compare);
    }

    fn pass_over(&mut self, id: TableId, pass: Pass) {
        let mut from = 0;
        while let Some(index) = self.pages.get(id).next_child(from) {
            from = index + 1;
            let below = self.tables().read(SptePlace { table: id, index });
            let Some(child) = below.peek_table(self.tables().format()) else {
                self.pages.get_mut(id).clear_child(index);
                continue;
            };
            if self.pages.get(child).unsync {
                match pass {
                    Pass::Protect => self.write_protect(self.tables().get(child).gfn()),
                    Pass::Compare => self.compare(child),
                }
            }
            self.pass_over(child, pass);
            if pass == Pass::Compare && self.pages.get(child).unsync_children == 0 {
                self.pages.get_mut(id).clear_child(index);
            }
        }
    }

    /// Synchronises all unsync pages of one guest table.
    // REQ: SP-7
    pub(super) fn sync_gfn(&mut self, gfn: Gfn) {
        self.write_protect(gfn);
        self.commit();
        loop {
            let unsync = self.pages_of(gfn).find(|id| self.pages.get(*id).unsync);
            let Some(id) = unsync else { break };
            self.compare(id);
        }
    }

    /// The frame is read-only: from now on the page is synchronised.
    fn compare(&mut self, id: TableId) {
        self.pages.get_mut(id).unsync = false;
        self.refresh(id);
    }

    /// Makes the sptes of a page agree with the guest's entries as they are now.
    pub(super) fn refresh(&mut self, id: TableId) {
        let Some(source) = self.source(id) else { return };
        for index in 0..ENTRIES as u16 {
            if self.tables().get(id).used() == 0 {
                break;
            }
            let place = SptePlace { table: id, index };
            if !self.tables().read(place).is_empty() {
                let gpte = self.entry(&source, index);
                self.refresh_spte(place, &source, gpte);
            }
        }
    }

    /// One spte of a leaf page, for invlpg.
    // REQ: SP-7
    pub(super) fn refresh_one(&mut self, place: SptePlace) {
        if let Some(source) = self.source(place.table)
            && !self.tables().read(place).is_empty()
        {
            let gpte = self.entry(&source, place.index);
            self.refresh_spte(place, &source, gpte);
        }
    }

    /// The guest table behind an indirect page. A page without one has no sptes.
    pub(super) fn source(&self, id: TableId) -> Option<Source> {
        let table = self.tables().get(id);
        let role = table.role();
        let slot = self.slot(table.gfn()).filter(|_| !role.direct())?;
        Some(Source::of(slot.frame_of(table.gfn()), role))
    }

    /// The entry behind an spte.
    pub(super) fn entry(&self, source: &Source, index: u16) -> u64 {
        let offset = Source::index(source.role, index) * source.size as u16;
        self.mmu.read_guest(source.frame, offset, source.size)
    }

    /// Makes one spte of a leaf page agree with its entry. It stays only where it maps the same frame.
    fn refresh_spte(&mut self, place: SptePlace, source: &Source, gpte: u64) {
        let format = self.pages.formats.of(source.role);
        if !format.is_used(1, gpte) {
            return self.zap_spte(place);
        }
        let gfn = format.page(1, gpte);
        let access = format.leaf_access(source.role.access(), gpte);
        let kind = self.kind(place, self.tables().read(place));
        match kind {
            SpteKind::Leaf(leaf) if self.gfn_of(place) == gfn => {
                let slot = self.slot(gfn).expect("a leaf lies in a slot");
                let writable = self.writable_again(slot, gfn, access, leaf.writable);
                let new = Leaf {
                    writable,
                    rights: rights(access),
                    ..leaf
                };
                if new != leaf {
                    self.change_leaf(place, new);
                }
            }
            SpteKind::Mmio(mmio) if mmio.gfn == gfn && mmio.access == memory::mmio_access(access) => {}
            SpteKind::Empty => {}
            SpteKind::Leaf(_) | SpteKind::Mmio(_) => self.zap_spte(place),
            SpteKind::Table(_) | SpteKind::AccessTracked(_) => panic!("{kind:?} in a leaf page"),
        }
    }

    /// The writability of a leaf that stays, under rights that may have changed.
    fn writable_again(&mut self, slot: &Slot, gfn: Gfn, access: PteAccess, old: Writable) -> Writable {
        let logged = slot.flags.contains(SlotFlags::LOG_DIRTY);
        match old {
            Writable::HostReadOnly => old,
            _ if !access.contains(PteAccess::WRITE) => Writable::Protected,
            _ if self.allow_writes(slot, gfn, Unsync::Synchronising).is_err() => Writable::Protected,
            Writable::Now => old,
            // The first write has to come by for the log.
            Writable::Protected | Writable::Restorable if logged => Writable::Restorable,
            Writable::Protected | Writable::Restorable => Writable::Now,
        }
    }
}

/// The rights of a leaf, out of what the guest's entries allow.
pub(super) fn rights(access: PteAccess) -> Rights {
    let mut rights = Rights::empty();
    rights.set(Rights::USER, access.contains(PteAccess::USER));
    rights.set(Rights::EXEC, access.contains(PteAccess::EXEC));
    rights
}

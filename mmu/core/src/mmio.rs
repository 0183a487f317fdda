// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is what an MMIO spte says still true? The check of its generation, and how such an spte comes and goes.

use crate::Mmu;
use crate::fault::Walk;
use crate::spte::{Format, MmioAccess, MmioSpte, Spte, SpteKind};
use crate::stage2::{Stage2, TableLevel, Unflushed};
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::trace::Event;
use umbra_mmu_abi::{Generation, Gfn, Mmio};

/// How the fast path of an MMIO fault ended (KVM: `RET_MMIO_PF_*`).
// REQ: GEN-4
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioCheck {
    /// The spte holds: emulate, without the slow path.
    Emulate,
    /// The slots have changed since: the slow path refreshes the spte.
    Invalid,
    /// The spte is no MMIO spte any more: let the guest run into whatever is there now.
    Retry,
    /// The spte is for another gfn than its place: a broken invariant.
    Bug,
}

/// Judges the spte that was found for `gfn`. `slots` is `None` while a change of the slots is in progress.
// REQ: GEN-4, GEN-6
pub fn check(kind: SpteKind, gfn: Gfn, slots: Option<Generation>) -> MmioCheck {
    match kind {
        SpteKind::Mmio(spte) if spte.gfn != gfn => MmioCheck::Bug,
        SpteKind::Mmio(spte) if Some(spte.generation) == slots => MmioCheck::Emulate,
        SpteKind::Mmio(_) => MmioCheck::Invalid,
        SpteKind::Empty | SpteKind::Table(_) | SpteKind::Leaf(_) | SpteKind::AccessTracked(_) => MmioCheck::Retry,
    }
}

impl<S: Stage2> Mmu<S> {
    /// Whether the spte at `gfn` is the very word that would be written there now: [`MmioCheck::Emulate`], at once.
    // REQ: GEN-4
    #[inline]
    pub(crate) fn is_fresh_mmio(&mut self, spte: Spte, gfn: Gfn) -> bool {
        let Some(generation) = self.slots.generation().cacheable() else {
            return false;
        };
        let fresh = spte
            == Spte::mmio(
                Format::Ept,
                MmioSpte {
                    gfn,
                    access: MmioAccess::All,
                    generation,
                },
            );
        if fresh {
            let result = MmioCheck::Emulate;
            self.trace.event(|| Event::CheckMmio {
                gfn,
                spte: generation,
                slots: generation,
                result,
            });
        }
        fresh
    }

    /// [`check`], traced.
    pub(crate) fn check_mmio(&mut self, kind: SpteKind, gfn: Gfn) -> MmioCheck {
        let generation = self.slots.generation();
        let result = check(kind, gfn, generation.cacheable());
        if let SpteKind::Mmio(spte) = kind {
            let slots = generation.current();
            self.trace.event(|| Event::CheckMmio {
                gfn,
                spte: spte.generation,
                slots,
                result,
            });
        }
        result
    }

    /// What the vmm is told about a frame without memory.
    pub(crate) fn mmio(&self, gfn: Gfn) -> Mmio {
        Mmio {
            gfn,
            generation: self.generation(),
            readonly_slot: false,
        }
    }

    /// Caches that `gfn` has no memory, where tables for it are to be had. Not having it cached costs time only.
    // REQ: GEN-1, PF-1
    pub(crate) fn cache_mmio(&mut self, walk: &Walk, gfn: Gfn) {
        let Some(generation) = self.slots.generation().cacheable() else {
            return;
        };
        let table = match self.on_the_way(walk, TableLevel::Pt) {
            Some(table) => table,
            None if self.make_room(gfn) => self.table_for(gfn, TableLevel::Pt),
            None => return,
        };
        let place = self.tables.place(table, TableLevel::Pt, gfn);
        match self.tables.kind(place) {
            SpteKind::Empty | SpteKind::Mmio(_) => {}
            // A mapping under an MMIO spte would be lost to the reverse map (CVE-2026-23401): there is none, because
            // the mappings of a slot go before the slot does.
            kind @ (SpteKind::Table(_) | SpteKind::Leaf(_) | SpteKind::AccessTracked(_)) => {
                panic!("{gfn} has no memory, and an spte {kind:?}")
            }
        }
        self.tables.set(
            place,
            Spte::mmio(
                Format::Ept,
                MmioSpte {
                    gfn,
                    access: MmioAccess::All,
                    generation,
                },
            ),
        );
        self.tables.mark_mmio(table);
        self.trace.event(|| Event::MarkMmio { gfn, generation });
    }

    /// Room for an MMIO spte: tables on the way are free, or some that hold nothing else can be had.
    fn make_room(&mut self, gfn: Gfn) -> bool {
        let walk = self.walk(gfn);
        // A large leaf cannot be on the way to a frame without memory.
        let missing = walk.level as usize - TableLevel::Pt as usize;
        while self.tables.free_count() < missing {
            if !self.evict_mmio_table(gfn) {
                return false;
            }
        }
        // An eviction may have freed tables of the way itself.
        self.tables.free_count() >= self.walk(gfn).level as usize - TableLevel::Pt as usize
    }

    /// Frees the oldest table that holds MMIO sptes only and does not translate `keep`; `false`: there is none.
    pub(crate) fn evict_mmio_table(&mut self, keep: Gfn) -> bool {
        for _ in 0..self.tables.capacity() {
            let Some(id) = self.tables.oldest_mmio() else {
                return false;
            };
            let table = self.tables.get(id);
            let here = TableLevel::Pt.base(keep) == table.gfn();
            if table.leaves() == 0 && !here && !self.is_obsolete(id) {
                self.clear_mmio(id);
                let removed = self.free_if_empty(id);
                self.invalidate_seq += 1;
                self.stage2.flush(removed);
                return true;
            }
            // To the end of the list: the next search begins with another.
            self.tables.unmark_mmio(id);
            self.tables.mark_mmio(id);
        }
        false
    }

    /// Zaps every MMIO spte, by the list of tables that have some.
    // REQ: GEN-5, GEN-8
    pub(crate) fn zap_mmio(&mut self) -> Unflushed {
        let (mut tables, mut sptes) = (0, 0);
        let mut removed = Unflushed::NOTHING;
        while let Some(id) = self.tables.oldest_mmio() {
            tables += 1;
            sptes += self.clear_mmio(id);
            if !self.is_obsolete(id) {
                removed.and(self.free_if_empty(id));
            }
        }
        self.invalidate_seq += 1;
        self.trace.event(|| Event::ZapMmio { tables, sptes });
        removed
    }

    /// Empties the MMIO sptes of a table and takes it off the list.
    fn clear_mmio(&mut self, table: TableId) -> u32 {
        let mut cleared = 0;
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            if let SpteKind::Mmio(_) = self.tables.kind(place) {
                self.tables.set(place, Spte::EMPTY);
                cleared += 1;
            }
        }
        self.tables.unmark_mmio(table);
        cleared
    }
}

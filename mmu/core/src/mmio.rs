// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is what an MMIO spte says still true? The check of its generation, and how such an spte comes and goes.

use crate::Mmu;
use crate::fault::{Fault, FaultError, Installed, Outcome, Walk};
use crate::generation::Stamp;
use crate::locks::{Held, InMmu};
use crate::spte::{Format, MmioAccess, MmioSpte, Spte, SpteKind};
use crate::stage2::{Stage2, TableLevel};
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::trace::Event;
use crate::vcpu::{TableCache, Vcpu};
use crate::zap::Zap;
use umbra_mmu_abi::{Generation, Gfn, Mmio, PAGE_SHIFT};

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
    /// What this vCPU remembers of its last MMIO access, if this is the same one and no slot has changed since.
    // REQ: GEN-7
    #[inline(always)]
    pub(crate) fn remembered_mmio(&self, vcpu: &Vcpu, fault: &Fault, stamp: Stamp) -> Option<Mmio> {
        let gfn = vcpu.mmio.get(fault.address >> PAGE_SHIFT, fault.code.bits(), stamp)?;
        Some(mmio_at(gfn, stamp))
    }

    /// Whether the spte at `gfn` is the very word that would be written there now: [`MmioCheck::Emulate`], at once.
    // REQ: GEN-4
    #[inline(always)]
    pub(crate) fn fresh_mmio(&self, spte: Spte, gfn: Gfn, stamp: Stamp) -> Option<Mmio> {
        // The gfn is what is left of the word without the rest.
        let rest = mmio_spte(Gfn::new(0), stamp.generation());
        (spte.raw() ^ rest.raw() == gfn.gpa().raw()).then(|| mmio_at(gfn, stamp))
    }

    /// The answer to a fault where cached knowledge holds.
    #[inline(always)]
    pub(crate) fn answer_cached(&self, mmio: Mmio) -> Result<Outcome, FaultError> {
        match self.trace.is_on() {
            false => Ok(self.emulate(mmio)),
            true => self.answer_traced(mmio.gfn, mmio.generation),
        }
    }

    #[cold]
    #[inline(never)]
    fn answer_traced(&self, gfn: Gfn, generation: Generation) -> Result<Outcome, FaultError> {
        self.trace.event(|| Event::CheckMmio {
            gfn,
            spte: generation,
            slots: generation,
            result: MmioCheck::Emulate,
        });
        Ok(self.emulate(Mmio {
            gfn,
            generation,
            readonly_slot: false,
        }))
    }

    /// [`check`], traced.
    pub(crate) fn check_mmio(&self, kind: SpteKind, gfn: Gfn) -> MmioCheck {
        let result = check(kind, gfn, self.generation.cacheable().map(Stamp::generation));
        if let SpteKind::Mmio(spte) = kind {
            let slots = self.generation.current();
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

    /// Caches in an spte that `gfn` has no memory. Never over a mapping: a slot that came meanwhile may have one there
    /// already, and overwriting it would lose it to the reverse map (CVE-2026-23401).
    // REQ: GEN-1, PF-1
    pub(crate) fn install_mmio(
        &self,
        held: &mut Held<InMmu>,
        cache: &mut TableCache,
        gfn: Gfn,
        stamp: Stamp,
    ) -> Installed {
        let (place, old) = match self.extend(held, cache, gfn, TableLevel::Pt) {
            Ok(found) => found,
            Err(blocked) => return Installed::Blocked(blocked),
        };
        match old.peek(Format::Ept, TableLevel::Pt as u8) {
            Ok(SpteKind::Empty | SpteKind::Mmio(_)) => {}
            Ok(SpteKind::Leaf(_) | SpteKind::AccessTracked(_)) => return Installed::Overtaken,
            Ok(SpteKind::Table(_)) | Err(_) => panic!("{place:?} holds {old:?}, which is no spte"),
        }
        match self.mark_mmio(held, place, old, gfn, stamp) {
            true => Installed::Done,
            false => Installed::Overtaken,
        }
    }

    /// The same where a walk has found an MMIO spte of an earlier state of the slots; `None`: it is something else.
    // REQ: GEN-4
    #[inline]
    pub(crate) fn replace_mmio(&self, held: &mut Held<InMmu>, walk: &Walk, gfn: Gfn, stamp: Stamp) -> Option<Mmio> {
        let kind = walk.spte.peek(Format::Ept, walk.level as u8).ok()?;
        match self.check_mmio(kind, gfn) {
            MmioCheck::Invalid => {}
            MmioCheck::Emulate | MmioCheck::Retry | MmioCheck::Bug => return None,
        }
        self.mark_mmio(held, walk.place, walk.spte, gfn, stamp)
            .then(|| mmio_at(gfn, stamp))
    }

    /// Makes an spte that still is `old`, and no mapping, an MMIO spte.
    #[inline]
    fn mark_mmio(&self, held: &mut Held<InMmu>, place: SptePlace, old: Spte, gfn: Gfn, stamp: Stamp) -> bool {
        let generation = stamp.generation();
        let done = self
            .tables
            .compare_exchange(place, old, mmio_spte(gfn, generation))
            .is_ok();
        if done {
            self.tables.mark_mmio(held, place.table);
            self.trace.event(|| Event::MarkMmio { gfn, generation });
        }
        done
    }
}

#[inline(always)]
fn mmio_at(gfn: Gfn, stamp: Stamp) -> Mmio {
    let generation = stamp.generation();
    Mmio {
        gfn,
        generation,
        readonly_slot: false,
    }
}

/// The word that caches the absence of memory at `gfn`.
#[inline]
fn mmio_spte(gfn: Gfn, generation: Generation) -> Spte {
    Spte::mmio(
        Format::Ept,
        MmioSpte {
            gfn,
            access: MmioAccess::All,
            generation,
        },
    )
}

impl<S: Stage2> Zap<'_, S> {
    /// Frees the oldest table that holds MMIO sptes only and does not translate `keep`; `false`: there is none.
    pub(crate) fn evict_mmio_table(&mut self, keep: Gfn) -> bool {
        let Mmu { tables, .. } = self.mmu;
        for _ in 0..tables.capacity() {
            let Some(id) = tables.oldest_mmio(self.held) else {
                return false;
            };
            let table = tables.get(id);
            let here = TableLevel::Pt.base(keep) == table.gfn();
            if table.leaves() == 0 && !here && !self.mmu.is_obsolete(id) {
                self.clear_mmio(id);
                self.free_if_empty(id);
                return true;
            }
            // The next search begins with another.
            tables.requeue_mmio(self.held, id);
        }
        false
    }

    /// Zaps every MMIO spte, by the list of tables that have some.
    // REQ: GEN-5, GEN-8
    pub(crate) fn mmio(&mut self) {
        // Who read the generation before it wrapped must not write it into an spte after this.
        self.mmu.invalidate.bump();
        if let Some((tables, sptes)) = self.shadow(|shadow| shadow.zap_mmio()) {
            return self.mmu.trace.event(|| Event::ZapMmio { tables, sptes });
        }
        let (mut tables, mut sptes) = (0, 0);
        while let Some(id) = self.mmu.tables.oldest_mmio(self.held) {
            tables += 1;
            sptes += self.clear_mmio(id);
            if !self.mmu.is_obsolete(id) {
                self.free_if_empty(id);
            }
        }
        self.mmu.trace.event(|| Event::ZapMmio { tables, sptes });
    }

    /// Empties the MMIO sptes of a table and takes it off the list.
    fn clear_mmio(&mut self, table: TableId) -> u32 {
        let tables = &self.mmu.tables;
        let mut cleared = 0;
        for index in 0..ENTRIES as u16 {
            let place = SptePlace { table, index };
            if let SpteKind::Mmio(_) = tables.kind(place) {
                tables.set(place, Spte::EMPTY);
                cleared += 1;
            }
        }
        tables.unmark_mmio(self.held, table);
        cleared
    }
}

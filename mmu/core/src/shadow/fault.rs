// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens on a page fault in shadow mode? The order of KVM's mmu.txt, step by step.

use super::fetch::{Fetched, Target, Wish, place_of};
use super::memory::{GuestMemory, access};
use super::roots::VcpuPaging;
use super::usual::LastPath;
use super::walk::{GuestWalk, NoWalk, Paging, walk, walk_into};
use crate::Mmu;
use crate::fault::{ErrorCode, Fault, FaultError, GuestFault, HostFault, Outcome};
use crate::generation::Stamp;
use crate::locks::Held;
use crate::mmio::MmioCheck;
use crate::role::PteAccess;
use crate::slots::{GFN_LIMIT, Slot, SlotState, SlotTable};
use crate::spte::{Leaf, MmioAccess, Rights, Spte, SpteKind, Writable};
use crate::stage2::Stage2;
use crate::sync::atomic::Ordering;
use crate::table::{SptePlace, TableId};
use crate::vcpu::{MmioCache, Vcpu};
use umbra_mmu_abi::{Gfn, Mmio, PageLevel, SlotFlags};

/// Attempts before the guest itself has to try again.
const ATTEMPTS: u32 = 64;

/// What is behind the frame of a walk.
enum Backed<'a> {
    Target(Target<'a>),
    Answer(Outcome),
    Host(HostFault),
}

impl<S: Stage2> Mmu<S> {
    /// Handles a page fault of a guest that runs on shadow tables.
    ///
    /// # Errors
    /// See [`FaultError`].
    // REQ: PF-1
    #[inline(never)]
    pub(crate) fn shadow_fault(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
        // (a) MMIO, as this vCPU remembers it.
        if let Some(stamp) = self.generation.cacheable()
            && let Some(mmio) = self.remembered_mmio(vcpu, fault, stamp)
        {
            return self.answer_cached(mmio);
        }
        if !fault.code.contains(ErrorCode::RSVD)
            && let Some(outcome) = self.shadow_usual(vcpu, fault)
        {
            return Ok(outcome);
        }
        self.shadow_unusual(vcpu, fault)
    }

    #[inline(never)]
    fn shadow_unusual(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
        for _ in 0..ATTEMPTS {
            if let Some(outcome) = self.shadow_attempt(vcpu, fault)? {
                return Ok(outcome);
            }
        }
        // Others are always faster. The guest comes again.
        Ok(self.resume())
    }

    fn shadow_attempt(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Option<Outcome>, FaultError> {
        let Vcpu {
            walker,
            reserve,
            mmio: remembered,
            paging,
            ..
        } = vcpu;
        let state = paging.as_mut().expect("a vCPU of an MMU in shadow mode");
        let gva = state.paging.linear(fault.address);
        let Some(root) = state.root(gva) else {
            return self.without_root(state, fault);
        };
        let paging = &state.paging;
        // Before anything is looked at: what changes from here on makes what was seen void.
        let seq = self.invalidate.seq();
        let stamp = self.generation.cacheable();
        // (a) A reserved bit: MMIO, as the spte has it.
        if fault.code.contains(ErrorCode::RSVD) {
            let spte = {
                let _walking = self.walkers.enter(walker);
                self.leaf_of(root, paging.role.level(), gva).1
            };
            if let Some(mmio) = self.cached_mmio(remembered, paging, spte, fault, stamp) {
                return Ok(Some(mmio));
            }
        }
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        // (b) A write to a present leaf: W may be given back without mmu_lock.
        if fault.code.contains(ErrorCode::P | ErrorCode::W) && !fault.code.contains(ErrorCode::RSVD) {
            let _walking = self.walkers.enter(walker);
            let (place, spte) = self.leaf_of(root, paging.role.level(), gva);
            if self.fast_shadow_fault(slots, paging, place, spte, fault.code) {
                return Ok(Some(self.resume()));
            }
        }
        // (c) What the guest's tables say, (d) and whether they allow it.
        let memory = GuestMemory::new(self, slots);
        let mut walk = GuestWalk::NEW;
        let walked = walk_into(&mut walk, &memory, paging, gva, fault.code);
        if let Some((gfn, need)) = memory.need.get() {
            return Ok(self.ask_host(held, seq, gfn, need));
        }
        match walked {
            Ok(()) => {}
            Err(NoWalk::Retry) => return Ok(Some(self.resume())),
            Err(NoWalk::Fault(code)) => {
                // A page fault makes the processor forget the address (SDM vol. 3, 4.10.4.1): what is unsync has to catch
                // up, or another access would find what the guest has replaced.
                if fault.code.contains(ErrorCode::P) {
                    self.with_shadow(slots, held, reserve, |shadow| {
                        shadow.sync_address(root, paging.role.level(), gva);
                    });
                }
                return Ok(Some(reflect(fault, code)));
            }
        }
        // (e) The frame behind it, or (f) none.
        let target = match self.backed(memory.slot(walk.gfn), walk.gfn, fault.code, stamp) {
            Backed::Target(target) => target,
            Backed::Answer(outcome) => return Ok(Some(outcome)),
            Backed::Host(need) => return Ok(self.ask_host(held, seq, walk.gfn, need)),
        };
        if wants_emulation(paging, &walk, fault.code, target) {
            return Ok(Some(Outcome::EmulateTableWrite { gpa: walk.gpa }));
        }
        // (g) Tables and the leaf.
        let wish = match fault.code.contains(ErrorCode::W) {
            true => Wish::Write,
            false => Wish::Read,
        };
        let mut path = None;
        let fetched = self.with_shadow_and(slots, memory.last(), held, reserve, |shadow| {
            // REQ: PF-3
            let gone = self.is_obsolete(root) || self.tables.get(root).role().invalid();
            if gone || self.overtaken(seq, paging, &walk, target) || !shadow.make_room() {
                return None;
            }
            let fetched = shadow.fetch(paging, root, gva, &walk, target, wish);
            let structure = self.structure.load(Ordering::Relaxed);
            path = LastPath::new(paging, gva, &walk, shadow.leaf_page, structure);
            Some(fetched)
        });
        if fetched == Some(Fetched::Mapped) {
            state.path = path;
        }
        match (fetched, target) {
            (None | Some(Fetched::Changed), _) => {
                if self.is_obsolete(root) || self.tables.get(root).role().invalid() {
                    // The vCPU gets other roots before it runs again.
                    state.reload();
                    return Ok(Some(self.resume()));
                }
                Ok(None)
            }
            // (h) A write to a guest table that must be seen.
            (Some(Fetched::WriteProtected), _) => Ok(Some(Outcome::EmulateTableWrite { gpa: walk.gpa })),
            (Some(Fetched::Mapped), Target::Page(..)) => Ok(Some(self.resume())),
            (Some(Fetched::Mapped), Target::Mmio(stamp)) => {
                if let Some(stamp) = stamp {
                    let code = fault.code | ErrorCode::P | ErrorCode::RSVD;
                    remembered.fill(fault.address >> 12, walk.gfn, code.bits(), stamp);
                }
                Ok(Some(self.emulate(self.mmio(walk.gfn))))
            }
        }
    }

    /// Whether what was seen before mmu_lock was taken may be wrong.
    // REQ: PF-3
    fn overtaken(&self, seq: u64, paging: &Paging, walk: &GuestWalk, target: Target<'_>) -> bool {
        let size = match target {
            Target::Page(_, host) => host.level,
            Target::Mmio(_) => PageLevel::K4,
        };
        // The guest's tables are in frames as well.
        let table = |level| walk.table(level, &paging.format);
        self.invalidate.must_retry_page(seq, walk.gfn.align_down(size), size)
            || self.invalidate.is_in_progress()
                && (walk.leaf.max(1)..=walk.top).any(|level| self.invalidate.must_retry(seq, table(level)))
    }

    /// There is no root for this address: the guest has no table for it, or the vCPU has not entered since it has.
    #[cold]
    fn without_root(&self, state: &mut VcpuPaging, fault: &Fault) -> Result<Option<Outcome>, FaultError> {
        let seq = self.invalidate.seq();
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let memory = GuestMemory::new(self, slots);
        let paging = &state.paging;
        let walk = walk(&memory, paging, paging.linear(fault.address), fault.code);
        if let Some((gfn, need)) = memory.need.get() {
            return Ok(self.ask_host(held, seq, gfn, need));
        }
        match walk {
            Err(NoWalk::Fault(code)) => Ok(Some(reflect(fault, code))),
            Ok(_) | Err(NoWalk::Retry) => {
                state.reload();
                Ok(Some(self.resume()))
            }
        }
    }

    /// The spte at which hardware's walk for `gva` ends, without a lock: the caller is in a walk of the epochs.
    pub(super) fn leaf_of(&self, root: TableId, top: u8, gva: u64) -> (SptePlace, Spte) {
        let (mut table, mut level) = (root, top);
        loop {
            let place = place_of(table, level, gva);
            let spte = self.tables.read(place);
            match spte.peek_table(self.tables.format()) {
                Some(below) if level > 1 => (table, level) = (below, level - 1),
                Some(_) | None => return (place, spte),
            }
        }
    }

    /// What an MMIO spte says about the access. Anything that needs the guest's entries, as a fetch or a first write, is
    /// left to the slow path.
    // REQ: PF-1 (a), GEN-4
    fn cached_mmio(
        &self,
        remembered: &mut MmioCache,
        paging: &Paging,
        spte: Spte,
        fault: &Fault,
        stamp: Option<Stamp>,
    ) -> Option<Outcome> {
        // MMIO sptes are in tables of level 1. Not even a word of ours: the slow path replaces it.
        let Ok(kind @ SpteKind::Mmio(mmio)) = spte.peek(self.tables.format(), 1) else {
            return None;
        };
        match self.check_mmio(kind, mmio.gfn) {
            MmioCheck::Emulate if mmio_allows(paging, mmio.access, fault.code) => {
                if let Some(stamp) = stamp.filter(|stamp| stamp.generation() == mmio.generation) {
                    remembered.fill(fault.address >> 12, mmio.gfn, fault.code.bits(), stamp);
                }
                Some(self.emulate(self.mmio(mmio.gfn)))
            }
            MmioCheck::Emulate | MmioCheck::Invalid | MmioCheck::Retry | MmioCheck::Bug => None,
        }
    }

    /// Gives W back to a direct leaf that only lost it to the dirty log: what it maps does not change while the table is
    /// in use. An indirect leaf may be for another gfn by now; that is for the slow path. `true`: done.
    ///
    /// | this vCPU                              | another thread                        |
    /// |----------------------------------------|---------------------------------------|
    /// | reads the spte: maps gfn 1             |                                       |
    /// |                                        | zaps it; the spte maps gfn 2, same frame |
    /// | exchange succeeds, logs gfn 1: gfn 2 is lost |                                 |
    // REQ: DT-2, PF-1 (b)
    pub(super) fn fast_shadow_fault(
        &self,
        slots: &SlotTable,
        paging: &Paging,
        place: SptePlace,
        spte: Spte,
        code: ErrorCode,
    ) -> bool {
        let table = self.tables.get(place.table);
        let Ok(SpteKind::Leaf(leaf)) = spte.peek(self.tables.format(), table.role().level()) else {
            return false;
        };
        // With W the access has to succeed, or a page is logged that nobody writes.
        let mut access = PteAccess::WRITE;
        access.set(PteAccess::USER, leaf.rights.contains(Rights::USER));
        if !table.role().direct() || leaf.writable != Writable::Restorable || paging.forbids(access, code) {
            return false;
        }
        let gfn = self.tables.gfn_of(place);
        let Some(slot) = slots.lookup(gfn).filter(|slot| slot.state == SlotState::Live) else {
            return false;
        };
        let writable = Writable::Now;
        let new = Spte::leaf(self.tables.format(), Leaf { writable, ..leaf }).touched_like(spte);
        if self.tables.compare_exchange(place, spte, new).is_err() {
            return false;
        }
        if slot.flags.contains(SlotFlags::LOG_DIRTY) {
            slot.data.dirty.mark(gfn);
        }
        true
    }

    /// What is behind a frame.
    // REQ: PF-1 (e), MEM-5, MEM-6
    fn backed<'a>(&self, slot: Option<&'a Slot>, gfn: Gfn, code: ErrorCode, stamp: Option<Stamp>) -> Backed<'a> {
        let Some(slot) = slot else {
            // Beyond what MMIO sptes can name, nothing is cached.
            return Backed::Target(Target::Mmio(stamp.filter(|_| gfn.raw() < GFN_LIMIT)));
        };
        if slot.state == SlotState::Invalid {
            return Backed::Answer(self.resume());
        }
        let write = code.contains(ErrorCode::W);
        let readonly = || {
            let mmio = Mmio {
                readonly_slot: true,
                ..self.mmio(gfn)
            };
            Backed::Answer(self.emulate(mmio))
        };
        if write && slot.flags.contains(SlotFlags::READONLY) {
            return readonly();
        }
        let frame = slot.frame_of(gfn);
        match access(&self.host.page(frame), code.access()) {
            Ok(page) => Backed::Target(Target::Page(slot, page)),
            Err(need) => Backed::Host(HostFault { frame, need }),
        }
    }
}

fn reflect(fault: &Fault, code: ErrorCode) -> Outcome {
    Outcome::Reflect(GuestFault {
        cr2: fault.address,
        code,
    })
}

/// A supervisor write with cr0.wp=0 to a read-only user page, while SMAP asks for EFLAGS.AC: as a page of the
/// supervisor's it would let the next one through without AC. There is no spte for it.
// REQ: PF-4
fn wants_emulation(paging: &Paging, walk: &GuestWalk, code: ErrorCode, target: Target<'_>) -> bool {
    let read_only = !walk.access.contains(PteAccess::WRITE) && walk.access.contains(PteAccess::USER);
    let page = matches!(target, Target::Page(..));
    code.contains(ErrorCode::W) && read_only && page && paging.writes_depend_on_ac()
}

/// Whether an MMIO spte alone allows the access.
fn mmio_allows(paging: &Paging, access: MmioAccess, code: ErrorCode) -> bool {
    let (write, user) = match access {
        MmioAccess::Read => (false, false),
        MmioAccess::Write => (true, false),
        MmioAccess::User => (false, true),
        MmioAccess::All => (true, true),
    };
    // W stands for a set dirty bit too, so cr0.wp=0 does not matter; fetches have no bit of their own.
    let (writes, fetches) = (code.contains(ErrorCode::W), code.contains(ErrorCode::I));
    let privilege = match code.contains(ErrorCode::U) {
        true => user,
        false => !(user && paging.smap()) || code.contains(ErrorCode::AC),
    };
    privilege && !fetches && (write || !writes)
}

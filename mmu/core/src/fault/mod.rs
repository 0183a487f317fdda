// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens on a guest fault? Classify, try the fast fix, plan, reserve, apply: in this order.

mod classify;
mod fast;
mod install;
mod plan;
#[cfg(test)]
mod tests;
mod usual;

pub(crate) use classify::Near;
pub use classify::{Class, Walk};
pub(crate) use install::{Blocked, Installed};
pub use plan::MapPlan;

use crate::generation::Stamp;
use crate::locks::{Held, InSection};
use crate::slots::{GFN_LIMIT, SlotTable};
use crate::stage2::{Frame, Resource, Stage2, Stage2Error, TableLevel};
use crate::sync::atomic::Ordering;
use crate::vcpu::{TableCache, Vcpu};
use crate::{Mmu, Mode};
use plan::{Backed, find_frame};
use umbra_mmu_abi::{Access, Gfn, Gpa, Mmio, PAGE_SHIFT};

/// So often a fault is attempted again where others were faster, before the guest is sent to come again.
const ATTEMPTS: u32 = 16;

/// What the world was before anything of it was looked at.
#[derive(Clone, Copy)]
struct Seen {
    /// `mmu_invalidate_seq`.
    seq: u64,
    /// The slots, if nobody was changing them.
    stamp: Option<Stamp>,
}

bitflags::bitflags! {
    /// The error code of a page fault, as the processor pushes it (SDM vol. 3, figure 5-12).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct ErrorCode: u32 {
        /// The translation was present, and did not allow the access.
        const P = 1 << 0;
        /// A write.
        const W = 1 << 1;
        /// In user mode.
        const U = 1 << 2;
        /// A reserved bit was set in an entry on the way.
        const RSVD = 1 << 3;
        /// An instruction fetch.
        const I = 1 << 4;
        /// A protection key forbade it.
        const PK = 1 << 5;
        /// A shadow-stack access.
        const SS = 1 << 6;
        /// EFLAGS.AC was set: SMAP lets the supervisor through. The processor does not push it; whoever reports the fault
        /// to a shadow mode adds it.
        const AC = 1 << 16;
    }
}

impl ErrorCode {
    /// The kind of access. A write is none of the others.
    #[inline]
    pub fn access(self) -> Access {
        match (self.contains(Self::W), self.contains(Self::I)) {
            (true, _) => Access::Write,
            (false, true) => Access::Fetch,
            (false, false) => Access::Read,
        }
    }
}

/// An access that hardware did not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Guest-physical in EPT mode, guest-virtual in shadow mode.
    pub address: u64,
    /// What was tried.
    pub code: ErrorCode,
}

impl Fault {
    /// An EPT violation, in the words of a page fault. Whether the translation was present, the sptes say.
    #[inline]
    pub fn violation(gpa: Gpa, access: Access) -> Self {
        let code = match access {
            Access::Read => ErrorCode::empty(),
            Access::Write => ErrorCode::W,
            Access::Fetch => ErrorCode::I,
        };
        Self {
            address: gpa.raw(),
            code,
        }
    }

    /// The address, where it is guest-physical.
    #[inline]
    pub const fn gpa(&self) -> Gpa {
        Gpa::new(self.address)
    }

    /// Its frame.
    #[inline]
    pub const fn gfn(&self) -> Gfn {
        self.gpa().gfn()
    }
}

/// A fault for the guest's own handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// The address, for cr2.
    pub cr2: u64,
    /// What the processor pushes.
    pub code: ErrorCode,
}

/// What comes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Enter the guest again.
    Resume,
    /// No memory there: emulate the access.
    Emulate(Mmio),
    /// A write to one of the guest's own tables: emulate it, and tell the MMU what was written.
    EmulateTableWrite {
        /// Where the write goes.
        gpa: Gpa,
    },
    /// The guest's tables do not allow it: its own fault.
    Reflect(GuestFault),
    /// The owner of the frame has to do something before the guest can go on.
    Host(HostFault),
}

/// What a fault needs of the owner of a frame.
// REQ: HOST-1, HOST-2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// Which frame.
    pub frame: Frame,
    /// What.
    pub need: HostNeed,
}

/// What the owner of a frame has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostNeed {
    /// Bring it back: it is away. See [`Mmu::give_back`].
    Frame,
    /// Let it be written: it is write-protected. See [`Mmu::give_back`].
    Write,
    /// Nothing: it was revoked, and the guest has lost this memory for good.
    Revoked,
}

/// Why a fault could not be handled. It is our fault or our limits', never the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// The hardware: out of something, or it refused.
    Stage2(Stage2Error),
    /// The guest faults on a mapping that allows the access, again and again: the hardware does not have it.
    Looping {
        /// Where.
        gpa: Gpa,
        /// How often in a row.
        times: u32,
    },
}

impl core::fmt::Display for FaultError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Stage2(error) => error.fmt(f),
            Self::Looping { gpa, times } => write!(f, "{times} faults in a row at {gpa}, which is mapped"),
        }
    }
}

impl core::error::Error for FaultError {}

impl From<Stage2Error> for FaultError {
    fn from(error: Stage2Error) -> Self {
        Self::Stage2(error)
    }
}

impl<S: Stage2> Mmu<S> {
    /// Handles an access that hardware did not translate. Any number of vCPUs may fault at once.
    ///
    /// # Errors
    /// See [`FaultError`]; every structure is as consistent as before.
    // REQ: PF-1
    #[inline]
    pub fn fault(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
        if let Mode::Shadow(_) = self.mode {
            return self.shadow_fault(vcpu, fault);
        }
        if let Some(stamp) = self.generation.cacheable() {
            // (a) MMIO, as this vCPU remembers it.
            if let Some(mmio) = self.remembered_mmio(vcpu, fault, stamp) {
                return self.answer_cached(mmio);
            }
            // Or as the spte has it, if it is beside the last one.
            if let Some(mmio) = self.near_mmio(&vcpu.near, fault.gfn(), stamp) {
                vcpu.mmio
                    .fill(fault.address >> PAGE_SHIFT, mmio.gfn, fault.code.bits(), stamp);
                return self.answer_cached(mmio);
            }
        }
        self.usual(vcpu, fault)
    }

    /// The general way.
    #[cold]
    #[inline(never)]
    fn handle(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
        for _ in 0..ATTEMPTS {
            match self.attempt(vcpu, fault) {
                Ok(None) => {}
                Ok(Some(outcome)) => {
                    if vcpu.cache.len() > 0 {
                        self.put_back(&mut vcpu.cache);
                    }
                    return Ok(outcome);
                }
                Err(error) => {
                    self.put_back(&mut vcpu.cache);
                    return Err(error);
                }
            }
        }
        // Others are always faster. The guest comes again; should it never end, that is seen.
        self.put_back(&mut vcpu.cache);
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        // Between start and end of a change nobody can map the page: however long that is, it is no loop of ours.
        let mmu_lock = self.lock.read(section.held());
        let changing = self.invalidate.must_retry(self.invalidate.seq(), fault.gfn());
        drop(mmu_lock);
        if changing {
            return Ok(self.resume());
        }
        self.spurious(section.held(), &mut vcpu.spurious, fault)
    }

    /// One attempt; `None`: something has changed meanwhile, or was made ready.
    #[inline]
    fn attempt(&self, vcpu: &mut Vcpu, fault: &Fault) -> Result<Option<Outcome>, FaultError> {
        let gfn = fault.gfn();
        if gfn.raw() >= GFN_LIMIT {
            // No table translates it, so there is nothing to cache it in.
            return Ok(Some(self.emulate(self.mmio(gfn))));
        }
        // Before anything is looked at: what changes from here on makes what was seen void.
        let seq = self.invalidate.seq();
        let stamp = self.generation.cacheable();
        let mut held = Held::entry();
        let walking = self.walkers.enter(&mut vcpu.walker);
        let walk = self.walk(gfn);
        if !walk.spte.is_empty() {
            // (a) MMIO, as the spte has it: what is a reserved bit where hardware walks the tables.
            if let Some(stamp) = stamp
                && let Some(mmio) = self.fresh_mmio(walk.spte, gfn, stamp)
            {
                vcpu.mmio
                    .fill(fault.address >> PAGE_SHIFT, gfn, fault.code.bits(), stamp);
                return self.answer_cached(mmio).map(Some);
            }
        }
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        if !walk.spte.is_empty() {
            // (b) A present or access-tracked leaf: the fast fix, without mmu_lock.
            let fixed = self.fast(slots, held, &mut vcpu.spurious, &walk, fault)?;
            if fixed.is_some() {
                return Ok(fixed);
            }
        }
        // (c), (d) In EPT mode the guest's own tables are the hardware's business.
        // (e) The frame.
        let Some(slot) = slots.lookup(gfn) else {
            // (f) None: MMIO.
            drop(walking);
            return self.cache_mmio(slots, held, vcpu, fault, &walk, Seen { seq, stamp });
        };
        let plan = match find_frame(slot, &self.host, gfn, fault.code.access()) {
            Backed::Frame(plan) => plan,
            Backed::ReadOnly => {
                let mmio = Mmio {
                    readonly_slot: true,
                    ..self.mmio(gfn)
                };
                return Ok(Some(self.emulate(mmio)));
            }
            // The guest comes back to the table that is then in place.
            Backed::Dying => return Ok(Some(self.resume())),
            Backed::Host(fault) => return Ok(self.ask_host(held, seq, gfn, fault)),
            Backed::Resize(frame, how) => {
                self.resize_in_fault(slots, held, frame, how);
                return Ok(None);
            }
        };
        // (g) Tables, and the leaf. What it takes is drawn before mmu_lock is.
        self.top_up_entries(&mut vcpu.reserve)?;
        let installed = if walk.level == plan.level() {
            let mut guard = self.lock.read(held);
            // REQ: PF-3. Nor has the table left the tree: it would be obsolete, and while the walk lasts it is no other.
            let stale = self.invalidate.must_retry_page(seq, plan.at, plan.leaf.level);
            if stale || self.is_obsolete(walk.place.table) {
                return Ok(None);
            }
            let installed = self.install(guard.held(), &mut vcpu.reserve, &plan, walk.place, walk.spte);
            drop(walking);
            installed
        } else {
            drop(walking);
            if !self.ready(slots, held, vcpu, &plan, &walk)? {
                return Ok(Some(self.resume()));
            }
            let mut guard = self.lock.read(held);
            if self.invalidate.must_retry_page(seq, plan.at, plan.leaf.level) {
                return Ok(None);
            }
            self.install_below(guard.held(), vcpu, &plan)
        };
        match installed {
            Ok(Installed::Done) => Ok(Some(self.resume())),
            Ok(Installed::Overtaken) => Ok(None),
            Ok(Installed::Blocked(blocked)) => self.unblock(slots, held, vcpu, &plan, blocked),
            Err(error) => self.refused(slots, held, (plan.slot, plan.at, plan.leaf.level), error),
        }
    }

    /// The host does not have the frame, if that is still so: nobody changes it just now.
    // REQ: PF-3, HOST-1
    #[cold]
    pub(crate) fn ask_host(&self, held: &mut Held<InSection>, seq: u64, gfn: Gfn, fault: HostFault) -> Option<Outcome> {
        let _guard = self.lock.read(held);
        (!self.invalidate.must_retry(seq, gfn)).then_some(Outcome::Host(fault))
    }

    /// Draws the tables that the walk saw missing.
    #[cold]
    fn ready(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        vcpu: &mut Vcpu,
        plan: &MapPlan<'_>,
        walk: &Walk,
    ) -> Result<bool, FaultError> {
        let missing = (walk.level as usize).saturating_sub(plan.level() as usize);
        self.draw_for(slots, held, &mut vcpu.cache, plan, missing)
    }

    /// Draws tables for a leaf; where none are left, others give way. Not having it would stop the guest.
    // REQ: SP-11
    #[cold]
    fn draw_for(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        cache: &mut TableCache,
        plan: &MapPlan<'_>,
        missing: usize,
    ) -> Result<bool, FaultError> {
        loop {
            match self.top_up(slots, held, cache, plan.at, plan.level(), missing) {
                Err(Stage2Error::Exhausted(Resource::Tables))
                    if self.zap(slots, held, |zap| zap.evict_leaf_table(plan.at)) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Does what the installation could not do under the read side of mmu_lock.
    #[cold]
    fn unblock(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        vcpu: &mut Vcpu,
        plan: &MapPlan<'_>,
        blocked: Blocked,
    ) -> Result<Option<Outcome>, FaultError> {
        match blocked {
            // The tables that were there have gone meanwhile.
            Blocked::Tables(missing) => {
                let ready = self.draw_for(slots, held, &mut vcpu.cache, plan, missing)?;
                Ok((!ready).then(|| self.resume()))
            }
            Blocked::Over(_) | Blocked::Below(_) => {
                self.zap(slots, held, |zap| zap.in_the_way(plan.at, plan.level()));
                Ok(None)
            }
        }
    }

    /// No memory: emulate, and remember it in an MMIO spte where tables for it are to be had. Not having it cached costs
    /// time only.
    #[cold]
    #[inline(never)]
    fn cache_mmio(
        &self,
        slots: &SlotTable,
        held: &mut Held<InSection>,
        vcpu: &mut Vcpu,
        fault: &Fault,
        walk: &Walk,
        seen: Seen,
    ) -> Result<Option<Outcome>, FaultError> {
        let gfn = fault.gfn();
        let Some(stamp) = seen.stamp else {
            return Ok(Some(self.emulate(self.mmio(gfn))));
        };
        let missing = walk.level as usize - TableLevel::Pt as usize;
        let ready = self.top_up(slots, held, &mut vcpu.cache, gfn, TableLevel::Pt, missing);
        if !matches!(ready, Ok(true)) {
            return Ok(Some(self.emulate(self.mmio(gfn))));
        }
        let mut guard = self.lock.read(held);
        if self.invalidate.must_retry(seen.seq, gfn) {
            return Ok(None);
        }
        match self.install_mmio(guard.held(), &mut vcpu.cache, gfn, stamp) {
            Installed::Done => {
                vcpu.mmio
                    .fill(fault.address >> PAGE_SHIFT, gfn, fault.code.bits(), stamp);
                let generation = stamp.generation();
                Ok(Some(self.emulate(Mmio {
                    gfn,
                    generation,
                    readonly_slot: false,
                })))
            }
            Installed::Overtaken | Installed::Blocked(_) => Ok(None),
        }
    }

    #[inline(always)]
    pub(crate) fn resume(&self) -> Outcome {
        self.stats.resumed.fetch_add(1, Ordering::Relaxed);
        Outcome::Resume
    }

    #[inline(always)]
    pub(crate) fn emulate(&self, mmio: Mmio) -> Outcome {
        self.stats.emulated.fetch_add(1, Ordering::Relaxed);
        Outcome::Emulate(mmio)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens on a guest fault? Classify, try the fast fix, plan, reserve, apply: in this order.

mod apply;
mod classify;
mod fast;
mod plan;

pub use classify::{Class, Walk};
pub use fast::Spurious;
pub use plan::{MapPlan, Plan};

use crate::Mmu;
use crate::slots::GFN_LIMIT;
use crate::stage2::{Resource, Stage2, Stage2Error};
use apply::Applied;
use umbra_mmu_abi::{Access, FaultOutcome, Gpa, Mmio};

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
    /// Handles an access that hardware did not translate.
    ///
    /// # Errors
    /// See [`FaultError`]; every structure is as consistent as before.
    // REQ: PF-1
    pub fn fault(&mut self, gpa: Gpa, access: Access) -> Result<FaultOutcome, FaultError> {
        // A plan that was overtaken, or had to make room first, is made again: at most once for each table.
        self.attempt(gpa, access, self.tables.capacity() + 2)
    }

    fn attempt(&mut self, gpa: Gpa, access: Access, tries: usize) -> Result<FaultOutcome, FaultError> {
        let gfn = gpa.gfn();
        if gfn.raw() >= GFN_LIMIT {
            // No table translates it, so there is nothing to cache it in.
            return Ok(self.emulate(self.mmio(gfn)));
        }
        let walk = self.walk(gfn);
        if !walk.spte.is_empty() {
            if self.is_fresh_mmio(walk.spte, gfn) {
                return Ok(self.emulate(self.mmio(gfn)));
            }
            let class = self.classify(&walk, gfn, access);
            if let Some(outcome) = self.fast(&walk, &class, gpa)? {
                return Ok(outcome);
            }
        }
        match self.plan_usual(&walk, gfn, access) {
            Some((map, place)) => match self.apply(&map, place)? {
                Applied::Mapped => Ok(self.resume()),
                Applied::Stale => self.again(gpa, access, tries),
            },
            None => self.attempt_unusual(&walk, gpa, access, tries),
        }
    }

    #[cold]
    #[inline(never)]
    fn attempt_unusual(
        &mut self,
        walk: &Walk,
        gpa: Gpa,
        access: Access,
        tries: usize,
    ) -> Result<FaultOutcome, FaultError> {
        let gfn = gpa.gfn();
        let applied = match self.plan(walk, gfn, access) {
            Plan::Emulate(mmio) => return Ok(self.emulate(mmio)),
            Plan::CacheMmio(mmio) => {
                self.cache_mmio(walk, gfn);
                return Ok(self.emulate(mmio));
            }
            // The slot is going; the guest comes back to the table that is then in place.
            Plan::Retry => return Ok(self.resume()),
            Plan::Map(map, place) => self.apply(&map, place)?,
            Plan::Prepare(map, what) => self.apply_prepared(&map, what, gfn)?,
        };
        match applied {
            Applied::Mapped => Ok(self.resume()),
            Applied::Stale => self.again(gpa, access, tries),
        }
    }

    #[cold]
    #[inline(never)]
    fn again(&mut self, gpa: Gpa, access: Access, tries: usize) -> Result<FaultOutcome, FaultError> {
        match tries.checked_sub(1) {
            Some(tries) => self.attempt(gpa, access, tries),
            None => Err(Stage2Error::Exhausted(Resource::Tables).into()),
        }
    }

    #[inline(always)]
    fn resume(&mut self) -> FaultOutcome {
        self.stats.resumed += 1;
        FaultOutcome::Resume
    }

    #[inline(always)]
    fn emulate(&mut self, mmio: Mmio) -> FaultOutcome {
        self.stats.emulated += 1;
        FaultOutcome::Emulate(mmio)
    }
}

#[cfg(test)]
impl<S: Stage2> Mmu<S> {
    pub(crate) fn plan_for_test(&self, gfn: umbra_mmu_abi::Gfn, access: Access) -> Plan {
        self.plan(&self.walk(gfn), gfn, access)
    }

    /// Whether the plan was still good.
    pub(crate) fn apply_for_test(&mut self, plan: &Plan, gfn: umbra_mmu_abi::Gfn) -> Result<bool, FaultError> {
        let applied = match plan {
            Plan::Map(map, place) => self.apply(map, *place),
            Plan::Prepare(map, what) => self.apply_prepared(map, *what, gfn),
            Plan::Retry | Plan::Emulate(_) | Plan::CacheMmio(_) => panic!("{gfn} is not to be mapped: {plan:?}"),
        };
        Ok(applied? == Applied::Mapped)
    }
}

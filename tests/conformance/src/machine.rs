// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a machine under test offer, and how does a guest touch memory in it?

use crate::Case;
use core::fmt;
use umbra_mmu_abi::{Access, Backing, BackingId, Gfn, Gpa, Mmio, SlotFlags, SlotId};
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::fault::{Fault, FaultError, Outcome};
use umbra_mmu_core::stage2::{BackingShape, Stage2};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Mmu, audit};

/// Backing with 4K frames, two 2M frames and 4K frames again.
pub const LARGE: BackingId = BackingId(0);
/// Backing of 4K frames.
pub const SMALL: BackingId = BackingId(1);
/// The backings that every machine has, zeroed at the start.
pub const BACKINGS: [BackingShape; 2] = [
    BackingShape {
        small_head: 4,
        large: 2,
        small_tail: 4,
    },
    BackingShape {
        small_head: 32,
        large: 0,
        small_tail: 0,
    },
];

/// The guest's access was not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faulted {
    /// The address that the machine reported.
    pub gpa: Gpa,
    /// The access that it reported.
    pub access: Access,
}

/// An MMU above some hardware, and a guest that lives on its translations. Guest-physical addresses below 512 GiB.
pub trait Machine {
    /// The hardware.
    type Stage2: Stage2;

    /// The MMU under test.
    fn mmu(&self) -> &Mmu<Self::Stage2>;

    /// The same, and the guest's only virtual processor.
    fn parts(&mut self) -> (&Mmu<Self::Stage2>, &mut Vcpu);

    /// The guest reads 8 bytes; nothing handles a fault.
    ///
    /// # Errors
    /// The fault.
    fn read(&mut self, gpa: Gpa) -> Result<u64, Faulted>;

    /// The guest writes 8 bytes; nothing handles a fault.
    ///
    /// # Errors
    /// The fault.
    fn write(&mut self, gpa: Gpa, value: u64) -> Result<(), Faulted>;

    /// Takes the mapping at `gfn` of `slot` out of the hardware, without the MMU's knowledge.
    fn lose_mapping(&mut self, slot: SlotId, gfn: Gfn);
}

/// Why a case failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// What was expected.
    pub expected: &'static str,
    /// The file and line that expected it.
    pub at: (&'static str, u32),
    /// What was there instead.
    pub found: Found,
}

/// What was there instead of the expected.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// A number.
    Number(u64),
    /// The outcome of an access.
    Seen(Seen),
    /// The MMU could not handle a fault.
    Fault(FaultError),
    /// The MMU did not change a slot.
    Change(ChangeError),
    /// The audit's first difference.
    Audit(audit::Audit),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected {} at {}:{}, found {:x?}",
            self.expected, self.at.0, self.at.1, self.found
        )
    }
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It ran, after so many faults.
    Memory {
        /// What was read; for writes 0.
        value: u64,
        /// Faults that the MMU resumed.
        faults: u32,
    },
    /// It is to be emulated.
    Emulate(Mmio),
}

/// More faults than these for one access mean that it never ends.
const ENDLESS: u32 = 8;

fn access<M: Machine>(
    machine: &mut M,
    gpa: Gpa,
    access: Access,
    mut attempt: impl FnMut(&mut M) -> Result<u64, Faulted>,
) -> Result<Seen, Failure> {
    for faults in 0..ENDLESS {
        let faulted = match attempt(machine) {
            Ok(value) => return Ok(Seen::Memory { value, faults }),
            Err(faulted) => faulted,
        };
        let reported = faulted.gpa.gfn() == gpa.gfn() && faulted.access == access;
        if !reported {
            let (expected, found) = ("a fault at the access", Found::Number(faulted.gpa.raw()));
            return Err(Failure {
                expected,
                at: (file!(), line!()),
                found,
            });
        }
        let (mmu, vcpu) = machine.parts();
        match mmu.fault(vcpu, &Fault::violation(faulted.gpa, faulted.access)) {
            Ok(Outcome::Resume) => {}
            Ok(Outcome::Emulate(mmio)) => return Ok(Seen::Emulate(mmio)),
            Ok(Outcome::EmulateTableWrite { .. } | Outcome::Reflect(_) | Outcome::Host(_)) => {
                let (expected, found) = ("an outcome of EPT mode", Found::Number(gpa.raw()));
                return Err(Failure {
                    expected,
                    at: (file!(), line!()),
                    found,
                });
            }
            Err(error) => {
                let (expected, found) = ("a handled fault", Found::Fault(error));
                return Err(Failure {
                    expected,
                    at: (file!(), line!()),
                    found,
                });
            }
        }
    }
    let (expected, found) = ("an access that ends", Found::Number(gpa.raw()));
    Err(Failure {
        expected,
        at: (file!(), line!()),
        found,
    })
}

/// The guest reads, and the MMU handles its faults.
pub(crate) fn read<M: Machine>(machine: &mut M, gpa: Gpa) -> Result<Seen, Failure> {
    access(machine, gpa, Access::Read, |m| m.read(gpa))
}

/// The guest writes, and the MMU handles its faults.
pub(crate) fn write<M: Machine>(machine: &mut M, gpa: Gpa, value: u64) -> Result<Seen, Failure> {
    access(machine, gpa, Access::Write, |m| m.write(gpa, value).map(|()| 0))
}

/// Sets a slot of `npages` from page `first_page` of a backing.
pub(crate) fn set<M: Machine>(
    machine: &mut M,
    id: u16,
    base: Gfn,
    npages: u32,
    (backing, first_page): (BackingId, u32),
    flags: SlotFlags,
) -> Result<(), ChangeError> {
    machine
        .mmu()
        .set_slot(
            SlotId(id),
            base,
            npages,
            Backing {
                id: backing,
                first_page,
            },
            flags,
        )
        .map(|_| ())
}

/// Runs one case on a machine without slots and leaves it so again. Audits before, within and after.
///
/// # Errors
/// The first expectation that did not hold.
pub fn run<M: Machine>(machine: &mut M, case: &Case<M>) -> Result<(), Failure> {
    let result = (case.run)(machine).and_then(|()| expect_audit(machine, 0));
    let mut ids = [None; 16];
    machine.mmu().with_slots(|slots| {
        for (id, slot) in ids.iter_mut().zip(slots.iter()) {
            *id = Some(slot.id);
        }
    });
    for id in ids.into_iter().flatten() {
        if let Err(error) = set(machine, id.0, Gfn::new(0), 0, (SMALL, 0), SlotFlags::empty()) {
            let (expected, found) = ("a deleted slot", Found::Change(error));
            return result.and(Err(Failure {
                expected,
                at: (file!(), line!()),
                found,
            }));
        }
    }
    while machine.mmu().has_background_work() {
        machine.mmu().background();
    }
    let clean = expect_audit(machine, 0);
    result.and(clean)
}

/// The audit finds so many differences; 1 stands for any number but 0.
pub(crate) fn expect_audit<M: Machine>(machine: &mut M, differences: u32) -> Result<(), Failure> {
    let audit = machine.mmu().audit();
    match audit.differences.min(1) == differences {
        true => Ok(()),
        false => Err(Failure {
            expected: "another audit",
            at: (file!(), line!()),
            found: Found::Audit(audit),
        }),
    }
}

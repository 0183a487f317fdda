// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a vCPU run in shadow mode? Its processor walks the MMU's tables; each page fault is the MMU's first, and so is
//! each write to a control register and each INVLPG.

use super::{Ended, Next, Request, until_done};
use crate::Mmu;
use crate::fault::{ErrorCode, Fault, FaultError, Outcome};
use crate::shadow::registers::Registers;
use crate::shadow::roots::{Entry, LocalFlush, NotLoaded, Roots};
use crate::shadow::write::NotWritten;
use crate::sim::SimShadow;
use crate::sim::cpu::{Cpu, Exit, Operation};
use crate::sim::memory::SimMemory;
use crate::sim::paging::{self, CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, EFER_LME, EFER_NXE, Model, Privilege};
use crate::sim::shadow::{HostTables, Staleness};
use crate::sim::tlb::Forgetful;
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use umbra_mmu_abi::{Gpa, Mmio};

/// A vCPU above shadow pages.
#[derive(Debug)]
pub struct ShadowVcpu {
    cpu: Cpu,
    vcpu: Vcpu,
    memory: Arc<SimMemory>,
    staleness: Staleness,
}

impl ShadowVcpu {
    /// One that has done nothing yet.
    pub fn new(
        vcpu: Vcpu,
        memory: Arc<SimMemory>,
        model: Model,
        forgetful: Option<Forgetful>,
        staleness: Staleness,
    ) -> Self {
        Self {
            cpu: Cpu::new(model, forgetful),
            vcpu,
            memory,
            staleness,
        }
    }

    /// The processor, with what hardware has in its registers.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// What the MMU keeps for it: the guest's own registers among it.
    pub fn vcpu_mut(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }

    /// Does an access, with all faults on the way that are not the guest's.
    ///
    /// # Errors
    /// The MMU's.
    pub fn access(&mut self, mmu: &Mmu<SimShadow>, request: &Request) -> Result<Ended, FaultError> {
        until_done(|| {
            let entry = mmu.enter(&mut self.vcpu)?;
            self.prepare(&entry);
            let mut below = HostTables {
                memory: &self.memory,
                staleness: self.staleness,
            };
            let running = self.memory.access();
            let done = self
                .cpu
                .access(&mut below, request.gva, request.access, request.operation);
            drop(running);
            let (cr2, code) = match done {
                Ok(value) => return Ok(Next::Ended(Ended::Done(value))),
                Err(Exit::GeneralProtection) => return Ok(Next::Ended(Ended::GeneralProtection)),
                Err(Exit::PageFault { cr2, code }) => (cr2, code | alignment_check(request.access.privilege)),
                Err(Exit::Refused(never)) => match never {},
            };
            let ended = match mmu.fault(&mut self.vcpu, &Fault { address: cr2, code })? {
                Outcome::Resume => return Ok(Next::Again),
                Outcome::Emulate(mmio) => Ended::Emulate(mmio),
                Outcome::Host(fault) => Ended::Host(fault),
                Outcome::Reflect(fault) => Ended::PageFault {
                    cr2: fault.cr2,
                    code: fault.code,
                },
                Outcome::EmulateTableWrite { gpa } => self.emulate(mmu, gpa, request),
            };
            Ok(Next::Ended(ended))
        })
    }

    /// Does the write that faulted, as the VMM does with the instruction.
    fn emulate(&mut self, mmu: &Mmu<SimShadow>, gpa: Gpa, request: &Request) -> Ended {
        let Operation::Store { bytes, value } = request.operation else {
            panic!("a write to a table is to be emulated, and the guest does {request:?}")
        };
        let written = mmu.emulated_write(&mut self.vcpu, gpa, &value.to_le_bytes()[..bytes as usize]);
        match written {
            Ok(()) => Ended::Done(value),
            Err(NotWritten::Host(fault)) => Ended::Host(fault),
            // The slot went meanwhile: a device, if anything.
            Err(NotWritten::NoMemory) => Ended::Emulate(Mmio {
                gfn: gpa.gfn(),
                generation: mmu.generation(),
                readonly_slot: false,
            }),
        }
    }

    /// The guest writes its registers: `write` is one of the MMU's functions for it.
    pub fn write_registers(&mut self, write: impl FnOnce(&mut Vcpu) -> Result<(), NotLoaded>) -> Ended {
        match write(&mut self.vcpu) {
            Ok(()) => Ended::Done(0),
            Err(NotLoaded::GeneralProtection) => Ended::GeneralProtection,
            Err(NotLoaded::Host(fault)) => Ended::Host(fault),
        }
    }

    /// The guest's registers.
    pub fn registers(&self) -> &Registers {
        self.vcpu.registers()
    }

    /// INVLPG of the guest.
    pub fn invlpg(&mut self, mmu: &Mmu<SimShadow>, gva: u64) {
        mmu.invlpg(&mut self.vcpu, gva);
    }

    /// What a VM entry loads, and what is flushed before it.
    fn prepare(&mut self, entry: &Entry) {
        match entry.flush {
            LocalFlush::Nothing => {}
            LocalFlush::Address(gva) => self.cpu.invvpid(gva),
            LocalFlush::All => self.cpu.flush(),
        }
        let (cr3, pdptes, levels, long) = match entry.roots {
            Roots::Pml4(root) => (root, [0; 4], 0, EFER_LME),
            Roots::Pml5(root) => (root, [0; 4], CR4_LA57, EFER_LME),
            Roots::Pdptes(pdptes) => (0, pdptes, 0, 0),
        };
        self.cpu.enter(paging::Registers {
            cr0: CR0_PG | CR0_WP,
            cr3,
            cr4: CR4_PAE | levels | entry.cr4,
            efer: EFER_NXE | long,
            pdptes,
        });
    }
}

/// EFLAGS.AC, which the MMU asks for beside the error code.
fn alignment_check(privilege: Privilege) -> ErrorCode {
    match privilege {
        Privilege::SupervisorAc => ErrorCode::AC,
        Privilege::User | Privilege::Supervisor | Privilege::Implicit => ErrorCode::empty(),
    }
}

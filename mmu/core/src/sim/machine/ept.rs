// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a vCPU run in EPT mode? It walks the guest's tables by itself; the MMU hears of EPT violations only.

use super::{Ended, Next, Request, until_done};
use crate::Mmu;
use crate::Requests;
use crate::fault::{Fault, FaultError, Outcome};
use crate::sim::cpu::{Cpu, Exit};
use crate::sim::ept::{EptCaches, ThroughEpt};
use crate::sim::paging::{Model, Registers};
use crate::sim::tlb::Forgetful;
use crate::sim::{SimStage2, Violation};
use crate::vcpu::Vcpu;

/// A vCPU above an EPT.
#[derive(Debug)]
pub struct EptVcpu {
    cpu: Cpu,
    caches: EptCaches,
    vcpu: Vcpu,
}

impl EptVcpu {
    /// One that has done nothing yet.
    pub fn new(vcpu: Vcpu, model: Model, forgetful: Option<Forgetful>) -> Self {
        Self {
            cpu: Cpu::new(model, forgetful),
            caches: EptCaches::default(),
            vcpu,
        }
    }

    /// The processor.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// What the MMU keeps for it.
    pub fn vcpu_mut(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }

    /// Does an access, with all faults on the way that are not the guest's.
    ///
    /// # Errors
    /// The MMU's.
    pub fn access(&mut self, mmu: &Mmu<SimStage2>, request: &Request) -> Result<Ended, FaultError> {
        let Request { gva, access, operation } = *request;
        self.run(mmu, |cpu, below| cpu.access(below, gva, access, operation))
    }

    /// MOV to CR3.
    ///
    /// # Errors
    /// The MMU's, about the PDPTE registers.
    pub fn load_cr3(&mut self, mmu: &Mmu<SimStage2>, cr3: u64) -> Result<Ended, FaultError> {
        self.run(mmu, |cpu, below| cpu.load_cr3(below, cr3).map(|()| 0))
    }

    /// MOV to CR0 or CR4, WRMSR to EFER: see [`Cpu::write_control`].
    ///
    /// # Errors
    /// The MMU's, about the PDPTE registers.
    pub fn write_control(&mut self, mmu: &Mmu<SimStage2>, registers: Registers) -> Result<Ended, FaultError> {
        self.run(mmu, |cpu, below| cpu.write_control(below, registers).map(|()| 0))
    }

    /// Values in all registers, as after a reset: nothing is cached.
    pub fn reset(&mut self, registers: Registers) {
        self.cpu.enter(registers);
        self.cpu.flush();
        self.caches = EptCaches::default();
    }

    /// INVLPG.
    pub fn invlpg(&mut self, gva: u64) {
        self.cpu.invlpg(gva);
    }

    fn run(
        &mut self,
        mmu: &Mmu<SimStage2>,
        act: impl Fn(&mut Cpu, &mut ThroughEpt<'_>) -> Result<u64, Exit<Violation>>,
    ) -> Result<Ended, FaultError> {
        until_done(|| {
            if mmu.take_requests(&self.vcpu).contains(Requests::FLUSH) {
                self.cpu.flush();
                self.caches = EptCaches::default();
            }
            let done = mmu.with_stage2(|ept| {
                let mut below = ThroughEpt {
                    ept,
                    caches: &mut self.caches,
                };
                act(&mut self.cpu, &mut below)
            });
            let violation = match done {
                Ok(value) => return Ok(Next::Ended(Ended::Done(value))),
                Err(Exit::PageFault { cr2, code }) => return Ok(Next::Ended(Ended::PageFault { cr2, code })),
                Err(Exit::GeneralProtection) => return Ok(Next::Ended(Ended::GeneralProtection)),
                Err(Exit::Refused(violation)) => violation,
            };
            let fault = Fault::violation(violation.gpa, violation.access);
            match mmu.fault(&mut self.vcpu, &fault)? {
                Outcome::Resume => Ok(Next::Again),
                Outcome::Emulate(mmio) => Ok(Next::Ended(Ended::Emulate(mmio))),
                Outcome::Host(fault) => Ok(Next::Ended(Ended::Host(fault))),
                outcome @ (Outcome::EmulateTableWrite { .. } | Outcome::Reflect(_)) => {
                    panic!("{outcome:?} for {violation:?}: in EPT mode the guest's tables are its own business")
                }
            }
        })
    }
}

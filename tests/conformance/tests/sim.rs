// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the cases pass on the simulated hardware, and do they notice broken hardware?

use umbra_conformance::{BACKINGS, Faulted, Machine, cases, run};
use umbra_mmu_abi::{Gfn, Gpa, SlotId};
use umbra_mmu_core::sim::{SimStage2, Violation};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu};

struct Sim(Mmu<SimStage2>, Vcpu);

impl Sim {
    fn new() -> Self {
        let sim = SimStage2::new(BACKINGS.to_vec(), 64);
        let mmu = Mmu::new(sim, BACKINGS.to_vec(), &Limits::default()).unwrap();
        let vcpu = mmu.add_vcpu().unwrap();
        Self(mmu, vcpu)
    }
}

fn faulted(violation: Violation) -> Faulted {
    Faulted {
        gpa: violation.gpa,
        access: violation.access,
    }
}

impl Machine for Sim {
    type Stage2 = SimStage2;
    fn mmu(&self) -> &Mmu<SimStage2> {
        &self.0
    }
    fn parts(&mut self) -> (&Mmu<SimStage2>, &mut Vcpu) {
        (&self.0, &mut self.1)
    }
    fn read(&mut self, gpa: Gpa) -> Result<u64, Faulted> {
        self.0.stage2_mut().read(gpa).map_err(faulted)
    }
    fn write(&mut self, gpa: Gpa, value: u64) -> Result<(), Faulted> {
        self.0.stage2_mut().write(gpa, value).map_err(faulted)
    }
    fn lose_mapping(&mut self, _slot: SlotId, gfn: Gfn) {
        self.0.stage2_mut().lose_mapping(gfn);
    }
}

#[test]
fn every_case_passes_on_a_fresh_machine() {
    for case in cases() {
        let mut machine = Sim::new();
        run(&mut machine, &case).unwrap_or_else(|failure| panic!("{}: {failure}", case.name));
        assert_eq!(machine.0.with_stage2(|sim| sim.unflushed()), 0, "{}", case.name);
        // What is left are tables that hold MMIO sptes.
        machine.0.zap_all();
        while machine.0.has_background_work() {
            machine.0.background();
        }
        assert_eq!(
            machine.0.with_stage2(|sim| sim.free_tables()),
            64,
            "{} leaks tables",
            case.name
        );
    }
}

/// As on real hardware, where one machine runs all of them and keeps its memory.
#[test]
fn every_case_passes_one_after_another() {
    let mut machine = Sim::new();
    for case in cases().chain(cases()) {
        run(&mut machine, &case).unwrap_or_else(|failure| panic!("{}: {failure}", case.name));
    }
}

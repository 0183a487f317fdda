// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the model see a machine that is wrong? One without an MMU that is right, and the same with each of some defects.

use std::collections::HashMap;
use umbra_model::judge::{Guest, Op, Seen};
use umbra_model::memory::{Page, Slot};
use umbra_model::oracle::{Access, End, Kind, Paging, Registers, Who};
use umbra_model::run::{Plan, failure_of};
use umbra_model::script::{Engine, Header, Step};
use umbra_model::world::{Clear, Failure, MAXPHYADDR, Machine, Slotted};

/// What is wrong with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    Nothing,
    NoDirtyFlag,
    NoAccessedFlag,
    AccessedOnFault,
    InvlpgForgotten,
    LoadForgotten,
    LogMisses,
    LogTooMuch,
    MmioOfDeletedSlot,
    WriteToNextWord,
    UserBitForgotten,
}

/// Walks tables, with a TLB and no MMU.
struct Plain {
    guest: Guest,
    tlb: HashMap<(u8, u64, Access), u64>,
    defect: Defect,
}

impl Plain {
    fn new(vcpus: u8, defect: Defect) -> Self {
        Self {
            guest: Guest::new(vcpus, MAXPHYADDR),
            tlb: HashMap::new(),
            defect,
        }
    }

    fn set(&mut self, gpa: u64, bytes: u8, value: u64) {
        let page = self.guest.memory.page_at(gpa >> 12).unwrap();
        let old = self.guest.memory.word(page, gpa);
        let op = Op::Write { bytes, value };
        self.guest.memory.write(page, gpa, op.merge(gpa, old), 0, 0);
        let missed = self.defect == Defect::LogMisses && bytes == 1;
        if !missed {
            self.guest.memory.log(gpa >> 12);
        }
        if self.defect == Defect::LogTooMuch {
            self.guest.memory.log((gpa >> 12) + 1);
        }
    }
}

impl Machine for Plain {
    fn access(&mut self, vcpu: u8, gva: u64, who: Who, op: Op) -> Result<Seen, Failure> {
        let access = Access { kind: op.kind(), who };
        let known = self.tlb.get(&(vcpu, gva >> 12, access)).map(|page| page | gva & 0xfff);
        let walked = || {
            let mut walk = self.guest.translate(vcpu, gva, access);
            let read = Access {
                kind: Kind::Read,
                who: Who::Supervisor,
            };
            if self.defect == Defect::UserBitForgotten && op == Op::Read {
                walk = self.guest.translate(vcpu, gva, read);
            }
            walk
        };
        let gpa = match known {
            Some(gpa) => gpa,
            None => {
                let walk = walked();
                let flags = matches!(walk.end, End::Page { .. }) || self.defect == Defect::AccessedOnFault;
                let bytes = self.guest.cpus[vcpu as usize].regs.paging.entry_bytes();
                for (used, flagged) in walk.used().iter().zip(walk.flagged(op.kind())).filter(|_| flags) {
                    let wrong = match self.defect {
                        Defect::NoDirtyFlag => 0x40,
                        Defect::NoAccessedFlag => 0x20,
                        _ => 0,
                    };
                    let value = flagged.value & !(wrong & !used.value);
                    let stuck = self
                        .guest
                        .memory
                        .slot_at(used.gpa >> 12)
                        .is_none_or(|(_, slot)| slot.readonly());
                    if value != used.value && !stuck {
                        self.set(used.gpa, bytes, value);
                    }
                }
                match walk.end {
                    End::Fault { code } | End::NoMemory { code, .. } => {
                        self.tlb
                            .retain(|(other, page, _), _| *other != vcpu || *page != gva >> 12);
                        return Ok(Seen::Fault { cr2: gva, code });
                    }
                    End::Page { gpa } => {
                        self.tlb.insert((vcpu, gva >> 12, access), gpa & !0xfff);
                        gpa
                    }
                }
            }
        };
        let gfn = gpa >> 12;
        Ok(match (self.guest.memory.slot_at(gfn), op) {
            (None, _) => Seen::Mmio {
                gfn,
                readonly_slot: self.defect == Defect::MmioOfDeletedSlot && gfn == 0x181,
            },
            (Some((_, slot)), Op::Write { .. }) if slot.readonly() => Seen::Mmio {
                gfn,
                readonly_slot: true,
            },
            (Some(_), Op::Write { bytes, value }) => {
                let next = if self.defect == Defect::WriteToNextWord && bytes == 2 {
                    8
                } else {
                    0
                };
                self.set(gpa ^ next, bytes, value);
                Seen::Stored
            }
            (Some(_), Op::Read | Op::Fetch) => {
                let page = self.guest.memory.page_at(gfn).unwrap();
                Seen::Value(self.guest.memory.word(page, gpa))
            }
        })
    }

    fn load(&mut self, vcpu: u8, regs: &Registers) -> Result<(), Failure> {
        self.guest.cpus[vcpu as usize].regs = *regs;
        if self.defect != Defect::LoadForgotten {
            self.tlb.retain(|(other, _, _), _| *other != vcpu);
        }
        Ok(())
    }

    fn invlpg(&mut self, vcpu: u8, gva: u64) -> Result<(), Failure> {
        if self.defect != Defect::InvlpgForgotten {
            self.tlb
                .retain(|(other, page, _), _| *other != vcpu || *page != gva >> 12);
        }
        Ok(())
    }

    fn set_slot(&mut self, id: u16, slot: &Slot) -> Result<Slotted, Failure> {
        let accepted = match slot.npages {
            0 => self.guest.memory.slot(id).is_some(),
            _ => self.guest.memory.accepts(id, slot),
        };
        if accepted {
            self.guest.set_slot(id, (slot.npages > 0).then_some(*slot));
            self.tlb.clear();
        }
        Ok(if accepted { Slotted::Done } else { Slotted::Refused })
    }

    fn log(&mut self, id: u16, clear: Clear) -> Result<Option<Vec<u64>>, Failure> {
        let logged = self.guest.memory.slot(id).is_some_and(|slot| slot.flags & 1 != 0);
        let written = self.guest.memory.written(id);
        let log = logged.then(|| written.iter().copied().collect());
        match clear {
            Clear::Nothing => {}
            Clear::All => written.clear(),
            Clear::Pages { first, npages } => {
                written.retain(|page| *page < first.into() || *page >= first as u64 + npages as u64);
            }
        }
        Ok(log)
    }

    fn device(&mut self, gpa: u64, value: u64) -> Result<(), Failure> {
        self.set(gpa, 8, value);
        Ok(())
    }

    fn host(&mut self, _: &Step) -> Result<(), Failure> {
        Ok(())
    }

    fn take_written(&mut self) -> Vec<Page> {
        self.guest
            .memory
            .pages()
            .map(|(page, _)| page)
            .filter(|page| page.backing == 0)
            .collect()
    }

    fn word(&mut self, page: Page, gpa: u64) -> u64 {
        self.guest.memory.word(page, gpa)
    }

    fn audit(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

fn plan(paging: Paging, steps: u64) -> Plan {
    Plan {
        header: Header::Machine {
            engine: Engine::Ept,
            paging,
            vcpus: 2,
            tables: 64,
            generation: 0,
        },
        seed: 1,
        steps,
        length: 20_000,
        audit_every: 1000,
    }
}

#[test]
fn a_machine_without_defects_is_right() {
    for paging in Paging::ALL {
        let summary = plan(paging, 60_000).run(1000, || Plain::new(2, Defect::Nothing));
        match summary {
            Ok(summary) => assert!(summary.accesses > 20_000, "{summary:?}"),
            Err(found) => panic!("{paging:?}: {}\n{}", found.failure, found.script),
        }
    }
}

#[test]
fn every_defect_is_found_and_shrunk() {
    let defects = [
        Defect::NoDirtyFlag,
        Defect::NoAccessedFlag,
        Defect::AccessedOnFault,
        Defect::InvlpgForgotten,
        Defect::LoadForgotten,
        Defect::LogMisses,
        Defect::LogTooMuch,
        Defect::MmioOfDeletedSlot,
        Defect::WriteToNextWord,
        Defect::UserBitForgotten,
    ];
    for defect in defects {
        let machine = || Plain::new(2, defect);
        let short = Plan {
            length: 3000,
            ..plan(Paging::FourLevel, 200_000)
        };
        let found = short.run(2000, machine);
        let found = found.expect_err(&format!("{defect:?} was not found"));
        assert!(found.script.steps.len() <= 8, "{defect:?} needs {}", found.script);
        assert!(failure_of(&found.script, 1, machine).is_some());
    }
}

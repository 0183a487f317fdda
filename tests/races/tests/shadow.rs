// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do shadow pages follow the guest's tables when one vCPU writes to them while another one flushes its TLB?
#![cfg(all(feature = "shuttle", not(feature = "loom")))]

use shuttle::thread;
use std::sync::Arc;
use umbra_mmu_abi::{Access, Backing, BackingId, Generation, Gfn, SlotFlags, SlotId};
use umbra_mmu_core::fault::{Fault, Outcome};
use umbra_mmu_core::shadow::registers::{
    CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE, GuestCpu, Registers,
};
use umbra_mmu_core::shadow::roots::{LocalFlush, Roots};
use umbra_mmu_core::sim::cpu::{Cpu, Exit, Operation};
use umbra_mmu_core::sim::paging::{self as hw, Privilege};
use umbra_mmu_core::sim::shadow::{HostTables, SimShadow, Staleness};
use umbra_mmu_core::sim::{SimMemory, SimRam, SimWords};
use umbra_mmu_core::stage2::{BackingShape, Frame, GpteSize};
use umbra_mmu_core::vcpu::Vcpu;
use umbra_mmu_core::{Limits, Mmu, Mode};
use umbra_races::explore;
use umbra_races::preempt::Stopped;

const PAGES: u32 = 32;
/// The guest's page table, which maps itself at its own address as everything else.
const TABLE: u64 = 0x4000;
/// A page that the guest maps somewhere else later.
const PAGE: u64 = 0x1_0000;
/// Where.
const ELSEWHERE: u64 = 0x1_1000;
/// Present, writable, of users; accessed and dirty.
const ALL: u64 = 0x67;
/// What is in the page at [`ELSEWHERE`].
const NEW: u64 = 0x77;

const LONG: Registers = Registers {
    cr0: CR0_PE | CR0_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PAE,
    efer: EFER_LME | EFER_LMA | EFER_NXE,
};

/// A guest in long mode with the first 32 pages mapped one to one.
struct World {
    mmu: Mmu<SimShadow>,
    memory: Arc<SimMemory>,
}

/// A processor and what the MMU has of it.
struct Machine {
    vcpu: Vcpu,
    cpu: Cpu,
}

/// The address of the entry for `gva`.
const fn entry(gva: u64) -> u64 {
    TABLE + 8 * (gva >> 12)
}

impl World {
    fn new() -> Arc<Self> {
        let shapes = vec![BackingShape {
            small_head: PAGES,
            large: 0,
            small_tail: 0,
        }];
        let limits = Limits {
            // So many that none is reclaimed.
            tables: 32,
            rmap_entries: 64,
            first_generation: Generation(8),
        };
        let memory = SimMemory::new(SimMemory::layout_for(46), &shapes, limits.tables);
        let below = SimShadow::new(memory.clone());
        let mode = Mode::Shadow(*memory.layout());
        let (ram, words) = (SimRam(memory.clone()), SimWords(memory.clone()));
        let mmu = Mmu::with_ram(below, ram, words, mode, shapes, &limits)
            .unwrap()
            .with_guest_cpu(GuestCpu::default());
        let backing = Backing {
            id: BackingId(0),
            first_page: 0,
        };
        mmu.set_slot(SlotId(0), Gfn::new(0), PAGES, backing, SlotFlags::empty())
            .unwrap();
        let world = Self { mmu, memory };
        for table in [0x1000, 0x2000, 0x3000] {
            world.poke(table, (table + 0x1000) | ALL);
        }
        for page in 0..u64::from(PAGES) {
            world.poke(entry(page << 12), page << 12 | ALL);
        }
        world.poke(ELSEWHERE, NEW);
        Arc::new(world)
    }

    fn poke(&self, gpa: u64, value: u64) {
        let frame = Frame::new(BackingId(0), (gpa >> 12) as u32).unwrap();
        self.memory.store(frame, (gpa & 4095) as u16, GpteSize::B8, value);
    }

    fn machine(&self) -> Machine {
        let mut vcpu = self.mmu.add_vcpu().unwrap();
        self.mmu.restore_registers(&mut vcpu, LONG).unwrap();
        Machine {
            vcpu,
            cpu: Cpu::new(hw::Model::default(), None),
        }
    }

    /// The guest enters, and does one access if it can.
    fn step(&self, machine: &mut Machine, gva: u64, write: Option<u64>) -> Result<u64, Fault> {
        let entry = self.mmu.enter(&mut machine.vcpu).unwrap();
        let Roots::Pml4(cr3) = entry.roots else {
            panic!("{entry:?} for a guest in long mode")
        };
        // A flush of all processors waits until each has ended its instruction.
        let _instruction = self.memory.access();
        machine.cpu.enter(hw::Registers {
            cr0: hw::CR0_PG | hw::CR0_WP,
            cr3,
            cr4: hw::CR4_PAE | entry.cr4,
            efer: hw::EFER_LME | hw::EFER_NXE,
            pdptes: [0; 4],
        });
        match entry.flush {
            LocalFlush::Nothing => {}
            LocalFlush::Address(gva) => machine.cpu.invlpg(gva),
            LocalFlush::All => machine.cpu.flush(),
        }
        let (kind, operation) = match write {
            Some(value) => (Access::Write, Operation::Store { bytes: 8, value }),
            None => (Access::Read, Operation::Load(GpteSize::B8)),
        };
        let access = hw::Access {
            kind,
            privilege: Privilege::Supervisor,
        };
        let mut below = HostTables {
            memory: &self.memory,
            staleness: Staleness::Used,
        };
        match machine.cpu.access(&mut below, gva, access, operation) {
            Ok(value) => Ok(value),
            Err(Exit::PageFault { cr2, code }) => Err(Fault { address: cr2, code }),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// An access with all its exits.
    fn access(&self, machine: &mut Machine, gva: u64, write: Option<u64>) -> u64 {
        for _ in 0..20 {
            let fault = match self.step(machine, gva, write) {
                Ok(value) => return value,
                Err(fault) => fault,
            };
            match self.mmu.fault(&mut machine.vcpu, &fault).unwrap() {
                Outcome::Resume => {}
                Outcome::EmulateTableWrite { gpa } => {
                    let value = write.expect("a write");
                    let done = self.mmu.emulated_write(&mut machine.vcpu, gpa, &value.to_le_bytes());
                    done.unwrap();
                    return value;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("the guest faults at {gva:#x} for ever")
    }

    /// The guest loads cr3, which flushes its TLB, and goes on.
    fn flush(&self, machine: &mut Machine) {
        self.mmu.write_cr3(&mut machine.vcpu, LONG.cr3).unwrap();
        self.mmu.enter(&mut machine.vcpu).unwrap();
    }
}

/// One vCPU writes to a page table that is unsync, by its TLB or by a fault, while another one flushes.
///
/// ```text
/// flush of one vCPU               another vCPU
/// -----------------               ------------
/// W of the table's frame goes
/// flush                           may write by its TLB until here
/// compare the sptes with entries
/// the page is synchronised        a write faults, and waits
/// ```
/// After its own flush, the writer sees what it has written.
fn write_while_another_flushes(warm: bool) {
    explore(Stopped::First, 0, move || {
        let world = World::new();
        let (mut flusher, mut writer) = (world.machine(), world.machine());
        for machine in [&mut flusher, &mut writer] {
            world.access(machine, PAGE, None);
        }
        // Another entry is written: the page table is unsync, and mapped writable.
        let other = PAGE + 0x2000;
        let last = if warm { &mut writer } else { &mut flusher };
        world.access(last, entry(other), Some(other | ALL));
        let flush = |world: Arc<World>| {
            thread::spawn(move || {
                world.flush(&mut flusher);
            })
        };
        let write = |world: Arc<World>| {
            thread::spawn(move || {
                world.access(&mut writer, entry(PAGE), Some(ELSEWHERE | ALL));
                writer
            })
        };
        // The first is stopped at every step: a sync, or a fault.
        let (flushes, writes) = if warm {
            (flush(world.clone()), write(world.clone()))
        } else {
            let writes = write(world.clone());
            (flush(world.clone()), writes)
        };
        flushes.join().unwrap();
        let mut writer = writes.join().unwrap();
        world.flush(&mut writer);
        let seen = world.access(&mut writer, PAGE, None);
        assert_eq!(seen, NEW, "the writer flushed, and does not see its own entry");
    });
}

// REQ: LK-3, SP-6, SP-7
#[test]
fn a_table_written_by_a_tlb_during_a_sync_is_followed() {
    write_while_another_flushes(true);
}

// REQ: LK-3, SP-6, SP-7
#[test]
fn a_table_made_unsync_during_a_sync_is_followed() {
    write_while_another_flushes(false);
}

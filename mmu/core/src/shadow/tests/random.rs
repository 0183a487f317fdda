// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest that edits its tables at random see what a bare processor would? In every mode, several vCPUs, with a
//! flush after each edit.

use super::machine::*;
use crate::shadow::registers::*;
use crate::sim::paging::{self as hw, Model, Privilege};
use crate::sim::walk::{NoCaches, WalkError, walk};
use crate::stage2::GpteSize;
use umbra_mmu_abi::{Access, Gfn, SlotFlags};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Tables are in these frames, so that they are shared, recursive and mapped often.
const TABLES: u64 = 8;

struct Run {
    machine: Machine,
    random: Random,
    size: GpteSize,
}

impl Run {
    fn new(seed: u64, vcpus: usize, registers: Registers) -> Self {
        let machine = Machine::new(vcpus, registers);
        let size = match registers.mode() {
            GuestMode::TwoLevel => GpteSize::B4,
            _ => GpteSize::B8,
        };
        let mut run = Self {
            machine,
            random: Random(seed),
            size,
        };
        for table in 1..=TABLES {
            for _ in 0..64 {
                let (at, entry) = run.edit(table);
                run.machine.poke_sized(at, size, entry);
            }
        }
        run.fix_pdptes();
        run
    }

    /// PAE pdptes that can be loaded.
    fn fix_pdptes(&mut self) {
        if self.machine.vcpus[0].0.registers().mode() == GuestMode::Pae || self.size == GpteSize::B8 {
            for at in 0..4 {
                let table = 2 + at % 3;
                self.machine.poke(0x20 * 0x1000 + 8 * at, table << 12 | 1);
            }
        }
    }

    /// Entries near the low end of a table, and at its end for recursion.
    fn index(&mut self) -> u64 {
        let last = 4096 / self.size as u64 - 1;
        match self.random.below(16) {
            0 => last,
            1 => last / 2 + 1,
            n => n % 3,
        }
    }

    /// Where an entry of `table` is, and what may be in it.
    fn edit(&mut self, table: u64) -> (u64, u64) {
        let index = self.index();
        let random = &mut self.random;
        let frame = match random.below(32) {
            0 => 0x3000 + random.below(4),
            1 => ROM.raw() + random.below(4),
            2 | 3 => random.below(PAGES as u64) / 512 * 512,
            4..=25 => 1 + random.below(TABLES),
            _ => 0x40 + random.below(32),
        };
        let mut entry = frame << 12 | P;
        for (bit, absent) in [(W, 12), (U, 12), (A, 2), (D, 2)] {
            if !random.one_in(absent) {
                entry |= bit;
            }
        }
        if frame % 512 == 0 || random.one_in(64) {
            entry |= PS;
        }
        if random.one_in(48) {
            entry &= !P;
        }
        if self.size == GpteSize::B8 {
            if random.one_in(24) {
                entry |= 1 << 63;
            }
            if random.one_in(200) {
                entry |= 1 << (40 + random.below(23));
            }
        }
        ((table << 12) + index * self.size as u64, entry)
    }

    fn gva(&mut self) -> u64 {
        let mode = self.machine.vcpus[0].0.registers().mode();
        let mut gva = 0u64;
        let (levels, bits) = match mode {
            GuestMode::None => return (self.random.below(0x3200) << 12) + self.random.below(500) * 8,
            GuestMode::TwoLevel => (2, 10),
            GuestMode::Pae => (2, 9),
            GuestMode::FourLevel => (4, 9),
            GuestMode::FiveLevel => (5, 9),
        };
        for level in 0..levels {
            gva |= self.index() << (12 + level * bits);
        }
        if mode == GuestMode::Pae {
            gva |= self.random.below(4) << 30;
        }
        let shift = 64 - (12 + levels * bits);
        let gva = match mode {
            GuestMode::FourLevel | GuestMode::FiveLevel => ((gva << shift) as i64 >> shift) as u64,
            _ => gva & 0xffff_ffff,
        };
        gva + self.random.below(500) * 8
    }

    /// What a bare processor makes of it; `None`: a table has no memory.
    fn right(&self, vcpu: usize, gva: u64, access: hw::Access) -> Option<Result<u64, crate::fault::ErrorCode>> {
        let (vcpu, _) = &self.machine.vcpus[vcpu];
        let registers = vcpu.registers();
        let model = Model {
            maxphyaddr: 40,
            ..Model::default()
        };
        let registers = hw::Registers {
            cr0: registers.cr0,
            cr3: registers.cr3,
            cr4: registers.cr4,
            efer: registers.efer,
            pdptes: vcpu.pdptes(),
        };
        let paging = hw::Paging::new(&registers, model);
        match walk(&mut Bare(&self.machine.memory), &mut NoCaches, &paging, gva, access) {
            Ok(translation) => Some(Ok(translation.address)),
            Err(WalkError::PageFault(code)) => Some(Err(code)),
            Err(WalkError::Refused(Nowhere)) => None,
        }
    }

    fn access(&mut self, vcpu: usize) {
        let gva = self.gva();
        let kind = Access::ALL[self.random.below(3) as usize];
        let who = [Privilege::User, Privilege::Supervisor, Privilege::SupervisorAc][self.random.below(3) as usize];
        // Compare the flags of all tables afterwards.
        let before = self.tables();
        let right = self.right(vcpu, gva, hw::Access { kind, privilege: who });
        let after = self.tables();
        self.restore(&before);
        // A write may go to a table, so it writes an entry.
        let table = 1 + self.random.below(TABLES);
        let (_, value) = self.edit(table);
        let seen = self.machine.access(vcpu, gva, kind, who, (self.size, value));
        let Some(right) = right else {
            assert!(matches!(seen, Seen::Fault(_)), "{gva:#x}: {seen:?}");
            return self.flush_all();
        };
        match right {
            Err(code) => assert_eq!(seen, Seen::Fault(code), "{kind:?} {who:?} at {gva:#x}"),
            Ok(gpa) => {
                let gfn = Gfn::new(gpa >> 12);
                let memory = gfn.raw() < PAGES as u64;
                let rom = (ROM.raw()..ROM.raw() + 64).contains(&gfn.raw());
                match (kind, memory, rom) {
                    (Access::Write, true, _) => {
                        assert_eq!(seen, Seen::Value(value));
                        assert_eq!(
                            self.machine.peek(gpa, self.size),
                            value & self.mask(),
                            "{gva:#x} is {gpa:#x}"
                        );
                    }
                    (Access::Write, _, true) => assert_eq!(seen, Seen::ReadOnly(gfn)),
                    (_, true, _) | (_, _, true) => {
                        let now = self.machine.peek(gpa, self.size);
                        assert_eq!(seen, Seen::Value(now), "{kind:?} {who:?} at {gva:#x}, {gpa:#x}");
                    }
                    _ => assert_eq!(seen, Seen::Mmio(gfn)),
                }
                if kind == Access::Write && gfn.raw() <= TABLES && memory {
                    return self.flush_all();
                }
            }
        }
        // PF-2. Flags that are in hardware's TLB, or an spte, are not set again.
        for (i, (now, after)) in self.tables().into_iter().zip(after).enumerate() {
            assert_eq!(now, after, "entry {i:#x} after {kind:?} {who:?} at {gva:#x}");
        }
    }

    fn mask(&self) -> u64 {
        match self.size {
            GpteSize::B4 => 0xffff_ffff,
            GpteSize::B8 => u64::MAX,
        }
    }

    fn tables(&self) -> std::vec::Vec<u64> {
        let entries = 4096 / 8;
        (0..(TABLES + 1) * entries)
            .map(|i| self.machine.peek(i * 8, GpteSize::B8))
            .collect()
    }

    fn restore(&self, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            if self.machine.peek(i as u64 * 8, GpteSize::B8) != *word {
                self.machine.poke(i as u64 * 8, *word);
            }
        }
    }

    fn flush_all(&mut self) {
        for (vcpu, _) in &mut self.machine.vcpus {
            self.machine.mmu.flush_tlb(vcpu);
        }
    }

    /// Another vCPU's view: an edit by the guest, through whatever maps the table, is not always possible; a device's is.
    fn device_edit(&mut self, vcpu: usize) {
        let table = 1 + self.random.below(TABLES);
        let (at, entry) = self.edit(table);
        let bytes = &entry.to_le_bytes()[..self.size as usize];
        let vcpu = &mut self.machine.vcpus[vcpu].0;
        self.machine
            .mmu
            .emulated_write(vcpu, umbra_mmu_abi::Gpa::new(at), bytes)
            .unwrap();
        self.flush_all();
    }

    fn control(&mut self, vcpu: usize) {
        let random = self.random.next();
        let mode = self.machine.vcpus[vcpu].0.registers().mode();
        let vcpu = &mut self.machine.vcpus[vcpu].0;
        let mmu = &self.machine.mmu;
        let registers = *vcpu.registers();
        let cr3 = match mode {
            GuestMode::Pae => 0x2_0000,
            _ => (1 + random % 3) << 12,
        };
        match random >> 32 & 7 {
            0 | 1 => mmu.write_cr3(vcpu, cr3).unwrap(),
            2 => mmu.write_cr0(vcpu, registers.cr0 ^ CR0_WP).unwrap(),
            3 => mmu.write_cr4(vcpu, registers.cr4 ^ CR4_SMEP).unwrap(),
            4 => mmu.write_cr4(vcpu, registers.cr4 ^ CR4_SMAP).unwrap(),
            5 => mmu.write_efer(vcpu, registers.efer ^ EFER_NXE).unwrap(),
            6 if mode == GuestMode::TwoLevel => mmu.write_cr4(vcpu, registers.cr4 ^ CR4_PSE).unwrap(),
            _ => mmu.flush_tlb(vcpu),
        }
    }

    fn host(&mut self) {
        match self.random.below(8) {
            0 => self.machine.mmu.zap_all(),
            1..=3 => self.machine.mmu.background(),
            4 => {
                self.machine.slot(2, Gfn::new(0x5000), 64, 1, SlotFlags::READONLY);
                self.machine
                    .mmu
                    .set_slot(
                        umbra_mmu_abi::SlotId(2),
                        Gfn::new(0x5000),
                        0,
                        umbra_mmu_abi::Backing {
                            id: umbra_mmu_abi::BackingId(1),
                            first_page: 0,
                        },
                        SlotFlags::READONLY,
                    )
                    .unwrap();
            }
            _ => self.machine.audit(),
        }
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            let vcpu = self.random.below(self.machine.vcpus.len() as u64) as usize;
            match self.random.below(100) {
                0..=69 => self.access(vcpu),
                70..=89 => self.device_edit(vcpu),
                90..=96 => self.control(vcpu),
                _ => self.host(),
            }
        }
        self.machine.audit();
    }
}

fn run_mode(registers: Registers) {
    for seed in 0..5 {
        let cr3 = match registers.mode() {
            GuestMode::Pae => 0x2_0000,
            _ => 0x1000,
        };
        let mut run = Run::new(
            seed,
            2,
            Registers {
                cr3: 0,
                cr4: registers.cr4,
                ..registers
            },
        );
        for vcpu in 0..2 {
            run.machine
                .mmu
                .restore_registers(&mut run.machine.vcpus[vcpu].0, Registers { cr3, ..registers })
                .unwrap();
        }
        run.run(3000);
    }
}

#[test]
fn without_paging() {
    run_mode(Registers {
        cr0: CR0_PE,
        ..Registers::default()
    });
}

#[test]
fn two_level() {
    run_mode(TWO_LEVEL);
}

#[test]
fn pae() {
    run_mode(PAE);
}

#[test]
fn four_level() {
    run_mode(LONG);
}

#[test]
fn five_level() {
    run_mode(FIVE);
}

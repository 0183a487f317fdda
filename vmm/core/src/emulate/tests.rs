// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emulated instructions against hand-written expectations: registers, flags, what reaches the device, faults.

use super::guest::Emulated;
use super::walk::{Paging, pfec};
use super::*;
use crate::guest_mem::{GuestMemory, RamRegion};
use crate::inject::Exception;
use crate::testing::{Io, Log, Ram, Script};
use crate::time::Ticks;
use crate::vcpu::rflags::{AF, CF, DF, OF, PF, SF, ZF};
use crate::vcpu::{Field, Gpr, Vcpu, cr0, cr4, efer};
use std::vec;
use std::vec::Vec;
use umbra_mmu_abi::Gva;

const DEVICE: u64 = 0xfee0_0000;
/// Linear pages from here on, one page-table entry each.
const PAGES: u64 = 0x20_0000;
const CODE: u64 = 0x1000;
const PT: u64 = 0x1_3000;
const STACK: u64 = 0x8000;

/// A guest in 64-bit mode: RAM 0..2 MiB mapped one to one, a page table of small pages above.
struct Rig {
    cpu: Script,
    ram: Ram,
    log: Log,
    emulator: Emulator,
    hint: Option<Hint>,
    paging: Paging,
    flags: u64,
}

impl Rig {
    fn new() -> Self {
        let mut ram = Ram::new(0x20_0000);
        ram.put64(0x1_0000, 0x1_1007);
        ram.put64(0x1_1000, 0x1_2007);
        ram.put64(0x1_2000, 0x87);
        ram.put64(0x1_2008, PT | 7);
        let mut rig = Self {
            cpu: Script::new(),
            ram,
            log: Log::default(),
            emulator: Emulator::default(),
            hint: None,
            paging: Paging {
                cr0: cr0::PE | cr0::PG | cr0::WP,
                cr3: 0x1_0000,
                cr4: cr4::PAE,
                efer: efer::LME | efer::LMA | efer::NXE,
                phys_bits: 40,
            },
            flags: 2,
        };
        rig.map(0, DEVICE | 3);
        rig.map(1, (DEVICE + 0x1000) | 3);
        // 2: not present
        rig.map(3, 0x3_0000 | 1);
        rig.map(4, 0x3_1000 | 3);
        rig.cpu.gprs[Gpr::Rbx as usize] = PAGES;
        rig.cpu.gprs[Gpr::Rsp as usize] = STACK;
        rig
    }
    /// A guest in flat 32-bit protected mode without paging.
    fn flat32() -> Self {
        let mut rig = Self::new();
        rig.paging = Paging {
            cr0: cr0::PE,
            cr3: 0,
            cr4: 0,
            efer: 0,
            phys_bits: 40,
        };
        rig.cpu.set_code_rights(0xc09b);
        rig.cpu.gprs[Gpr::Rbx as usize] = DEVICE;
        rig
    }
    fn map(&mut self, page: u64, pte: u64) {
        self.ram.put64(PT + 8 * page, pte);
    }
    fn set(mut self, r: Gpr, value: u64) -> Self {
        self.cpu.gprs[r as usize] = value;
        self
    }
    fn answers(mut self, values: &[u64]) -> Self {
        self.log.answers.extend(values);
        self
    }
    fn get(&self, r: Gpr) -> u64 {
        self.cpu.gprs[r as usize]
    }
    fn run(&mut self, code: &[u8]) -> Emulated {
        self.ram.put(CODE, code);
        self.cpu.rip = CODE;
        self.cpu.fields.insert(Field::GuestRflags, self.flags);
        let mut guest = Guest::new(
            &mut self.cpu,
            &mut self.ram,
            &mut self.log,
            Ticks::new(0),
            self.paging,
            self.flags,
            self.hint,
        );
        let result = self.emulator.run(&mut guest);
        self.flags = self.cpu.fields[&Field::GuestRflags];
        result
    }
    /// Runs an instruction that must complete.
    fn done(mut self, code: &[u8]) -> Self {
        assert_eq!(self.run(code), Emulated::Stepped(Step::Done), "{code:02x?}");
        assert_eq!(self.cpu.rip, CODE + code.len() as u64, "{code:02x?}");
        self
    }
    /// Runs an instruction that must fault and change nothing.
    fn faults(mut self, code: &[u8]) -> (Exception, Self) {
        let (gprs, flags) = (self.cpu.gprs, self.flags);
        self.ram.put(CODE, code);
        let ram = self.ram.bytes.clone();
        let Emulated::Fault(e) = self.run(code) else {
            panic!("{code:02x?} did not fault")
        };
        assert_eq!((self.cpu.gprs, self.flags, self.cpu.rip), (gprs, flags, CODE));
        let without_walk_flags = |v: &[u8]| v[..0x1_0000].iter().chain(&v[0x1_4000..]).copied().collect::<Vec<_>>();
        assert!(
            without_walk_flags(&ram) == without_walk_flags(&self.ram.bytes),
            "{code:02x?} changed memory"
        );
        (e, self)
    }
}

#[test]
fn loads_of_every_size_and_extension() {
    let old = 0x1111_2222_3333_4444;
    let rows: &[(&[u8], u64, u8, u64)] = &[
        // code, device's answer, size read, RAX afterwards
        (&[0x8a, 0x03], 0x80, 1, 0x1111_2222_3333_4480),
        (&[0x8a, 0x23], 0x80, 1, 0x1111_2222_3333_8044), // AH
        (&[0x66, 0x8b, 0x03], 0x8001, 2, 0x1111_2222_3333_8001),
        (&[0x8b, 0x03], 0x8000_0001, 4, 0x8000_0001),
        (&[0x48, 0x8b, 0x03], 0x8000_0000_0000_0001, 8, 0x8000_0000_0000_0001),
        (&[0x0f, 0xb6, 0x03], 0x80, 1, 0x80),
        (&[0x66, 0x0f, 0xb6, 0x03], 0x80, 1, 0x1111_2222_3333_0080),
        (&[0x0f, 0xb7, 0x03], 0x8001, 2, 0x8001),
        (&[0x0f, 0xbe, 0x03], 0x80, 1, 0xffff_ff80),
        (&[0x48, 0x0f, 0xbf, 0x03], 0x8001, 2, 0xffff_ffff_ffff_8001),
        (&[0x48, 0x63, 0x03], 0x8000_0001, 4, 0xffff_ffff_8000_0001),
        (&[0x0f, 0x38, 0xf0, 0x03], 0x1234_5678, 4, 0x7856_3412), // MOVBE
        (&[0x48, 0xa1, 0, 0, 0x20, 0, 0, 0, 0, 0], 7, 8, 7),      // MOV RAX, moffs
        (&[0xac], 0x99, 1, 0x1111_2222_3333_4499),                // LODSB
    ];
    for (code, answer, size, want) in rows {
        let rig = Rig::new()
            .set(Gpr::Rax, old)
            .set(Gpr::Rsi, PAGES)
            .answers(&[*answer])
            .done(code);
        assert_eq!(rig.get(Gpr::Rax), *want, "{code:02x?}");
        assert_eq!(rig.log.seen, [Io::Read(DEVICE, *size)], "{code:02x?}");
    }
}

#[test]
fn stores_of_every_size() {
    let rax = 0x1122_3344_5566_7788;
    let rows: &[(&[u8], u8, u64)] = &[
        (&[0x88, 0x03], 1, 0x88),
        (&[0x88, 0x23], 1, 0x77), // AH
        (&[0x66, 0x89, 0x03], 2, 0x7788),
        (&[0x89, 0x03], 4, 0x5566_7788),
        (&[0x48, 0x89, 0x03], 8, rax),
        (&[0xc6, 0x03, 0x5a], 1, 0x5a),
        (&[0x66, 0xc7, 0x03, 0x34, 0x12], 2, 0x1234),
        (&[0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], 4, 0xffff_ffff),
        (&[0x48, 0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], 8, u64::MAX),
        (&[0x0f, 0xc3, 0x03], 4, 0x5566_7788),       // MOVNTI
        (&[0x0f, 0x38, 0xf1, 0x03], 4, 0x8877_6655), // MOVBE
        (&[0xaa], 1, 0x88),                          // STOSB
        (&[0x8c, 0x1b], 2, 0x18),                    // MOV [RBX], DS
        (&[0x0f, 0x94, 0x03], 1, 0),                 // SETE
    ];
    for (code, size, want) in rows {
        let mut rig = Rig::new().set(Gpr::Rax, rax).set(Gpr::Rdi, PAGES);
        rig.cpu.fields.insert(Field::GuestDsSelector, 0x18);
        let rig = rig.done(code);
        assert_eq!(rig.log.seen, [Io::Write(DEVICE, *size, *want)], "{code:02x?}");
    }
}

#[test]
fn read_modify_write_reads_once_and_writes_once() {
    let rows: &[(&[u8], u64, u64, u64)] = &[
        // code, device's answer, written, flags (of CF PF AF ZF SF OF)
        (&[0x83, 0x0b, 0x10], 0x01, 0x11, PF),                    // OR dword, 0x10
        (&[0x83, 0x23, 0xf0], 0x1234_5678, 0x1234_5670, 0),       // AND dword, -16
        (&[0x83, 0x33, 0xff], 0xffff_ffff, 0, ZF | PF),           // XOR dword, -1
        (&[0x83, 0x03, 0x01], 0xffff_ffff, 0, CF | ZF | PF | AF), // ADD dword, 1
        (&[0x83, 0x2b, 0x01], 0, 0xffff_ffff, CF | SF | PF | AF), // SUB dword, 1
        (&[0xff, 0x03], 0x7fff_ffff, 0x8000_0000, OF | SF | AF | PF), // INC
        (&[0xff, 0x0b], 0x8000_0000, 0x7fff_ffff, OF | AF | PF),  // DEC
        (&[0xf7, 0x13], 0x0f0f_0f0f, 0xf0f0_f0f0, 0),             // NOT: no flags
        (&[0xf7, 0x1b], 1, 0xffff_ffff, CF | SF | PF | AF),       // NEG
        (&[0xd1, 0x23], 0x8000_0001, 2, CF | OF),                 // SHL 1
        (&[0x0f, 0xba, 0x2b, 0x05], 0, 0x20, 0),                  // BTS 5
        (&[0x0f, 0xba, 0x33, 0x05], 0xff, 0xdf, CF),              // BTR 5
    ];
    for (code, answer, want, flags) in rows {
        let rig = Rig::new().answers(&[*answer]).done(code);
        assert_eq!(
            rig.log.seen,
            [Io::Read(DEVICE, 4), Io::Write(DEVICE, 4, *want)],
            "{code:02x?}"
        );
        assert_eq!(rig.flags & alu::STATUS, *flags, "{code:02x?}");
    }
}

#[test]
fn comparisons_only_read() {
    let rig = Rig::new().answers(&[5]).done(&[0x83, 0x3b, 0x05]); // CMP dword, 5
    assert_eq!(
        (rig.log.seen.as_slice(), rig.flags),
        (&[Io::Read(DEVICE, 4)][..], 2 | ZF | PF)
    );
    let rig = Rig::new().answers(&[0x80]).done(&[0xf6, 0x03, 0x80]); // TEST byte, 0x80
    assert_eq!(
        (rig.log.seen.as_slice(), rig.flags),
        (&[Io::Read(DEVICE, 1)][..], 2 | SF)
    );
    let rig = Rig::new().set(Gpr::Rax, 3).answers(&[4]).done(&[0x3b, 0x03]); // CMP EAX, [RBX]
    assert_eq!(rig.flags, 2 | CF | SF | PF | AF);
}

#[test]
fn exchange_forms() {
    let rig = Rig::new()
        .set(Gpr::Rax, 0xffff_0000_1111_2222)
        .answers(&[0x3333_4444])
        .done(&[0x87, 0x03]);
    assert_eq!(rig.get(Gpr::Rax), 0x3333_4444);
    assert_eq!(rig.log.seen, [Io::Read(DEVICE, 4), Io::Write(DEVICE, 4, 0x1111_2222)]);

    let cmpxchg = [0xf0, 0x0f, 0xb1, 0x0b];
    let rig = Rig::new()
        .set(Gpr::Rax, 7)
        .set(Gpr::Rcx, 9)
        .answers(&[7])
        .done(&cmpxchg);
    assert_eq!(rig.log.seen, [Io::Read(DEVICE, 4), Io::Write(DEVICE, 4, 9)]);
    assert!(rig.flags & ZF != 0 && rig.get(Gpr::Rax) == 7);
    let rig = Rig::new()
        .set(Gpr::Rax, 7)
        .set(Gpr::Rcx, 9)
        .answers(&[8])
        .done(&cmpxchg);
    assert_eq!(rig.log.seen, [Io::Read(DEVICE, 4), Io::Write(DEVICE, 4, 8)]);
    assert!(rig.flags & ZF == 0 && rig.get(Gpr::Rax) == 8);

    let rig = Rig::new().set(Gpr::Rax, 5).answers(&[10]).done(&[0x0f, 0xc1, 0x03]); // XADD
    assert_eq!((rig.get(Gpr::Rax), rig.log.seen[1]), (10, Io::Write(DEVICE, 4, 15)));

    let rig = Rig::new()
        .set(Gpr::Rax, 1)
        .set(Gpr::Rdx, 2)
        .set(Gpr::Rbx, PAGES)
        .set(Gpr::Rcx, 4)
        .answers(&[1, 2])
        .done(&[0x0f, 0xc7, 0x0b]); // CMPXCHG8B
    assert_eq!(
        rig.log.seen[2..],
        [Io::Write(DEVICE, 4, PAGES), Io::Write(DEVICE + 4, 4, 4)]
    );
    assert!(rig.flags & ZF != 0);
}

#[test]
fn a_register_bit_offset_reaches_other_words() {
    let rig = Rig::new().set(Gpr::Rax, 35).answers(&[0]).done(&[0x0f, 0xab, 0x03]); // BTS [RBX], EAX
    assert_eq!(rig.log.seen, [Io::Read(DEVICE + 4, 4), Io::Write(DEVICE + 4, 4, 8)]);
    let rig = Rig::new()
        .set(Gpr::Rbx, PAGES + 0x1000)
        .set(Gpr::Rax, (-1i64) as u64)
        .answers(&[1 << 31])
        .done(&[0x0f, 0xa3, 0x03]); // BT [RBX], EAX
    assert_eq!(rig.log.seen, [Io::Read(DEVICE + 0xffc, 4)]);
    assert!(rig.flags & CF != 0);
}

#[test]
fn stack_and_branch_forms() {
    let rig = Rig::new().answers(&[0x1234]).done(&[0xff, 0x33]); // PUSH qword [RBX]
    assert_eq!((rig.get(Gpr::Rsp), rig.ram.get64(STACK - 8)), (STACK - 8, 0x1234));
    let mut rig = Rig::new();
    rig.ram.put64(STACK, 0x77);
    let rig = rig.done(&[0x8f, 0x03]); // POP qword [RBX]
    assert_eq!(
        (rig.get(Gpr::Rsp), rig.log.seen[0]),
        (STACK + 8, Io::Write(DEVICE, 8, 0x77))
    );

    let mut rig = Rig::new().answers(&[0x5000]);
    assert_eq!(rig.run(&[0xff, 0x13]), Emulated::Stepped(Step::Done)); // CALL [RBX]
    assert_eq!((rig.cpu.rip, rig.ram.get64(STACK - 8)), (0x5000, CODE + 2));
    let mut rig = Rig::new().answers(&[0x5000]);
    assert_eq!(rig.run(&[0xff, 0x23]), Emulated::Stepped(Step::Done)); // JMP [RBX]
    assert_eq!(rig.cpu.rip, 0x5000);
    let (e, _) = Rig::new().answers(&[0x8000_0000_0000_0000]).faults(&[0xff, 0x23]);
    assert_eq!(e, Exception::GP0, "a target that is not canonical");
    // A stack on a device.
    let rig = Rig::new().set(Gpr::Rsp, PAGES + 8).set(Gpr::Rax, 5).done(&[0x50]); // PUSH RAX
    assert_eq!(rig.log.seen, [Io::Write(DEVICE, 8, 5)]);
}

#[test]
fn repeated_strings_count_down_and_restart() {
    let mut rig = Rig::new().set(Gpr::Rcx, 3).set(Gpr::Rsi, 0x6000).set(Gpr::Rdi, PAGES);
    rig.ram.put(0x6000, &[1, 2, 3]);
    let rig = rig.done(&[0xf3, 0xa4]); // REP MOVSB
    assert_eq!(rig.log.seen, [1, 2, 3].map(|n| Io::Write(DEVICE + n - 1, 1, n)));
    assert_eq!(
        (rig.get(Gpr::Rcx), rig.get(Gpr::Rsi), rig.get(Gpr::Rdi)),
        (0, 0x6003, PAGES + 3)
    );

    let mut rig = Rig::new().set(Gpr::Rcx, 1000).set(Gpr::Rdi, PAGES).set(Gpr::Rax, 9);
    let mut bursts = 0;
    while rig.run(&[0xf3, 0xab]) == Emulated::Stepped(Step::Again) {
        bursts += 1;
        assert_eq!(rig.cpu.rip, CODE, "interrupts are taken at the instruction");
    }
    assert_eq!((rig.log.seen.len(), bursts, rig.get(Gpr::Rcx)), (1000, 3, 0));

    let mut rig = Rig::new().set(Gpr::Rcx, 2).set(Gpr::Rdi, PAGES + 4);
    rig.flags |= DF;
    let rig = rig.done(&[0xf3, 0xab]); // downwards
    assert_eq!(rig.log.seen, [Io::Write(DEVICE + 4, 4, 0), Io::Write(DEVICE, 4, 0)]);

    let rig = Rig::new().set(Gpr::Rcx, 0).done(&[0xf3, 0xa4]);
    assert_eq!(rig.log.seen, []);

    // REPNE SCASB stops at the match.
    let rig = Rig::new()
        .set(Gpr::Rcx, 9)
        .set(Gpr::Rdi, PAGES)
        .set(Gpr::Rax, 5)
        .answers(&[1, 5]);
    let rig = rig.done(&[0xf2, 0xae]);
    assert_eq!((rig.get(Gpr::Rcx), rig.get(Gpr::Rdi)), (7, PAGES + 2));
    assert!(rig.flags & ZF != 0);
}

#[test]
fn a_fault_in_the_middle_of_a_repeated_string_keeps_what_is_done() {
    // The third dword is on the page that is not present.
    let at = PAGES + 0x2000 - 8;
    let mut rig = Rig::new().set(Gpr::Rcx, 5).set(Gpr::Rdi, at);
    assert_eq!(
        rig.run(&[0xf3, 0xab]),
        Emulated::Fault(Exception::page_fault(PAGES + 0x2000, pfec::W))
    );
    assert_eq!(
        (rig.get(Gpr::Rcx), rig.get(Gpr::Rdi), rig.cpu.rip),
        (3, PAGES + 0x2000, CODE)
    );
    assert_eq!(rig.log.seen.len(), 2);
}

#[test]
fn string_io_moves_between_port_and_memory() {
    let mut rig = Rig::new().set(Gpr::Rcx, 2).set(Gpr::Rsi, 0x6000).set(Gpr::Rdx, 0x3f8);
    rig.ram.put(0x6000, b"ok");
    let rig = rig.done(&[0xf3, 0x6e]); // REP OUTSB
    assert_eq!(
        rig.log.seen,
        [Io::Out(0x3f8, 1, b'o'.into()), Io::Out(0x3f8, 1, b'k'.into())]
    );
    let rig = Rig::new()
        .set(Gpr::Rdi, 0x6000)
        .set(Gpr::Rdx, 0x1f0)
        .answers(&[0xbeef])
        .done(&[0x66, 0x6d]); // INSW
    assert_eq!(
        (rig.log.seen[0], rig.ram.get64(0x6000), rig.get(Gpr::Rdi)),
        (Io::In(0x1f0, 2), 0xbeef, 0x6002)
    );
    // The port is not read when its value has no place to go.
    let (e, rig) = Rig::new()
        .set(Gpr::Rdi, PAGES + 0x2000)
        .set(Gpr::Rdx, 0x1f0)
        .faults(&[0x6c]);
    assert_eq!((e.cr2, rig.log.seen.len()), (Some(PAGES + 0x2000), 0));
}

#[test]
fn an_access_across_pages_is_split_and_checked_whole() {
    let rig = Rig::new()
        .set(Gpr::Rbx, PAGES + 0xffe)
        .set(Gpr::Rax, 0x4433_2211)
        .done(&[0x89, 0x03]);
    assert_eq!(
        rig.log.seen,
        [
            Io::Write(DEVICE + 0xffe, 2, 0x2211),
            Io::Write(DEVICE + 0x1000, 2, 0x4433)
        ]
    );
    let rig = Rig::new()
        .set(Gpr::Rbx, PAGES + 0xfff)
        .answers(&[0x11, 0x3322, 0x44])
        .done(&[0x8b, 0x03]);
    assert_eq!(rig.get(Gpr::Rax), 0x4433_2211);
    let parts = [
        Io::Read(DEVICE + 0xfff, 1),
        Io::Read(DEVICE + 0x1000, 2),
        Io::Read(DEVICE + 0x1002, 1),
    ];
    assert_eq!(rig.log.seen, parts);
    // Half on a device, half not present: nothing is written, CR2 is the second page.
    let (e, rig) = Rig::new().set(Gpr::Rbx, PAGES + 0x1ffe).faults(&[0x89, 0x03]);
    assert_eq!(
        (e, rig.log.seen.len()),
        (Exception::page_fault(PAGES + 0x2000, pfec::W), 0)
    );
    // Half device, half RAM.
    let mut rig = Rig::new().set(Gpr::Rbx, PAGES + 0x2ffe).set(Gpr::Rax, 0x4433_2211);
    rig.map(2, (DEVICE + 0x1000) | 3);
    rig.map(3, 0x3_0000 | 3);
    let rig = rig.done(&[0x89, 0x03]);
    assert_eq!(rig.log.seen, [Io::Write(DEVICE + 0x1ffe, 2, 0x2211)]);
    assert_eq!(rig.ram.get64(0x3_0000), 0x4433);
}

#[test]
fn faults_have_exact_codes_and_leave_no_trace() {
    // Destination not present: the device is not read.
    let (e, rig) = Rig::new()
        .set(Gpr::Rsi, PAGES)
        .set(Gpr::Rdi, PAGES + 0x2000)
        .faults(&[0xa4]); // MOVSB
    assert_eq!(
        (e, rig.log.seen.len()),
        (Exception::page_fault(PAGES + 0x2000, pfec::W), 0)
    );
    // Destination read-only.
    let (e, _) = Rig::new()
        .set(Gpr::Rsi, PAGES)
        .set(Gpr::Rdi, PAGES + 0x3000)
        .faults(&[0xa4]);
    assert_eq!(e, Exception::page_fault(PAGES + 0x3000, pfec::P | pfec::W));
    // The stack of a PUSH from a device.
    let (e, rig) = Rig::new().set(Gpr::Rsp, PAGES + 0x3008).faults(&[0xff, 0x33]);
    assert_eq!(
        (e, rig.log.seen.len()),
        (Exception::page_fault(PAGES + 0x3000, pfec::P | pfec::W), 0)
    );
    // A stack that is not canonical is #SS, data #GP.
    let (e, _) = Rig::new().set(Gpr::Rsp, 0x8000_0000_0000_0008).faults(&[0xff, 0x33]);
    assert_eq!(e, Exception::SS0);
    let (e, _) = Rig::new().set(Gpr::Rbx, 0x8000_0000_0000_0000).faults(&[0x8b, 0x03]);
    assert_eq!(e, Exception::GP0);
    // Division overflow.
    let (e, _) = Rig::new().set(Gpr::Rdx, 1).answers(&[1]).faults(&[0xf7, 0x33]);
    assert_eq!(e, Exception::DE);
    // LOCK on an instruction that must not have it.
    let (e, _) = Rig::new().faults(&[0xf0, 0x8b, 0x03]);
    assert_eq!(e, Exception::UD);
    let (e, _) = Rig::new().faults(&[0x0f, 0x0b]);
    assert_eq!(e, Exception::UD);
    // Sixteen bytes of prefixes.
    let (e, _) = Rig::new().faults(&[0x66; 16]);
    assert_eq!(e, Exception::GP0);
}

#[test]
fn user_code_cannot_use_supervisor_pages() {
    let mut rig = Rig::new();
    rig.cpu.set_code_rights(0xa0fb);
    let (e, _) = rig.faults(&[0x8b, 0x03]);
    assert_eq!(e, Exception::page_fault(PAGES, pfec::P | pfec::U));
    let mut rig = Rig::new().answers(&[1]);
    rig.cpu.set_code_rights(0xa0fb);
    rig.map(0, DEVICE | 7);
    assert_eq!(rig.done(&[0x8b, 0x03]).get(Gpr::Rax), 1);
}

// REQ: EM-2
#[test]
fn what_cannot_be_emulated_is_named() {
    let mut rig = Rig::new();
    let Emulated::Unsupported(u) = rig.run(&[0x0f, 0x11, 0x03]) else {
        panic!("MOVUPS is not supported")
    };
    let text = std::format!("{u}");
    assert!(
        text.contains("0f 11 03") && text.contains("0x1000") && text.contains("64-bit"),
        "{text}"
    );
    let mut rig = Rig::new();
    rig.map(4, DEVICE | 3);
    rig.cpu.rip = PAGES + 0x4000;
    let mut guest = Guest::new(
        &mut rig.cpu,
        &mut rig.ram,
        &mut rig.log,
        Ticks::new(0),
        rig.paging,
        2,
        None,
    );
    let Emulated::Unsupported(u) = rig.emulator.run(&mut guest) else {
        panic!("executed a device")
    };
    assert_eq!(
        u.cause,
        UnsupportedCause::FetchOutsideRam(umbra_mmu_abi::Gpa::new(DEVICE))
    );
}

#[test]
fn instructions_may_cross_a_page_and_fault_there() {
    let mut rig = Rig::new().answers(&[3]);
    rig.map(3, 0x3_0000 | 1);
    rig.map(4, 0x7000 | 1);
    rig.ram.put(0x3_0fff, &[0x8b]);
    rig.ram.put(0x7000, &[0x03]);
    rig.cpu.rip = PAGES + 0x3fff;
    let mut guest = Guest::new(
        &mut rig.cpu,
        &mut rig.ram,
        &mut rig.log,
        Ticks::new(0),
        rig.paging,
        2,
        None,
    );
    assert_eq!(rig.emulator.run(&mut guest), Emulated::Stepped(Step::Done));
    assert_eq!((rig.get(Gpr::Rax), rig.cpu.rip), (3, PAGES + 0x4001));
    rig.map(4, 0);
    rig.cpu.rip = PAGES + 0x3fff;
    let mut guest = Guest::new(
        &mut rig.cpu,
        &mut rig.ram,
        &mut rig.log,
        Ticks::new(0),
        rig.paging,
        2,
        None,
    );
    assert_eq!(
        rig.emulator.run(&mut guest),
        Emulated::Fault(Exception::page_fault(PAGES + 0x4000, pfec::I))
    );
}

#[test]
fn the_hint_of_the_exit_spares_walk_and_segments() {
    let mut rig = Rig::flat32();
    rig.hint = Some(Hint {
        linear: Gva::new(DEVICE + 4),
        gpa: umbra_mmu_abi::Gpa::new(DEVICE + 4),
        write: true,
    });
    let rig = rig.set(Gpr::Rbx, DEVICE + 4).set(Gpr::Rax, 6).done(&[0x89, 0x03]);
    assert_eq!(rig.log.seen, [Io::Write(DEVICE + 4, 4, 6)]);
    let read: Vec<_> = rig
        .cpu
        .reads
        .iter()
        .filter(|f| **f != Field::GuestCsAccessRights)
        .collect();
    let cs = crate::vcpu::segment_fields(crate::vcpu::SegReg::Cs);
    assert!(
        read.iter().all(|f| cs.contains(f)),
        "only the code segment is read: {read:?}"
    );
    // 64-bit code needs its mode only.
    let rig = Rig::new().done(&[0x89, 0x03]);
    assert_eq!(rig.cpu.reads, [Field::GuestCsAccessRights]);
    assert_eq!(rig.cpu.writes, []);
}

#[test]
fn a_hint_about_the_stack_is_not_taken_for_the_operand() {
    // PUSH [EBX] where the stack is the device: the exit's address is the stack's.
    let mut rig = Rig::flat32().set(Gpr::Rbx, 0x6000).set(Gpr::Rsp, DEVICE + 12);
    rig.ram.put64(0x6000, 0x77);
    let at = DEVICE + 8;
    rig.hint = Some(Hint {
        linear: Gva::new(at),
        gpa: umbra_mmu_abi::Gpa::new(at),
        write: true,
    });
    let rig = rig.done(&[0xff, 0x33]);
    assert_eq!(rig.log.seen, [Io::Write(at, 4, 0x77)]);
}

#[test]
fn an_access_that_seems_to_start_a_page_may_have_begun_before() {
    for (base, ebx, seen) in [
        (0, DEVICE, std::vec![Io::Write(DEVICE, 4, 0x4433_2211)]),
        (
            2,
            DEVICE - 4,
            std::vec![Io::Write(DEVICE - 2, 2, 0x2211), Io::Write(DEVICE, 2, 0x4433)],
        ),
    ] {
        let mut rig = Rig::flat32().set(Gpr::Rbx, ebx).set(Gpr::Rax, 0x4433_2211);
        rig.cpu.fields.insert(Field::GuestDsBase, base);
        rig.hint = Some(Hint {
            linear: Gva::new(DEVICE),
            gpa: umbra_mmu_abi::Gpa::new(DEVICE),
            write: true,
        });
        assert_eq!(rig.done(&[0x89, 0x03]).log.seen, seen);
    }
}

#[test]
fn a_remembered_fetch_walk_ends_with_the_tables_that_made_it() {
    let mut rig = Rig::new();
    rig.map(3, 0x3_0000 | 1);
    rig.map(4, 0x3_1000 | 1);
    rig.ram.put(0x3_0000, &[0x89, 0x03]); // MOV [RBX], EAX
    rig.ram.put(0x3_1000, &[0x88, 0x03]); // MOV [RBX], AL
    let run = |rig: &mut Rig| {
        rig.cpu.rip = PAGES + 0x3000;
        let mut guest = Guest::new(
            &mut rig.cpu,
            &mut rig.ram,
            &mut rig.log,
            Ticks::new(0),
            rig.paging,
            2,
            None,
        );
        rig.emulator.run(&mut guest)
    };
    for _ in 0..2 {
        assert_eq!(run(&mut rig), Emulated::Stepped(Step::Done));
    }
    rig.map(3, 0x3_1000 | 1);
    assert_eq!(run(&mut rig), Emulated::Stepped(Step::Done));
    assert_eq!(
        rig.log.seen,
        [
            Io::Write(DEVICE, 4, 0),
            Io::Write(DEVICE, 4, 0),
            Io::Write(DEVICE, 1, 0)
        ]
    );
    assert_eq!(rig.ram.get64(PT + 24) & 0x20, 0x20, "the new entry was accessed");
    rig.map(3, 0);
    assert!(matches!(run(&mut rig), Emulated::Fault(_)));
}

#[test]
fn segmentation_in_32_bit_code() {
    let mut rig = Rig::flat32().answers(&[9]);
    rig.cpu.fields.insert(Field::GuestDsBase, DEVICE);
    rig.cpu.fields.insert(Field::GuestDsLimit, 0xfff);
    let rig = rig.set(Gpr::Rbx, 0xffc).done(&[0x8b, 0x03]);
    assert_eq!((rig.get(Gpr::Rax), rig.log.seen[0]), (9, Io::Read(DEVICE + 0xffc, 4)));
    let mut rig = Rig::flat32().set(Gpr::Rbx, 0xffd);
    rig.cpu.fields.insert(Field::GuestDsLimit, 0xfff);
    assert_eq!(rig.faults(&[0x8b, 0x03]).0, Exception::GP0, "one byte beyond the limit");
    let mut rig = Rig::flat32().set(Gpr::Rbp, 0xffd);
    rig.cpu.fields.insert(Field::GuestSsLimit, 0xfff);
    assert_eq!(
        rig.faults(&[0x8b, 0x45, 0x00]).0,
        Exception::SS0,
        "through EBP it is the stack"
    );
    let mut rig = Rig::flat32();
    rig.cpu.fields.insert(Field::GuestDsAccessRights, 0xc091);
    assert_eq!(rig.faults(&[0x89, 0x03]).0, Exception::GP0, "read-only data");
    let mut rig = Rig::flat32();
    rig.cpu.fields.insert(Field::GuestDsAccessRights, 0x1_0000);
    assert_eq!(rig.faults(&[0x8b, 0x03]).0, Exception::GP0, "null selector");
    // Expand-down: inside is above the limit.
    let mut rig = Rig::flat32().set(Gpr::Rbx, 0x1000).answers(&[1]);
    rig.cpu.fields.insert(Field::GuestDsAccessRights, 0xc097);
    rig.cpu.fields.insert(Field::GuestDsLimit, 0xfff);
    rig.cpu.fields.insert(Field::GuestDsBase, DEVICE - 0x1000);
    assert_eq!(rig.done(&[0x8b, 0x03]).get(Gpr::Rax), 1);
}

#[test]
fn real_mode_addresses_wrap_at_64k_and_faults_have_no_error_code() {
    let mut rig = Rig::flat32();
    rig.paging.cr0 = 0;
    rig.cpu.set_code_rights(0x9b);
    for f in [
        Field::GuestDsLimit,
        Field::GuestSsLimit,
        Field::GuestEsLimit,
        Field::GuestCsLimit,
    ] {
        rig.cpu.fields.insert(f, 0xffff);
    }
    rig.cpu.fields.insert(Field::GuestDsBase, 0xffff0);
    // MOV AX, [BX+SI]
    let mut rig = rig.set(Gpr::Rbx, 0xfff0).set(Gpr::Rsi, 0x20);
    rig.ram.put(0xffff0 + 0x10, &[0x34, 0x12]);
    let rig = rig.done(&[0x8b, 0x00]);
    assert_eq!(rig.get(Gpr::Rax), 0x1234);
    let (e, _) = rig.set(Gpr::Rbx, 0xffff).set(Gpr::Rsi, 0).faults(&[0x8b, 0x00]);
    assert_eq!(e, Exception::GP0.in_real_mode());
}

#[test]
fn repeated_instructions_are_decoded_once_and_changed_ones_again() {
    let mut rig = Rig::new();
    for _ in 0..10 {
        assert_eq!(rig.run(&[0x89, 0x03]), Emulated::Stepped(Step::Done));
    }
    assert_eq!((rig.emulator.cache.misses, rig.emulator.cache.hits), (1, 9));
    assert_eq!(rig.run(&[0x88, 0x03]), Emulated::Stepped(Step::Done));
    assert_eq!(rig.emulator.cache.misses, 2);
    assert_eq!(rig.log.seen.last(), Some(&Io::Write(DEVICE, 1, 0)));
    rig.cpu.set_code_rights(0xc09b);
    let Emulated::Stepped(Step::Done) = rig.run(&[0x88, 0x03]) else {
        panic!("compatibility mode")
    };
    assert_eq!(
        rig.emulator.cache.misses, 3,
        "the same bytes in another mode are another instruction"
    );
}

#[test]
fn writes_to_rom_reach_the_devices_and_not_the_rom() {
    let mut rig = Rig::new();
    rig.map(4, 0x4_0000 | 3);
    rig.ram.regions = vec![
        crate::guest_mem::RamRegion {
            base: umbra_mmu_abi::Gpa::new(0),
            len: 0x4_0000,
            readonly: false,
        },
        crate::guest_mem::RamRegion {
            base: umbra_mmu_abi::Gpa::new(0x4_0000),
            len: 0x1000,
            readonly: true,
        },
    ];
    let rig = rig.set(Gpr::Rbx, PAGES + 0x4000).set(Gpr::Rax, 5).done(&[0x89, 0x03]);
    assert_eq!(
        (rig.ram.get64(0x4_0000), rig.log.seen[0]),
        (0, Io::Write(0x4_0000, 4, 5))
    );
}

// REQ: EM-2
#[test]
fn random_bytes_in_every_mode_never_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut stepped = 0;
    let mut rigs = [Rig::new(), Rig::flat32(), Rig::flat32()];
    rigs[2].paging.cr0 = 0;
    rigs[2].cpu.set_code_rights(0x9b);
    let tables = rigs[0].ram.bytes[0x1_0000..0x1_4000].to_vec();
    for n in 0..60_000 {
        let rig = &mut rigs[n % 3];
        // Earlier instructions may have written anywhere.
        rig.ram.put(0x1_0000, &tables);
        rig.log = Log::default();
        rig.cpu.reads.clear();
        rig.cpu.writes.clear();
        rig.flags = 2;
        for r in &mut rig.cpu.gprs {
            *r = match random() % 4 {
                0 => random(),
                1 => PAGES + random() % 0x5000,
                2 => random() % 0x20_0000,
                _ => DEVICE + random() % 0x2000,
            };
        }
        let mut code = [0; 15];
        for b in &mut code {
            *b = random() as u8;
        }
        // Repeats of up to 2^64 iterations end in bursts.
        if let Emulated::Stepped(_) = rig.run(&code) {
            stepped += 1;
        }
    }
    assert!(stepped > 5_000, "the test reaches the instructions: {stepped}");
}

mod walks {
    use super::*;
    use crate::emulate::walk::{AccessKind, Privilege, walk};

    const SUPERVISOR: Privilege = Privilege::Supervisor { ac: false };

    fn paging(cr4: u64, efer: u64) -> Paging {
        Paging {
            cr0: cr0::PE | cr0::PG | cr0::WP,
            cr3: 0x1_0000,
            cr4,
            efer,
            phys_bits: 40,
        }
    }
    fn put32(ram: &mut Ram, at: u64, v: u32) {
        ram.put(at, &v.to_le_bytes());
    }
    fn at(r: Result<umbra_mmu_abi::Gpa, Exception>) -> u64 {
        r.expect("translates").raw()
    }

    #[test]
    fn thirty_two_bit_paging_with_large_pages() {
        let mut ram = Ram::new(0x10_0000);
        put32(&mut ram, 0x1_0000, 0x1_1007);
        put32(&mut ram, 0x1_1000 + 4 * 5, 0xabcd_e003);
        put32(&mut ram, 0x1_0000 + 4, 0x0040_0083 | 1 << 13);
        let p = paging(cr4::PSE, 0);
        let mut go = |gva, kind| walk(&mut ram, &p, Gva::new(gva), kind, SUPERVISOR);
        assert_eq!(at(go(0x5678, AccessKind::Read)), 0xabcd_e678);
        assert_eq!(at(go(0x40_1234, AccessKind::Write)), 0x1_0040_1234, "PSE-36");
        assert_eq!(go(0x6000, AccessKind::Read), Err(Exception::page_fault(0x6000, 0)));
        let mut entry = [0; 4];
        ram.read(umbra_mmu_abi::Gpa::new(0x1_0000 + 4), &mut entry)
            .expect("RAM");
        assert_eq!(u32::from_le_bytes(entry) & 0x60, 0x60, "accessed and dirty");
        // Without PSE, bit 7 has no meaning.
        let p = paging(0, 0);
        let r = walk(&mut ram, &p, Gva::new(0x40_0000), AccessKind::Read, SUPERVISOR);
        assert_eq!(at(r), 0xffff_f000, "a table at 4 MiB, outside RAM: entries of ones");
    }

    #[test]
    fn pae_paging() {
        let mut ram = Ram::new(0x10_0000);
        ram.put64(0x1_0000 + 8 * 3, 0x1_1001);
        ram.put64(0x1_1000, 0x1_2007);
        ram.put64(0x1_1008, 0x0060_0087 | 1 << 63);
        ram.put64(0x1_2000 + 8 * 2, 0x7_0000_0000 | 3);
        let p = paging(cr4::PAE, efer::NXE);
        let mut go = |gva, kind, who| walk(&mut ram, &p, Gva::new(gva), kind, who);
        assert_eq!(at(go(0xc000_2010, AccessKind::Read, SUPERVISOR)), 0x7_0000_0010);
        assert_eq!(at(go(0xc020_0010, AccessKind::Write, Privilege::User)), 0x60_0010);
        assert_eq!(
            go(0xc020_0010, AccessKind::Fetch, SUPERVISOR),
            Err(Exception::page_fault(0xc020_0010, pfec::P | pfec::I))
        );
        assert_eq!(
            go(0x1000, AccessKind::Read, SUPERVISOR),
            Err(Exception::page_fault(0x1000, 0))
        );
        ram.put64(0x1_0000 + 8 * 3, 0x1_1001 | 2);
        let r = walk(&mut ram, &p, Gva::new(0xc000_2000), AccessKind::Read, SUPERVISOR);
        assert_eq!(
            r,
            Err(Exception::page_fault(0xc000_2000, pfec::P | pfec::RSVD)),
            "a reserved PDPTE bit"
        );
    }

    // REQ: PF-2
    #[test]
    fn accessed_and_dirty_are_set_only_by_walks_that_succeed() {
        let mut rig = Rig::new();
        let p = rig.paging;
        let go = |ram: &mut Ram, kind| walk(ram, &p, Gva::new(PAGES + 0x3000), kind, SUPERVISOR);
        assert!(go(&mut rig.ram, AccessKind::Write).is_err());
        assert_eq!(rig.ram.get64(PT + 24) & 0x60, 0);
        assert!(go(&mut rig.ram, AccessKind::Read).is_ok());
        assert_eq!(rig.ram.get64(PT + 24) & 0x60, 0x20);
        assert_eq!(rig.ram.get64(0x1_0000) & 0x60, 0x20, "upper levels have no dirty flag");
        rig.map(3, 0x3_0003);
        assert!(go(&mut rig.ram, AccessKind::Write).is_ok());
        assert_eq!(rig.ram.get64(PT + 24) & 0x60, 0x60);
    }

    // REQ: PF-1
    #[test]
    fn permissions_for_every_combination() {
        let mut rig = Rig::new();
        for bits in 0..16u64 {
            let (write, user, nx, smep_smap) = (bits & 1, bits >> 1 & 1, bits >> 2 & 1, bits >> 3 & 1);
            rig.map(4, 0x3_1000 | 1 | write << 1 | user << 2 | nx << 63);
            for wp in [0, cr0::WP] {
                let mut p = rig.paging;
                p.cr0 = cr0::PE | cr0::PG | wp;
                p.cr4 |= if smep_smap != 0 { cr4::SMEP | cr4::SMAP } else { 0 };
                let mut check = |kind, who, ok: bool| {
                    let r = walk(&mut rig.ram, &p, Gva::new(PAGES + 0x4000), kind, who);
                    assert_eq!(r.is_ok(), ok, "{kind:?} {who:?} bits {bits:04b} wp {wp:#x}");
                };
                let smap = user != 0 && smep_smap != 0;
                check(AccessKind::Read, Privilege::User, user != 0);
                check(AccessKind::Write, Privilege::User, user != 0 && write != 0);
                check(AccessKind::Fetch, Privilege::User, user != 0 && nx == 0);
                check(AccessKind::Read, SUPERVISOR, !smap);
                check(AccessKind::Write, SUPERVISOR, !smap && (write != 0 || wp == 0));
                check(AccessKind::Fetch, SUPERVISOR, nx == 0 && !smap);
                check(AccessKind::Read, Privilege::Supervisor { ac: true }, true);
            }
        }
    }

    #[test]
    fn tables_outside_ram_read_as_ones() {
        let mut ram = Ram::new(0x1000);
        let p = paging(cr4::PAE, efer::LME | efer::LMA | efer::NXE);
        let r = walk(&mut ram, &p, Gva::new(0x1234), AccessKind::Read, SUPERVISOR);
        assert_eq!(r, Err(Exception::page_fault(0x1234, pfec::P | pfec::RSVD)));
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let mut ram = Ram::new(0x1000);
        let p = Paging {
            cr0: cr0::PE,
            ..paging(0, 0)
        };
        assert_eq!(
            at(walk(
                &mut ram,
                &p,
                Gva::new(0xfee0_0010),
                AccessKind::Write,
                Privilege::User
            )),
            0xfee0_0010
        );
    }
}

/// `Vcpu` is used through its trait in this file too.
#[test]
fn script_reads_back_what_was_written() {
    let mut s = Script::new();
    s.write(Field::GuestCr3, 5);
    assert_eq!(s.read(Field::GuestCr3), 5);
}

// REQ: MEM-5
#[test]
fn a_walk_sets_no_flags_in_read_only_memory() {
    // The guest's page table for PAGES is in a ROM.
    let mut rig = Rig::new().answers(&[7]);
    rig.ram.regions = vec![
        RamRegion {
            base: Gpa::new(0),
            len: PT,
            readonly: false,
        },
        RamRegion {
            base: Gpa::new(PT),
            len: 0x1000,
            readonly: true,
        },
        RamRegion {
            base: Gpa::new(PT + 0x1000),
            len: 0x20_0000 - PT - 0x1000,
            readonly: false,
        },
    ];
    let before = rig.ram.get64(PT);
    let rig = rig.done(&[0x8b, 0x03]); // mov eax, [rbx]
    assert_eq!(rig.get(Gpr::Rax), 7);
    assert_eq!(rig.ram.get64(PT), before, "the ROM has changed");
    assert_ne!(rig.ram.get64(0x1_2008) & 0x20, 0, "accessed, where it can be written");
}

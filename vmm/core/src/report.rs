// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a guest that had to stop, complete enough to find out why.

use crate::emulate::Code;
use crate::exit::{Exit, RawExit};
use crate::vcpu::{Field, Gpr, SegReg, Segment, Vcpu};
use alloc::boxed::Box;
use core::fmt;
use umbra_mmu_abi::Gva;

/// All registers, the last exit, the instruction bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The exit.
    pub exit: RawExit,
    /// By number; the instruction pointer and flags are in `exit`.
    pub gprs: [u64; 16],
    /// RIP now (an emulated instruction may have moved it).
    pub rip: u64,
    /// CR0, CR2, CR3, CR4 as hardware has them.
    pub cr: [u64; 4],
    /// IA32_EFER.
    pub efer: u64,
    /// In VMCS order.
    pub segments: [Segment; 8],
    /// Base and limit.
    pub gdtr: (u64, u32),
    /// Base and limit.
    pub idtr: (u64, u32),
    /// The activity state.
    pub activity: u64,
    /// Bytes at RIP, as far as they can be read.
    pub code: Code,
}

impl Report {
    /// Reads everything from a stopped processor.
    pub fn collect<V: Vcpu>(vcpu: &mut V, exit: RawExit, code: Code) -> Box<Self> {
        Box::new(Self {
            exit,
            gprs: Gpr::ALL.map(|r| vcpu.gpr(r)),
            rip: vcpu.rip(),
            cr: [
                vcpu.read(Field::GuestCr0),
                vcpu.cr2(),
                vcpu.read(Field::GuestCr3),
                vcpu.read(Field::GuestCr4),
            ],
            efer: vcpu.read(Field::GuestEfer),
            segments: SegReg::ALL.map(|s| vcpu.segment(s)),
            gdtr: (vcpu.read(Field::GuestGdtrBase), vcpu.read(Field::GuestGdtrLimit) as u32),
            idtr: (vcpu.read(Field::GuestIdtrBase), vcpu.read(Field::GuestIdtrLimit) as u32),
            activity: vcpu.read(Field::GuestActivityState),
            code,
        })
    }

    /// The linear address of the instruction.
    pub fn linear_rip(&self) -> Gva {
        let cs = self.segments[SegReg::Cs as usize];
        Gva::new(if cs.rights.long() {
            self.rip
        } else {
            cs.base.wrapping_add(self.rip) & 0xffff_ffff
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.exit;
        let decoded: Exit = e.decode();
        writeln!(f, "exit {decoded:?}")?;
        writeln!(
            f,
            "reason {:#x} qualification {:#x} length {} gpa {} linear {}",
            e.reason, e.qualification, e.instruction_length, e.gpa, e.linear
        )?;
        writeln!(
            f,
            "interruption {:#x} idt-vectoring {:#x} interruptibility {:#x} activity {}",
            e.interruption, e.idt_vectoring, e.interruptibility, self.activity
        )?;
        writeln!(f, "rip {:#018x} rflags {:#x} code {}", self.rip, e.rflags, self.code)?;
        for row in 0..4 {
            for (n, r) in Gpr::ALL[4 * row..4 * row + 4].iter().enumerate() {
                let gap = if n == 0 { "" } else { " " };
                write!(f, "{gap}{:>3} {:016x}", r.name(), self.gprs[*r as usize])?;
            }
            writeln!(f)?;
        }
        let [cr0, cr2, cr3, cr4] = self.cr;
        writeln!(
            f,
            "cr0 {cr0:#x} cr2 {cr2:#x} cr3 {cr3:#x} cr4 {cr4:#x} efer {:#x}",
            self.efer
        )?;
        for (reg, s) in SegReg::ALL.iter().zip(&self.segments) {
            let (name, rights) = (reg.name(), s.rights);
            writeln!(
                f,
                "{name:>4} {:04x} base {:016x} limit {:08x} rights {rights:?}",
                s.selector, s.base, s.limit
            )?;
        }
        let ((gdt, gdt_limit), (idt, idt_limit)) = (self.gdtr, self.idtr);
        write!(
            f,
            "gdtr {gdt:#x} limit {gdt_limit:#x} idtr {idt:#x} limit {idt_limit:#x}"
        )
    }
}

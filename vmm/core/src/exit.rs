// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why the guest left: every basic exit reason of the SDM (vol. 3, app. C), decoded with its qualification.

use crate::vcpu::Gpr;
use umbra_mmu_abi::{Access, Gpa, Gva};

/// An exit as the processor reports it, before decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// The exit reason field; bit 31: the VM entry failed.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Length of the instruction that exited, in bytes, where the reason defines it.
    pub instruction_length: u32,
    /// Guest-physical address, for EPT exits.
    pub gpa: Gpa,
    /// Guest-linear address, for EPT violations whose qualification says that it is valid.
    pub linear: Gva,
    /// Instruction pointer of the guest.
    pub rip: u64,
    /// Flags of the guest.
    pub rflags: u64,
    /// Interruptibility state.
    pub interruptibility: u32,
    /// Page-table root of the guest.
    pub cr3: u64,
    /// Exit interruption information.
    pub interruption: u32,
    /// IDT-vectoring information: the event whose delivery was under way.
    pub idt_vectoring: u32,
}

impl RawExit {
    /// All zero: no guest has run yet.
    pub const NONE: Self = Self {
        reason: 0,
        qualification: 0,
        instruction_length: 0,
        gpa: Gpa::new(0),
        linear: Gva::new(0),
        rip: 0,
        rflags: 2,
        interruptibility: 0,
        cr3: 0,
        interruption: 0,
        idt_vectoring: 0,
    };
}

/// An access to an I/O port (SDM vol. 3, table 28-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// First port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
}

/// What an instruction did to a control register (SDM vol. 3, table 28-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to CRn.
    Write {
        /// 0, 3, 4 or 8.
        cr: u8,
        /// Source.
        gpr: Gpr,
    },
    /// MOV from CRn.
    Read {
        /// 3 or 8.
        cr: u8,
        /// Destination.
        gpr: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW with this source (its low four bits matter).
    Lmsw(u16),
}

/// What an instruction did to a debug register (SDM vol. 3, table 28-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrAccess {
    /// 0..=7.
    pub dr: u8,
    /// MOV from DRn.
    pub read: bool,
    /// Source or destination.
    pub gpr: Gpr,
}

/// An EPT violation (SDM vol. 3, table 28-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// Where.
    pub gpa: Gpa,
    /// What the guest tried; a read-modify-write is a write.
    pub access: Access,
    /// The EPT entries allowed reading: there is a mapping, with too few rights.
    pub mapped: bool,
    /// The linear address, if there is one.
    pub linear: Option<Gva>,
    /// The access was to the translation of `linear`; else to a guest paging-structure entry on the way.
    pub final_access: bool,
    /// IRET with NMIs unblocked by it was interrupted (bit 12).
    pub nmi_unblocked: bool,
}

/// What an exception or NMI exit carries (SDM vol. 3, table 25-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// The vector.
    pub vector: u8,
    /// The type, bits 10:8.
    pub kind: u8,
    /// An error code is in its own field.
    pub has_error: bool,
}

/// Which table a task switch came from (SDM vol. 3, table 28-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the new TSS.
    pub selector: u16,
    /// 0 CALL, 1 IRET, 2 JMP, 3 task gate.
    pub source: u8,
}

/// Why an entry did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFailure {
    /// Basic reason 33: a check of the guest state failed.
    GuestState,
    /// Basic reason 34: loading MSRs failed, at this entry of the list (from 1).
    MsrLoading(u64),
    /// Basic reason 41.
    MachineCheck,
    /// VMLAUNCH or VMRESUME itself failed (VMfail); the VM-instruction error field says why.
    Instruction,
    /// Bit 31 with a basic reason that the manual does not list for entry failures.
    Other(u16),
}

/// Instructions that exit without a qualification that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VmxInstruction {
    Vmcall,
    Vmclear,
    Vmlaunch,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmresume,
    Vmwrite,
    Vmxoff,
    Vmxon,
    Invept,
    Invvpid,
    Vmfunc,
    Seamcall,
    Tdcall,
}

/// An exit, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0.
    ExceptionOrNmi(Interruption),
    /// 1.
    ExternalInterrupt,
    /// 2.
    TripleFault,
    /// 3.
    Init,
    /// 4.
    Sipi {
        /// The vector.
        vector: u8,
    },
    /// 5.
    IoSmi,
    /// 6.
    OtherSmi,
    /// 7.
    InterruptWindow,
    /// 8.
    NmiWindow,
    /// 9.
    TaskSwitch(TaskSwitch),
    /// 10.
    Cpuid,
    /// 11.
    Getsec,
    /// 12.
    Hlt,
    /// 13.
    Invd,
    /// 14.
    Invlpg(Gva),
    /// 15.
    Rdpmc,
    /// 16.
    Rdtsc,
    /// 17.
    Rsm,
    /// 18-27, 50, 53, 59, 76, 77.
    Vmx(VmxInstruction),
    /// 28.
    Cr(CrAccess),
    /// 29.
    Dr(DrAccess),
    /// 30.
    Io(IoAccess),
    /// 31.
    Rdmsr,
    /// 32.
    Wrmsr,
    /// 33, 34, 41, and everything else with bit 31.
    EntryFailed(EntryFailure),
    /// 36.
    Mwait,
    /// 37.
    MonitorTrap,
    /// 39.
    Monitor,
    /// 40.
    Pause,
    /// 43.
    TprBelowThreshold,
    /// 44.
    ApicAccess {
        /// Offset into the page.
        offset: u16,
        /// Bits 15:12 of the qualification.
        kind: u8,
    },
    /// 45.
    VirtualizedEoi {
        /// The vector.
        vector: u8,
    },
    /// 46: LGDT, LIDT, SGDT, SIDT.
    GdtrOrIdtr,
    /// 47: LLDT, LTR, SLDT, STR.
    LdtrOrTr,
    /// 48.
    EptViolation(EptViolation),
    /// 49.
    EptMisconfiguration(Gpa),
    /// 51.
    Rdtscp,
    /// 52.
    PreemptionTimer,
    /// 54.
    Wbinvd,
    /// 55.
    Xsetbv,
    /// 56.
    ApicWrite {
        /// Offset into the page.
        offset: u16,
    },
    /// 57.
    Rdrand,
    /// 58.
    Invpcid,
    /// 60.
    Encls,
    /// 61.
    Rdseed,
    /// 62.
    PmlFull,
    /// 63.
    Xsaves,
    /// 64.
    Xrstors,
    /// 65.
    Pconfig,
    /// 66.
    SubPagePermission,
    /// 67.
    Umwait,
    /// 68.
    Tpause,
    /// 69.
    Loadiwkey,
    /// 70.
    Enclv,
    /// 72.
    EnqcmdPasid,
    /// 73.
    EnqcmdsPasid,
    /// 74.
    BusLock,
    /// 75.
    InstructionTimeout,
    /// A number that the manual reserves.
    Reserved(u16),
}

/// The "reason" of a kernel that could not execute VMLAUNCH or VMRESUME at all.
pub const REASON_VMFAIL: u32 = u32::MAX;

impl RawExit {
    /// Decodes reason and qualification.
    pub fn decode(&self) -> Exit {
        use Exit as E;
        use VmxInstruction as V;
        let q = self.qualification;
        let basic = self.reason as u16;
        if self.reason == REASON_VMFAIL {
            return E::EntryFailed(EntryFailure::Instruction);
        }
        if self.reason >> 31 != 0 {
            return E::EntryFailed(entry_failure(basic, q));
        }
        match basic {
            0 => E::ExceptionOrNmi(Interruption {
                vector: self.interruption as u8,
                kind: (self.interruption >> 8 & 7) as u8,
                has_error: self.interruption & (1 << 11) != 0,
            }),
            1 => E::ExternalInterrupt,
            2 => E::TripleFault,
            3 => E::Init,
            4 => E::Sipi { vector: q as u8 },
            5 => E::IoSmi,
            6 => E::OtherSmi,
            7 => E::InterruptWindow,
            8 => E::NmiWindow,
            9 => E::TaskSwitch(TaskSwitch {
                selector: q as u16,
                source: (q >> 30 & 3) as u8,
            }),
            10 => E::Cpuid,
            11 => E::Getsec,
            12 => E::Hlt,
            13 => E::Invd,
            14 => E::Invlpg(Gva::new(q)),
            15 => E::Rdpmc,
            16 => E::Rdtsc,
            17 => E::Rsm,
            18 => E::Vmx(V::Vmcall),
            19 => E::Vmx(V::Vmclear),
            20 => E::Vmx(V::Vmlaunch),
            21 => E::Vmx(V::Vmptrld),
            22 => E::Vmx(V::Vmptrst),
            23 => E::Vmx(V::Vmread),
            24 => E::Vmx(V::Vmresume),
            25 => E::Vmx(V::Vmwrite),
            26 => E::Vmx(V::Vmxoff),
            27 => E::Vmx(V::Vmxon),
            28 => E::Cr(cr_access(q)),
            29 => E::Dr(DrAccess {
                dr: (q & 7) as u8,
                read: q & (1 << 4) != 0,
                gpr: Gpr::from_number(q >> 8),
            }),
            30 => E::Io(io_access(q)),
            31 => E::Rdmsr,
            32 => E::Wrmsr,
            // Kernels that cut the reason to 16 bits report entry failures without bit 31.
            33 | 34 | 41 => E::EntryFailed(entry_failure(basic, q)),
            36 => E::Mwait,
            37 => E::MonitorTrap,
            39 => E::Monitor,
            40 => E::Pause,
            43 => E::TprBelowThreshold,
            44 => E::ApicAccess {
                offset: (q & 0xfff) as u16,
                kind: (q >> 12 & 0xf) as u8,
            },
            45 => E::VirtualizedEoi { vector: q as u8 },
            46 => E::GdtrOrIdtr,
            47 => E::LdtrOrTr,
            48 => E::EptViolation(ept_violation(self)),
            49 => E::EptMisconfiguration(self.gpa),
            50 => E::Vmx(V::Invept),
            51 => E::Rdtscp,
            52 => E::PreemptionTimer,
            53 => E::Vmx(V::Invvpid),
            54 => E::Wbinvd,
            55 => E::Xsetbv,
            56 => E::ApicWrite {
                offset: (q & 0xfff) as u16,
            },
            57 => E::Rdrand,
            58 => E::Invpcid,
            59 => E::Vmx(V::Vmfunc),
            60 => E::Encls,
            61 => E::Rdseed,
            62 => E::PmlFull,
            63 => E::Xsaves,
            64 => E::Xrstors,
            65 => E::Pconfig,
            66 => E::SubPagePermission,
            67 => E::Umwait,
            68 => E::Tpause,
            69 => E::Loadiwkey,
            70 => E::Enclv,
            72 => E::EnqcmdPasid,
            73 => E::EnqcmdsPasid,
            74 => E::BusLock,
            75 => E::InstructionTimeout,
            76 => E::Vmx(V::Seamcall),
            77 => E::Vmx(V::Tdcall),
            35 | 38 | 42 | 71 | 78.. => E::Reserved(basic),
        }
    }
}

fn entry_failure(basic: u16, q: u64) -> EntryFailure {
    match basic {
        33 => EntryFailure::GuestState,
        34 => EntryFailure::MsrLoading(q),
        41 => EntryFailure::MachineCheck,
        other => EntryFailure::Other(other),
    }
}

fn cr_access(q: u64) -> CrAccess {
    let (cr, gpr) = ((q & 0xf) as u8, Gpr::from_number(q >> 8));
    match q >> 4 & 3 {
        0 => CrAccess::Write { cr, gpr },
        1 => CrAccess::Read { cr, gpr },
        2 => CrAccess::Clts,
        _ => CrAccess::Lmsw((q >> 16) as u16),
    }
}

fn io_access(q: u64) -> IoAccess {
    IoAccess {
        port: (q >> 16) as u16,
        size: (q & 7) as u8 + 1,
        input: q & (1 << 3) != 0,
        string: q & (1 << 4) != 0,
        rep: q & (1 << 5) != 0,
    }
}

fn ept_violation(raw: &RawExit) -> EptViolation {
    let q = raw.qualification;
    let access = if q & 2 != 0 {
        Access::Write
    } else if q & 4 != 0 {
        Access::Fetch
    } else {
        Access::Read
    };
    let linear = (q & (1 << 7) != 0).then_some(raw.linear);
    EptViolation {
        gpa: raw.gpa,
        access,
        mapped: q & (1 << 3) != 0,
        linear,
        final_access: linear.is_some() && q & (1 << 8) != 0,
        nmi_unblocked: q & (1 << 12) != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: u32, qualification: u64) -> RawExit {
        RawExit {
            reason,
            qualification,
            ..RawExit::NONE
        }
    }

    #[test]
    fn every_16_bit_reason_decodes_and_only_the_reserved_numbers_are_reserved() {
        for n in 0..=u16::MAX {
            let reserved = matches!(n, 35 | 38 | 42 | 71) || n > 77;
            let decoded = exit(n.into(), 0).decode();
            assert_eq!(decoded == Exit::Reserved(n), reserved, "reason {n}: {decoded:?}");
        }
    }

    #[test]
    fn different_reasons_decode_differently() {
        for a in 0..78u32 {
            for b in 0..a {
                assert_ne!(exit(a, 0).decode(), exit(b, 0).decode(), "{a} and {b}");
            }
        }
    }

    #[test]
    fn bit_31_is_an_entry_failure_whatever_the_reason() {
        assert_eq!(
            exit(0x8000_0021, 3).decode(),
            Exit::EntryFailed(EntryFailure::GuestState)
        );
        assert_eq!(
            exit(0x8000_0022, 2).decode(),
            Exit::EntryFailed(EntryFailure::MsrLoading(2))
        );
        assert_eq!(
            exit(0x8000_0029, 0).decode(),
            Exit::EntryFailed(EntryFailure::MachineCheck)
        );
        assert_eq!(
            exit(0x8000_0030, 0).decode(),
            Exit::EntryFailed(EntryFailure::Other(48))
        );
        assert_eq!(
            exit(u32::MAX, u64::MAX).decode(),
            Exit::EntryFailed(EntryFailure::Instruction)
        );
        assert_eq!(exit(33, 0).decode(), Exit::EntryFailed(EntryFailure::GuestState));
    }

    #[test]
    fn io_qualification() {
        let io = |q| match exit(30, q).decode() {
            Exit::Io(io) => io,
            other => panic!("{other:?}"),
        };
        let plain = IoAccess {
            port: 0x3f8,
            size: 1,
            input: false,
            string: false,
            rep: false,
        };
        assert_eq!(io(0x03f8_0000), plain);
        assert_eq!(
            io(0x03f8_0009),
            IoAccess {
                input: true,
                size: 2,
                ..plain
            }
        );
        assert_eq!(
            io(0x03f8_003b),
            IoAccess {
                input: true,
                size: 4,
                string: true,
                rep: true,
                ..plain
            }
        );
    }

    #[test]
    fn cr_and_dr_qualifications() {
        assert_eq!(
            exit(28, 0x300).decode(),
            Exit::Cr(CrAccess::Write { cr: 0, gpr: Gpr::Rbx })
        );
        assert_eq!(
            exit(28, 0xf18).decode(),
            Exit::Cr(CrAccess::Read { cr: 8, gpr: Gpr::R15 })
        );
        assert_eq!(exit(28, 0x20).decode(), Exit::Cr(CrAccess::Clts));
        assert_eq!(exit(28, 0xabcd_0030).decode(), Exit::Cr(CrAccess::Lmsw(0xabcd)));
        assert_eq!(
            exit(29, 0x217).decode(),
            Exit::Dr(DrAccess {
                dr: 7,
                read: true,
                gpr: Gpr::Rdx
            })
        );
    }

    #[test]
    fn ept_qualifications_seen_on_the_simulator() {
        let v = |q| match (RawExit {
            gpa: Gpa::new(0x1000),
            linear: Gva::new(0x5000),
            ..exit(48, q)
        })
        .decode()
        {
            Exit::EptViolation(v) => v,
            other => panic!("{other:?}"),
        };
        let read = v(0x181);
        assert_eq!(
            (read.access, read.mapped, read.final_access),
            (Access::Read, false, true)
        );
        assert_eq!(read.linear, Some(Gva::new(0x5000)));
        assert_eq!(v(0x182).access, Access::Write);
        let ro = v(0x1aa);
        assert_eq!((ro.access, ro.mapped), (Access::Write, true));
        assert_eq!(v(0x184).access, Access::Fetch);
        let walk = v(0x081);
        assert!(!walk.final_access && walk.linear.is_some());
        assert_eq!(v(0x003).linear, None);
        assert_eq!(v(0x003).access, Access::Write, "a read-modify-write is a write");
    }
}

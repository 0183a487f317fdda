// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a virtual processor is to the vmm: registers, VMCS fields, entry and exit. VT-x is one backend behind this trait.

use crate::exit::RawExit;
use crate::inject::Event;
use core::fmt;

/// General-purpose registers by their number in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax = 0,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All of them, by number.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// The register that the low four bits of `number` name.
    pub const fn from_number(number: u64) -> Self {
        Self::ALL[(number & 15) as usize]
    }

    /// Its 64-bit name.
    pub const fn name(self) -> &'static str {
        [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ][self as usize]
    }
}

/// Segment registers, in the order of their VMCS fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegReg {
    Es = 0,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegReg {
    /// All of them, in VMCS order.
    pub const ALL: [Self; 8] = [
        Self::Es,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Fs,
        Self::Gs,
        Self::Ldtr,
        Self::Tr,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"][self as usize]
    }
}

/// Segment access rights as the VMCS holds them (SDM vol. 3, table 25-2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AccessRights(pub u32);

impl AccessRights {
    /// Bits 3:0: the type.
    pub const fn kind(self) -> u32 {
        self.0 & 0xf
    }
    /// Code or data (S = 1), not a system segment.
    pub const fn code_or_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }
    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// Present.
    pub const fn present(self) -> bool {
        self.0 & (1 << 7) != 0
    }
    /// 64-bit code.
    pub const fn long(self) -> bool {
        self.0 & (1 << 13) != 0
    }
    /// Default operation size 32 (D) or big stack and upper bound (B).
    pub const fn db(self) -> bool {
        self.0 & (1 << 14) != 0
    }
    /// Loaded with a null selector.
    pub const fn unusable(self) -> bool {
        self.0 & (1 << 16) != 0
    }
    /// A code segment.
    pub const fn is_code(self) -> bool {
        self.code_or_data() && self.0 & 8 != 0
    }
    /// A conforming code segment.
    pub const fn conforming(self) -> bool {
        self.is_code() && self.0 & 4 != 0
    }
    /// Data that may be written.
    pub const fn writable(self) -> bool {
        !self.is_code() && self.0 & 2 != 0
    }
    /// Data, or code that may be read.
    pub const fn readable(self) -> bool {
        !self.is_code() || self.0 & 2 != 0
    }
    /// An expand-down data segment: offsets above the limit are inside.
    pub const fn expand_down(self) -> bool {
        !self.is_code() && self.0 & 4 != 0
    }
}

impl fmt::Debug for AccessRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#07x}", self.0)
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base.
    pub base: u64,
    /// Byte limit (scaled).
    pub limit: u32,
    /// Rights.
    pub rights: AccessRights,
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Guest state and exit details by their VMCS encoding (SDM vol. 3, app. B). Names are the manual's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        #[allow(missing_docs)]
        pub enum Field { $($(#[$doc])* $name = $code,)* }
        impl Field {
            /// Every field that the vmm knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

fields! {
    GuestEsSelector = 0x0800,
    GuestCsSelector = 0x0802,
    GuestSsSelector = 0x0804,
    GuestDsSelector = 0x0806,
    GuestFsSelector = 0x0808,
    GuestGsSelector = 0x080a,
    GuestLdtrSelector = 0x080c,
    GuestTrSelector = 0x080e,
    TscOffset = 0x2010,
    GuestDebugctl = 0x2802,
    GuestPat = 0x2804,
    GuestEfer = 0x2806,
    GuestPdpte0 = 0x280a,
    GuestPdpte1 = 0x280c,
    GuestPdpte2 = 0x280e,
    GuestPdpte3 = 0x2810,
    PinBasedControls = 0x4000,
    PrimaryControls = 0x4002,
    ExceptionBitmap = 0x4004,
    ExitControls = 0x400c,
    EntryControls = 0x4012,
    EntryInterruptionInfo = 0x4016,
    EntryExceptionErrorCode = 0x4018,
    EntryInstructionLength = 0x401a,
    SecondaryControls = 0x401e,
    InstructionError = 0x4400,
    ExitReason = 0x4402,
    ExitInterruptionInfo = 0x4404,
    ExitInterruptionErrorCode = 0x4406,
    IdtVectoringInfo = 0x4408,
    IdtVectoringErrorCode = 0x440a,
    ExitInstructionLength = 0x440c,
    ExitInstructionInfo = 0x440e,
    GuestEsLimit = 0x4800,
    GuestCsLimit = 0x4802,
    GuestSsLimit = 0x4804,
    GuestDsLimit = 0x4806,
    GuestFsLimit = 0x4808,
    GuestGsLimit = 0x480a,
    GuestLdtrLimit = 0x480c,
    GuestTrLimit = 0x480e,
    GuestGdtrLimit = 0x4810,
    GuestIdtrLimit = 0x4812,
    GuestEsAccessRights = 0x4814,
    GuestCsAccessRights = 0x4816,
    GuestSsAccessRights = 0x4818,
    GuestDsAccessRights = 0x481a,
    GuestFsAccessRights = 0x481c,
    GuestGsAccessRights = 0x481e,
    GuestLdtrAccessRights = 0x4820,
    GuestTrAccessRights = 0x4822,
    GuestInterruptibility = 0x4824,
    GuestActivityState = 0x4826,
    GuestSysenterCs = 0x482a,
    PreemptionTimerValue = 0x482e,
    Cr0GuestHostMask = 0x6000,
    Cr4GuestHostMask = 0x6002,
    Cr0ReadShadow = 0x6004,
    Cr4ReadShadow = 0x6006,
    ExitQualification = 0x6400,
    GuestLinearAddress = 0x640a,
    GuestCr0 = 0x6800,
    GuestCr3 = 0x6802,
    GuestCr4 = 0x6804,
    GuestEsBase = 0x6806,
    GuestCsBase = 0x6808,
    GuestSsBase = 0x680a,
    GuestDsBase = 0x680c,
    GuestFsBase = 0x680e,
    GuestGsBase = 0x6810,
    GuestLdtrBase = 0x6812,
    GuestTrBase = 0x6814,
    GuestGdtrBase = 0x6816,
    GuestIdtrBase = 0x6818,
    GuestDr7 = 0x681a,
    GuestRsp = 0x681c,
    GuestRip = 0x681e,
    GuestRflags = 0x6820,
    GuestPendingDebugExceptions = 0x6822,
    GuestSysenterEsp = 0x6824,
    GuestSysenterEip = 0x6826,
}

impl Field {
    /// The number that VMREAD and VMWRITE take.
    pub const fn encoding(self) -> u32 {
        self as u32
    }
}

/// The four fields of one segment register: selector, base, limit, access rights.
pub const fn segment_fields(seg: SegReg) -> [Field; 4] {
    use Field::*;
    match seg {
        SegReg::Es => [GuestEsSelector, GuestEsBase, GuestEsLimit, GuestEsAccessRights],
        SegReg::Cs => [GuestCsSelector, GuestCsBase, GuestCsLimit, GuestCsAccessRights],
        SegReg::Ss => [GuestSsSelector, GuestSsBase, GuestSsLimit, GuestSsAccessRights],
        SegReg::Ds => [GuestDsSelector, GuestDsBase, GuestDsLimit, GuestDsAccessRights],
        SegReg::Fs => [GuestFsSelector, GuestFsBase, GuestFsLimit, GuestFsAccessRights],
        SegReg::Gs => [GuestGsSelector, GuestGsBase, GuestGsLimit, GuestGsAccessRights],
        SegReg::Ldtr => [GuestLdtrSelector, GuestLdtrBase, GuestLdtrLimit, GuestLdtrAccessRights],
        SegReg::Tr => [GuestTrSelector, GuestTrBase, GuestTrLimit, GuestTrAccessRights],
    }
}

/// RFLAGS bits.
pub mod rflags {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
}

/// CR0 bits.
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// IA32_EFER bits.
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// Interruptibility state: blocking by STI.
pub const BLOCKING_BY_STI: u32 = 1 << 0;
/// Interruptibility state: blocking by MOV SS or POP SS.
pub const BLOCKING_BY_MOV_SS: u32 = 1 << 1;
/// Interruptibility state: blocking by NMI.
pub const BLOCKING_BY_NMI: u32 = 1 << 3;

/// Why `Vcpu::enter` came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The guest left by itself: registers and fields are current.
    Exit(RawExit),
    /// Somebody signalled this thread (badge). General-purpose registers are unknown until the next `Exit`; an event
    /// that had not been delivered is still queued.
    Notified(u64),
}

/// A virtual processor. Changes are queued and reach it with the next `enter`; reads see queued changes.
///
/// Reading a general-purpose register or what `RawExit` carries costs nothing; `read` and `write` may each cost a system
/// call, so nothing on a hot path uses them.
pub trait Vcpu {
    /// The backend failed (never the guest).
    type Error: fmt::Display + fmt::Debug;

    /// Runs the guest until its next exit or a notification.
    fn enter(&mut self) -> Result<Entered, Self::Error>;

    /// A general-purpose register.
    fn gpr(&mut self, r: Gpr) -> u64;
    /// Replaces a general-purpose register (all 64 bits).
    fn set_gpr(&mut self, r: Gpr, value: u64);
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Replaces the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// The page-fault linear address register.
    fn cr2(&mut self) -> u64;
    /// Replaces CR2.
    fn set_cr2(&mut self, value: u64);

    /// A VMCS field.
    fn read(&mut self, field: Field) -> u64;
    /// Replaces a VMCS field.
    fn write(&mut self, field: Field, value: u64);

    /// The event of the next entry, replacing what was queued; `None` takes it back.
    fn set_event(&mut self, event: Option<Event>);
    /// Asks for an exit as soon as the guest can take an interrupt (or not any more).
    fn set_interrupt_window(&mut self, wanted: bool);
    /// The host's time stamp counter now, in ticks.
    fn host_tsc(&mut self) -> u64;

    /// A segment register with its hidden part.
    fn segment(&mut self, seg: SegReg) -> Segment {
        let [selector, base, limit, rights] = segment_fields(seg);
        Segment {
            selector: self.read(selector) as u16,
            base: self.read(base),
            limit: self.read(limit) as u32,
            rights: AccessRights(self.read(rights) as u32),
        }
    }

    /// Loads a segment register, hidden part included.
    fn set_segment(&mut self, seg: SegReg, value: Segment) {
        let [selector, base, limit, rights] = segment_fields(seg);
        self.write(selector, value.selector.into());
        self.write(base, value.base);
        self.write(limit, value.limit.into());
        self.write(rights, value.rights.0.into());
    }
}

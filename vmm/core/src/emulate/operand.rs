// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where is an operand? Registers with their parts, effective addresses, segment bases, limits and rights.

use super::alu::{mask, sign_extend};
use super::cpu::Cpu;
use super::walk::AccessKind;
use super::{Abort, CodeSize};
use crate::inject::Exception;
use crate::vcpu::{Gpr, SegReg, Segment};
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};
use umbra_mmu_abi::Gva;

/// An operand that can be read and maybe written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// (Part of) a general-purpose register.
    Reg(RegPart),
    /// Memory, checked for the intended access by segmentation, not yet by paging.
    Mem {
        /// Linear address.
        at: Gva,
        /// Bytes.
        size: u8,
    },
    /// A selector register.
    Seg(SegReg),
    /// An immediate, sign-extended to 64 bits.
    Imm(u64),
}

/// A register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegPart {
    /// Which.
    pub gpr: Gpr,
    /// Bytes.
    pub size: u8,
    /// AH, CH, DH or BH.
    pub high: bool,
}

impl RegPart {
    /// The part that an instruction's register name means; `None` for other register files.
    pub fn new(r: Register) -> Option<Self> {
        let n = r as u64;
        let part = |first: Register, size, high| {
            Some(Self {
                gpr: Gpr::from_number(n - first as u64),
                size,
                high,
            })
        };
        match r {
            _ if r >= Register::AL && r <= Register::BL => part(Register::AL, 1, false),
            _ if r >= Register::AH && r <= Register::BH => part(Register::AH, 1, true),
            _ if r >= Register::SPL && r <= Register::R15L => Some(Self {
                gpr: Gpr::from_number(n - Register::SPL as u64 + 4),
                size: 1,
                high: false,
            }),
            _ if r >= Register::AX && r <= Register::R15W => part(Register::AX, 2, false),
            _ if r >= Register::EAX && r <= Register::R15D => part(Register::EAX, 4, false),
            _ if r >= Register::RAX && r <= Register::R15 => part(Register::RAX, 8, false),
            _ => None,
        }
    }

    /// Its value.
    pub fn get<C: Cpu>(self, cpu: &mut C) -> u64 {
        let full = cpu.gpr(self.gpr);
        if self.high {
            full >> 8 & 0xff
        } else {
            full & mask(self.size)
        }
    }

    /// Replaces it: 8- and 16-bit writes keep the rest, 32-bit writes clear the upper half.
    pub fn set<C: Cpu>(self, cpu: &mut C, value: u64) {
        let new = match (self.size, self.high) {
            (8, _) => value,
            (4, _) => value & mask(4),
            (_, true) => (cpu.gpr(self.gpr) & !0xff00) | (value & 0xff) << 8,
            (size, false) => (cpu.gpr(self.gpr) & !mask(size)) | (value & mask(size)),
        };
        cpu.set_gpr(self.gpr, new);
    }
}

/// Accumulator of `size` bytes.
pub const fn accumulator(size: u8) -> RegPart {
    RegPart {
        gpr: Gpr::Rax,
        size,
        high: false,
    }
}

/// The segment register that iced names.
pub fn seg_reg(r: Register) -> Option<SegReg> {
    Some(match r {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::DS => SegReg::Ds,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        _ => return None,
    })
}

/// Bytes of a memory operand, for the sizes that integer instructions have.
fn memory_bytes(size: MemorySize) -> Option<u8> {
    Some(match size {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 | MemorySize::WordOffset => 2,
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => 4,
        MemorySize::UInt64 | MemorySize::Int64 | MemorySize::QwordOffset => 8,
        MemorySize::UInt128 => 16,
        _ => return None,
    })
}

/// Finds operand `n`. `displace` is added to a memory operand's offset (bit strings).
pub fn place<C: Cpu>(cpu: &mut C, i: &Instruction, n: u32, kind: AccessKind, displace: u64) -> Result<Place, Abort> {
    match i.op_kind(n) {
        OpKind::Register => {
            let r = i.op_register(n);
            if let Some(part) = RegPart::new(r) {
                Ok(Place::Reg(part))
            } else if let Some(seg) = seg_reg(r) {
                Ok(Place::Seg(seg))
            } else {
                Err(Abort::Unsupported)
            }
        }
        OpKind::Memory => {
            let size = memory_bytes(i.memory_size()).ok_or(Abort::Unsupported)?;
            let at = memory_operand(cpu, i, size, kind, displace)?;
            Ok(Place::Mem { at, size })
        }
        _ => i.try_immediate(n).map(Place::Imm).map_err(|_| Abort::Unsupported),
    }
}

impl Place {
    /// Its value, zero-extended.
    pub fn load<C: Cpu>(self, cpu: &mut C, kind: AccessKind) -> Result<u64, Abort> {
        match self {
            Self::Reg(r) => Ok(r.get(cpu)),
            Self::Mem { at, size } => cpu.read(at, size, kind),
            Self::Seg(s) => Ok(cpu.segment(s).selector.into()),
            Self::Imm(v) => Ok(v),
        }
    }

    /// Replaces it.
    pub fn store<C: Cpu>(self, cpu: &mut C, value: u64) -> Result<(), Abort> {
        match self {
            Self::Reg(r) => {
                r.set(cpu, value);
                Ok(())
            }
            Self::Mem { at, size } => cpu.write(at, size, value & mask(size)),
            Self::Seg(_) | Self::Imm(_) => Err(Abort::Unsupported),
        }
    }

    /// Bytes; immediates have the size of the other operand.
    pub fn size(self) -> Option<u8> {
        match self {
            Self::Reg(r) => Some(r.size),
            Self::Mem { size, .. } => Some(size),
            Self::Seg(_) => Some(2),
            Self::Imm(_) => None,
        }
    }
}

/// Bytes of an address in the instruction's memory operand.
fn address_bytes(i: &Instruction) -> u8 {
    let by_register = |r: Register| match r {
        Register::None => None,
        Register::EIP => Some(4),
        Register::RIP => Some(8),
        r => RegPart::new(r).map(|p| p.size),
    };
    by_register(i.memory_base())
        .or_else(|| by_register(i.memory_index()))
        .unwrap_or(match i.memory_displ_size() {
            2 => 2,
            8 => 8,
            _ => 4,
        })
}

/// The offset that a ModRM memory operand means, before segmentation.
pub fn effective_address<C: Cpu>(cpu: &mut C, i: &Instruction) -> (u64, u8) {
    let bytes = address_bytes(i);
    let mut offset = i.memory_displacement64();
    // For RIP-relative operands the decoder has already added the next instruction's address.
    if let Some(base) = RegPart::new(i.memory_base()) {
        offset = offset.wrapping_add(base.get(cpu));
    }
    if let Some(index) = RegPart::new(i.memory_index()) {
        offset = offset.wrapping_add(index.get(cpu).wrapping_mul(i.memory_index_scale().into()));
    }
    (offset & mask(bytes), bytes)
}

fn memory_operand<C: Cpu>(
    cpu: &mut C,
    i: &Instruction,
    size: u8,
    kind: AccessKind,
    displace: u64,
) -> Result<Gva, Abort> {
    let seg = seg_reg(i.memory_segment()).unwrap_or(SegReg::Ds);
    let flat = cpu.mode().code == CodeSize::Bits64 && !matches!(seg, SegReg::Fs | SegReg::Gs);
    // With a stack operand beside it, the address may be the stack's.
    let alone = !matches!(i.mnemonic(), Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call);
    if !flat
        && alone
        && let Some(known) = cpu.known_operand()
    {
        // Hardware has checked the segment.
        let offset = known.raw() & 0xfff;
        if offset != 0 && offset + u64::from(size) <= 0x1000 {
            return Ok(known);
        }
        // An access that seems to start a page may have begun on the page before.
        let (offset, bytes) = effective_address(cpu, i);
        let start = cpu
            .segment_base(seg)
            .wrapping_add(offset.wrapping_add(displace) & mask(bytes));
        return Ok(Gva::new(if cpu.mode().code == CodeSize::Bits64 {
            start
        } else {
            start & mask(4)
        }));
    }
    let (offset, bytes) = effective_address(cpu, i);
    linear(cpu, seg, offset.wrapping_add(displace) & mask(bytes), size.into(), kind)
}

/// Segmentation: the linear address of `size` bytes at `seg:offset`.
pub fn linear<C: Cpu>(cpu: &mut C, seg: SegReg, offset: u64, size: u64, kind: AccessKind) -> Result<Gva, Abort> {
    let mode = cpu.mode();
    let violation = if seg == SegReg::Ss {
        Exception::SS0
    } else {
        Exception::GP0
    };
    let violation = if mode.protected {
        violation
    } else {
        violation.in_real_mode()
    };
    if mode.code == CodeSize::Bits64 {
        let base = if matches!(seg, SegReg::Fs | SegReg::Gs) {
            cpu.segment_base(seg)
        } else {
            0
        };
        let at = base.wrapping_add(offset);
        let last = at.wrapping_add(size - 1);
        return if canonical(at) && canonical(last) {
            Ok(Gva::new(at))
        } else {
            Err(Abort::Fault(violation))
        };
    }
    let s = cpu.segment(seg);
    if mode.protected && !mode.v86 && !rights_allow(&s, kind) || !inside_limit(&s, offset, size) {
        return Err(Abort::Fault(violation));
    }
    Ok(Gva::new(s.base.wrapping_add(offset) & mask(4)))
}

/// Are the upper bits a copy of bit 47?
pub const fn canonical(at: u64) -> bool {
    sign_extend(at, 6) == at
}

fn rights_allow(s: &Segment, kind: AccessKind) -> bool {
    !s.rights.unusable()
        && match kind {
            AccessKind::Read => s.rights.readable(),
            AccessKind::Write => s.rights.writable(),
            AccessKind::Fetch => s.rights.is_code(),
        }
}

fn inside_limit(s: &Segment, offset: u64, size: u64) -> bool {
    let last = offset + (size - 1);
    let limit = u64::from(s.limit);
    if s.rights.expand_down() && !s.rights.is_code() {
        let top = if s.rights.db() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}

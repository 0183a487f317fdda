// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does an instruction do? The integer instructions with a memory operand, once for the whole project.

use super::alu::{self, STATUS, Shift, mask, sign_extend};
use super::cpu::Cpu;
use super::operand::{Place, RegPart, accumulator, canonical, effective_address, linear, place};
use super::walk::AccessKind::{Read, Write};
use super::{Abort, CodeSize, string};
use crate::inject::Exception;
use crate::vcpu::rflags::{CF, RF, ZF};
use crate::vcpu::{Gpr, SegReg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use umbra_mmu_abi::Gva;

/// How far an instruction got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Complete; RIP is at the next one.
    Done,
    /// A repeated string instruction has more to do; RIP is still at it, its registers say how far it is.
    Again,
}

/// Executes one decoded instruction whose RIP is the processor's.
///
/// On `Err` nothing has changed, except that string instructions have completed whole iterations.
pub fn execute<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<Step, Abort> {
    use Mnemonic as M;
    if string::is_string(i) {
        return string::execute(cpu, i);
    }
    match i.mnemonic() {
        M::Mov | M::Movnti => {
            let to = place(cpu, i, 0, Write, 0)?;
            if matches!(to, Place::Seg(_)) {
                return Err(Abort::Unsupported);
            }
            let value = source(cpu, i, 1)?;
            to.store(cpu, value)?;
        }
        M::Movzx => {
            let value = source(cpu, i, 1)?;
            place(cpu, i, 0, Write, 0)?.store(cpu, value)?;
        }
        M::Movsx | M::Movsxd => {
            let from = place(cpu, i, 1, Read, 0)?;
            let value = from.load(cpu, Read)?;
            let value = sign_extend(value, from.size().unwrap_or(8));
            place(cpu, i, 0, Write, 0)?.store(cpu, value)?;
        }
        M::Movbe => {
            let from = place(cpu, i, 1, Read, 0)?;
            let size = from.size().unwrap_or(8);
            let value = from.load(cpu, Read)?.swap_bytes() >> (64 - 8 * u32::from(size));
            place(cpu, i, 0, Write, 0)?.store(cpu, value)?;
        }
        M::Add => binary(cpu, i, |a, b, _, s| alu::add(a, b, 0, s))?,
        M::Adc => binary(cpu, i, |a, b, f, s| alu::add(a, b, f & CF, s))?,
        M::Sub => binary(cpu, i, |a, b, _, s| alu::sub(a, b, 0, s))?,
        M::Sbb => binary(cpu, i, |a, b, f, s| alu::sub(a, b, f & CF, s))?,
        M::And => binary(cpu, i, |a, b, _, s| alu::logic(a & b, s))?,
        M::Or => binary(cpu, i, |a, b, _, s| alu::logic(a | b, s))?,
        M::Xor => binary(cpu, i, |a, b, _, s| alu::logic(a ^ b, s))?,
        M::Cmp => compare(cpu, i, |a, b, s| alu::sub(a, b, 0, s).1)?,
        M::Test => compare(cpu, i, |a, b, s| alu::logic(a & b, s).1)?,
        M::Inc => unary(cpu, i, alu::inc)?,
        M::Dec => unary(cpu, i, alu::dec)?,
        M::Neg => unary(cpu, i, |a, _, s| alu::sub(0, a, 0, s))?,
        M::Not => unary(cpu, i, |a, f, s| (!a & mask(s), f & STATUS))?,
        M::Shl | M::Sal => shift(cpu, i, Shift::Shl)?,
        M::Shr => shift(cpu, i, Shift::Shr)?,
        M::Sar => shift(cpu, i, Shift::Sar)?,
        M::Rol => shift(cpu, i, Shift::Rol)?,
        M::Ror => shift(cpu, i, Shift::Ror)?,
        M::Rcl => shift(cpu, i, Shift::Rcl)?,
        M::Rcr => shift(cpu, i, Shift::Rcr)?,
        M::Shld => double_shift(cpu, i, true)?,
        M::Shrd => double_shift(cpu, i, false)?,
        M::Xchg => {
            let (a, b) = (place(cpu, i, 0, Write, 0)?, place(cpu, i, 1, Write, 0)?);
            let (va, vb) = (a.load(cpu, Write)?, b.load(cpu, Write)?);
            // The memory operand first: it is the one that may fault.
            let (mem, reg, to_mem, to_reg) = if matches!(a, Place::Mem { .. }) {
                (a, b, vb, va)
            } else {
                (b, a, va, vb)
            };
            mem.store(cpu, to_mem)?;
            reg.store(cpu, to_reg)?;
        }
        M::Xadd => {
            let (to, reg) = (place(cpu, i, 0, Write, 0)?, place(cpu, i, 1, Write, 0)?);
            let (a, b) = (to.load(cpu, Write)?, reg.load(cpu, Write)?);
            let (sum, flags) = alu::add(a, b, 0, to.size().unwrap_or(8));
            if matches!(to, Place::Mem { .. }) {
                to.store(cpu, sum)?;
                reg.store(cpu, a)?;
            } else {
                reg.store(cpu, a)?;
                to.store(cpu, sum)?;
            }
            set_status(cpu, flags);
        }
        M::Cmpxchg => cmpxchg(cpu, i)?,
        M::Cmpxchg8b => cmpxchg_wide(cpu, i, 4)?,
        M::Cmpxchg16b => cmpxchg_wide(cpu, i, 8)?,
        M::Bt => bit(cpu, i, None)?,
        M::Bts => bit(cpu, i, Some(|v, m| v | m))?,
        M::Btr => bit(cpu, i, Some(|v, m| v & !m))?,
        M::Btc => bit(cpu, i, Some(|v, m| v ^ m))?,
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt => bit_scan(cpu, i)?,
        M::Imul if i.op_count() > 1 => imul(cpu, i)?,
        M::Mul | M::Imul => multiply(cpu, i)?,
        M::Div | M::Idiv => divide(cpu, i)?,
        M::Push => push(cpu, i)?,
        M::Pop => pop(cpu, i)?,
        M::Call => return call(cpu, i),
        M::Jmp => return jump(cpu, i),
        M::Ret => return ret(cpu, i),
        M::Leave => leave(cpu, i)?,
        M::Xlatb => xlat(cpu, i)?,
        M::Lea => {
            let (offset, _) = effective_address(cpu, i);
            place(cpu, i, 0, Write, 0)?.store(cpu, offset)?;
        }
        M::Ud0 | M::Ud1 | M::Ud2 => return Err(Abort::Fault(Exception::UD)),
        // They touch no memory architecturally.
        M::Nop | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw | M::Prefetch => {}
        M::Clflush | M::Clflushopt | M::Clwb => {
            place(cpu, i, 0, Read, 0)?;
        }
        _ => return conditional(cpu, i),
    }
    advance(cpu, i);
    Ok(Step::Done)
}

/// CMOVcc and SETcc; everything else is not supported.
fn conditional<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<Step, Abort> {
    use Mnemonic as M;
    let (cc, set) = match i.mnemonic() {
        M::Cmovo => (0, false),
        M::Cmovno => (1, false),
        M::Cmovb => (2, false),
        M::Cmovae => (3, false),
        M::Cmove => (4, false),
        M::Cmovne => (5, false),
        M::Cmovbe => (6, false),
        M::Cmova => (7, false),
        M::Cmovs => (8, false),
        M::Cmovns => (9, false),
        M::Cmovp => (10, false),
        M::Cmovnp => (11, false),
        M::Cmovl => (12, false),
        M::Cmovge => (13, false),
        M::Cmovle => (14, false),
        M::Cmovg => (15, false),
        M::Seto => (0, true),
        M::Setno => (1, true),
        M::Setb => (2, true),
        M::Setae => (3, true),
        M::Sete => (4, true),
        M::Setne => (5, true),
        M::Setbe => (6, true),
        M::Seta => (7, true),
        M::Sets => (8, true),
        M::Setns => (9, true),
        M::Setp => (10, true),
        M::Setnp => (11, true),
        M::Setl => (12, true),
        M::Setge => (13, true),
        M::Setle => (14, true),
        M::Setg => (15, true),
        _ => return Err(Abort::Unsupported),
    };
    let holds = alu::condition(cc, cpu.rflags());
    let to = place(cpu, i, 0, Write, 0)?;
    if set {
        to.store(cpu, holds.into())?;
    } else {
        // The source is read whatever the condition; a 32-bit destination loses its upper half in any case.
        let value = source(cpu, i, 1)?;
        let old = to.load(cpu, Read)?;
        to.store(cpu, if holds { value } else { old })?;
    }
    advance(cpu, i);
    Ok(Step::Done)
}

/// RIP past `i`; in 16- and 32-bit code it wraps at 32 bits.
pub(super) fn advance<C: Cpu>(cpu: &mut C, i: &Instruction) {
    go(cpu, i.next_ip());
    let flags = cpu.rflags();
    if flags & RF != 0 {
        cpu.set_rflags(flags & !RF);
    }
}

fn go<C: Cpu>(cpu: &mut C, rip: u64) {
    let rip = if cpu.mode().code == CodeSize::Bits64 {
        rip
    } else {
        rip & mask(4)
    };
    cpu.set_rip(rip);
}

fn set_status<C: Cpu>(cpu: &mut C, flags: u64) {
    let old = cpu.rflags();
    cpu.set_rflags((old & !STATUS) | (flags & STATUS));
}

fn source<C: Cpu>(cpu: &mut C, i: &Instruction, n: u32) -> Result<u64, Abort> {
    place(cpu, i, n, Read, 0)?.load(cpu, Read)
}

fn operand_size(to: Place, other: Option<Place>) -> Result<u8, Abort> {
    to.size()
        .or_else(|| other.and_then(Place::size))
        .ok_or(Abort::Unsupported)
}

fn binary<C: Cpu>(cpu: &mut C, i: &Instruction, f: impl Fn(u64, u64, u64, u8) -> alu::Flagged) -> Result<(), Abort> {
    let to = place(cpu, i, 0, Write, 0)?;
    let size = operand_size(to, None)?;
    let b = source(cpu, i, 1)?;
    let a = to.load(cpu, Write)?;
    let (r, flags) = f(a, b, cpu.rflags(), size);
    to.store(cpu, r)?;
    set_status(cpu, flags);
    Ok(())
}

fn compare<C: Cpu>(cpu: &mut C, i: &Instruction, f: impl Fn(u64, u64, u8) -> u64) -> Result<(), Abort> {
    let (a, b) = (place(cpu, i, 0, Read, 0)?, place(cpu, i, 1, Read, 0)?);
    let size = operand_size(a, Some(b))?;
    let (a, b) = (a.load(cpu, Read)?, b.load(cpu, Read)?);
    set_status(cpu, f(a, b, size));
    Ok(())
}

fn unary<C: Cpu>(cpu: &mut C, i: &Instruction, f: impl Fn(u64, u64, u8) -> alu::Flagged) -> Result<(), Abort> {
    let to = place(cpu, i, 0, Write, 0)?;
    let size = operand_size(to, None)?;
    let a = to.load(cpu, Write)?;
    let (r, flags) = f(a, cpu.rflags(), size);
    to.store(cpu, r)?;
    set_status(cpu, flags);
    Ok(())
}

fn shift<C: Cpu>(cpu: &mut C, i: &Instruction, op: Shift) -> Result<(), Abort> {
    let count = source(cpu, i, 1)? as u8;
    unary(cpu, i, |a, f, s| alu::shift(op, a, count, f, s))
}

fn double_shift<C: Cpu>(cpu: &mut C, i: &Instruction, left: bool) -> Result<(), Abort> {
    let (b, count) = (source(cpu, i, 1)?, source(cpu, i, 2)? as u8);
    unary(cpu, i, |a, f, s| alu::double_shift(left, a, b, count, f, s))
}

fn cmpxchg<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let (to, from) = (place(cpu, i, 0, Write, 0)?, place(cpu, i, 1, Read, 0)?);
    let size = operand_size(to, None)?;
    let acc = accumulator(size);
    let (old, want, new) = (to.load(cpu, Write)?, acc.get(cpu), from.load(cpu, Read)?);
    let flags = alu::sub(want, old, 0, size).1;
    // The destination is written either way; a mismatch writes back what was there.
    to.store(cpu, if old == want { new } else { old })?;
    if old != want {
        acc.set(cpu, old);
    }
    set_status(cpu, flags);
    Ok(())
}

fn cmpxchg_wide<C: Cpu>(cpu: &mut C, i: &Instruction, half: u8) -> Result<(), Abort> {
    let Place::Mem { at, size } = place(cpu, i, 0, Write, 0)? else {
        return Err(Abort::Unsupported);
    };
    if half == 8 && at.raw() & 15 != 0 {
        return Err(Abort::Fault(Exception::GP0));
    }
    let upper = Gva::new(at.raw().wrapping_add(half.into()));
    cpu.probe(at, size, Write)?;
    let (low, high) = (cpu.read(at, half, Write)?, cpu.read(upper, half, Write)?);
    let part = |gpr| RegPart {
        gpr,
        size: half,
        high: false,
    };
    let (rax, rdx) = (part(Gpr::Rax), part(Gpr::Rdx));
    let equal = rax.get(cpu) == low && rdx.get(cpu) == high;
    let (new_low, new_high) = if equal {
        (part(Gpr::Rbx).get(cpu), part(Gpr::Rcx).get(cpu))
    } else {
        (low, high)
    };
    cpu.write(at, half, new_low)?;
    cpu.write(upper, half, new_high)?;
    let flags = cpu.rflags();
    if equal {
        cpu.set_rflags(flags | ZF);
    } else {
        rax.set(cpu, low);
        rdx.set(cpu, high);
        cpu.set_rflags(flags & !ZF);
    }
    Ok(())
}

type BitChange = fn(u64, u64) -> u64;

fn bit<C: Cpu>(cpu: &mut C, i: &Instruction, change: Option<BitChange>) -> Result<(), Abort> {
    let kind = if change.is_some() { Write } else { Read };
    let offset = place(cpu, i, 1, Read, 0)?;
    let offset_size = offset.size();
    let index = offset.load(cpu, Read)?;
    // A register offset reaches memory beyond the operand; an immediate one wraps inside it.
    let displace = match offset_size {
        Some(size) if i.op0_kind() == OpKind::Memory => {
            let bits = u32::from(size) * 8;
            ((sign_extend(index, size) as i64 >> bits.trailing_zeros()) as u64).wrapping_mul(size.into())
        }
        _ => 0,
    };
    let to = place(cpu, i, 0, kind, displace)?;
    let size = operand_size(to, None)?;
    let m = 1u64 << (index & (u64::from(size) * 8 - 1));
    let value = to.load(cpu, kind)?;
    if let Some(change) = change {
        to.store(cpu, change(value, m))?;
    }
    let flags = cpu.rflags() & !CF;
    cpu.set_rflags(flags | if value & m != 0 { CF } else { 0 });
    Ok(())
}

fn bit_scan<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let to = place(cpu, i, 0, Write, 0)?;
    let size = operand_size(to, None)?;
    let bits = u64::from(size) * 8;
    let v = source(cpu, i, 1)? & mask(size);
    let lead = u64::from(v.leading_zeros()).wrapping_sub(64 - bits);
    let trail = u64::from(v.trailing_zeros()).min(bits);
    let old = cpu.rflags();
    let zero = |f: u64, set: bool| if set { f } else { 0 };
    let (r, flags) = match i.mnemonic() {
        // A zero source leaves the destination; a 32-bit one still keeps its value.
        Mnemonic::Bsf | Mnemonic::Bsr if v == 0 => {
            set_status(cpu, (old & STATUS & !ZF) | ZF);
            return Ok(());
        }
        Mnemonic::Bsf => (trail, old & STATUS & !ZF),
        Mnemonic::Bsr => (bits - 1 - lead, old & STATUS & !ZF),
        Mnemonic::Tzcnt => (
            trail,
            (old & STATUS & !(ZF | CF)) | zero(CF, v == 0) | zero(ZF, trail == 0),
        ),
        Mnemonic::Lzcnt => (
            lead,
            (old & STATUS & !(ZF | CF)) | zero(CF, v == 0) | zero(ZF, lead == 0),
        ),
        _ => (v.count_ones().into(), zero(ZF, v == 0)),
    };
    to.store(cpu, r)?;
    set_status(cpu, flags);
    Ok(())
}

fn imul<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let to = place(cpu, i, 0, Write, 0)?;
    let size = operand_size(to, None)?;
    let (a, b) = if i.op_count() == 3 {
        (source(cpu, i, 1)?, source(cpu, i, 2)?)
    } else {
        (to.load(cpu, Read)?, source(cpu, i, 1)?)
    };
    let (low, _, flags) = alu::imul(a, b, cpu.rflags(), size);
    to.store(cpu, low)?;
    set_status(cpu, flags);
    Ok(())
}

/// AX, or the pair rDX:rAX.
fn store_pair<C: Cpu>(cpu: &mut C, size: u8, low: u64, high: u64) {
    if size == 1 {
        accumulator(2).set(cpu, high << 8 | low);
    } else {
        accumulator(size).set(cpu, low);
        RegPart {
            gpr: Gpr::Rdx,
            size,
            high: false,
        }
        .set(cpu, high);
    }
}

fn multiply<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let from = place(cpu, i, 0, Read, 0)?;
    let size = operand_size(from, None)?;
    let b = from.load(cpu, Read)?;
    let a = accumulator(size).get(cpu);
    let f = if i.mnemonic() == Mnemonic::Mul {
        alu::mul
    } else {
        alu::imul
    };
    let (low, high, flags) = f(a, b, cpu.rflags(), size);
    store_pair(cpu, size, low, high);
    set_status(cpu, flags);
    Ok(())
}

fn divide<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let from = place(cpu, i, 0, Read, 0)?;
    let size = operand_size(from, None)?;
    let by = from.load(cpu, Read)?;
    let (low, high) = if size == 1 {
        let ax = accumulator(2).get(cpu);
        (ax & 0xff, ax >> 8)
    } else {
        (
            accumulator(size).get(cpu),
            RegPart {
                gpr: Gpr::Rdx,
                size,
                high: false,
            }
            .get(cpu),
        )
    };
    let f = if i.mnemonic() == Mnemonic::Div {
        alu::div
    } else {
        alu::idiv
    };
    let (quotient, remainder) = f(low, high, by, size).ok_or(Abort::Fault(Exception::DE))?;
    store_pair(cpu, size, quotient, remainder);
    Ok(())
}

/// RSP, ESP or SP, by mode and the stack segment's B flag.
fn stack_pointer<C: Cpu>(cpu: &mut C) -> RegPart {
    let size = match cpu.mode().code {
        CodeSize::Bits64 => 8,
        CodeSize::Bits32 | CodeSize::Bits16 => {
            if cpu.segment(SegReg::Ss).rights.db() {
                4
            } else {
                2
            }
        }
    };
    RegPart {
        gpr: Gpr::Rsp,
        size,
        high: false,
    }
}

/// Sets only the stack pointer's own bits, so that ESP keeps nothing of RSP's upper half and SP keeps the rest of ESP.
fn push_value<C: Cpu>(cpu: &mut C, value: u64, size: u8) -> Result<(), Abort> {
    let sp = stack_pointer(cpu);
    let new = sp.get(cpu).wrapping_sub(size.into()) & mask(sp.size);
    let at = linear(cpu, SegReg::Ss, new, size.into(), Write)?;
    cpu.write(at, size, value & mask(size))?;
    sp.set(cpu, new);
    Ok(())
}

/// The value at the top of the stack; the stack pointer is not moved yet.
fn peek<C: Cpu>(cpu: &mut C, size: u8) -> Result<(u64, RegPart, u64), Abort> {
    let sp = stack_pointer(cpu);
    let top = sp.get(cpu);
    let at = linear(cpu, SegReg::Ss, top, size.into(), Read)?;
    let value = cpu.read(at, size, Read)?;
    Ok((value, sp, top.wrapping_add(size.into()) & mask(sp.size)))
}

/// Operand size of a stack instruction, in bytes.
fn stack_size(i: &Instruction) -> Result<u8, Abort> {
    use iced_x86::Code as K;
    Ok(match i.code() {
        K::Push_r16 | K::Push_rm16 | K::Pushw_imm8 | K::Push_imm16 | K::Pop_r16 | K::Pop_rm16 => 2,
        K::Push_r32 | K::Push_rm32 | K::Pushd_imm8 | K::Pushd_imm32 | K::Pop_r32 | K::Pop_rm32 => 4,
        K::Push_r64 | K::Push_rm64 | K::Pushq_imm8 | K::Pushq_imm32 | K::Pop_r64 | K::Pop_rm64 => 8,
        K::Call_rel16 | K::Call_rm16 | K::Retnw | K::Retnw_imm16 | K::Leavew => 2,
        K::Call_rel32_32 | K::Call_rm32 | K::Retnd | K::Retnd_imm16 | K::Leaved => 4,
        K::Call_rel32_64 | K::Call_rm64 | K::Retnq | K::Retnq_imm16 | K::Leaveq => 8,
        _ => return Err(Abort::Unsupported),
    })
}

fn push<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let size = stack_size(i)?;
    let from = place(cpu, i, 0, Read, 0)?;
    if matches!(from, Place::Mem { .. }) {
        // Reading a device has effects: find out first whether the push can succeed.
        let sp = stack_pointer(cpu);
        let new = sp.get(cpu).wrapping_sub(size.into()) & mask(sp.size);
        let at = linear(cpu, SegReg::Ss, new, size.into(), Write)?;
        cpu.probe(at, size, Write)?;
    }
    let value = from.load(cpu, Read)?;
    push_value(cpu, value, size)
}

fn pop<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let size = stack_size(i)?;
    let (value, sp, new) = peek(cpu, size)?;
    let old = cpu.gpr(Gpr::Rsp);
    // An address through rSP uses its value after the pop; POP rSP keeps what was popped.
    sp.set(cpu, new);
    let stored = match place(cpu, i, 0, Write, 0) {
        Ok(Place::Seg(_)) => Err(Abort::Unsupported),
        Ok(to) => to.store(cpu, value),
        Err(e) => Err(e),
    };
    if stored.is_err() {
        cpu.set_gpr(Gpr::Rsp, old);
    }
    stored
}

/// The target of a near branch, checked.
fn branch_target<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<u64, Abort> {
    let (target, size) = match i.op0_kind() {
        OpKind::NearBranch16 => (i.near_branch64(), 2),
        OpKind::NearBranch32 => (i.near_branch64(), 4),
        OpKind::NearBranch64 => (i.near_branch64(), 8),
        OpKind::Memory | OpKind::Register => {
            let from = place(cpu, i, 0, Read, 0)?;
            (from.load(cpu, Read)?, from.size().unwrap_or(8))
        }
        // Far branches load CS.
        _ => return Err(Abort::Unsupported),
    };
    check_target(cpu, target & mask(size))
}

fn check_target<C: Cpu>(cpu: &mut C, target: u64) -> Result<u64, Abort> {
    let ok = match cpu.mode().code {
        CodeSize::Bits64 => canonical(target),
        CodeSize::Bits32 | CodeSize::Bits16 => target <= cpu.segment(SegReg::Cs).limit.into(),
    };
    if ok {
        Ok(target)
    } else {
        Err(Abort::Fault(Exception::GP0))
    }
}

fn call<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<Step, Abort> {
    let target = branch_target(cpu, i)?;
    push_value(cpu, i.next_ip(), stack_size(i)?)?;
    go(cpu, target);
    Ok(Step::Done)
}

fn jump<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<Step, Abort> {
    let target = branch_target(cpu, i)?;
    go(cpu, target);
    Ok(Step::Done)
}

fn ret<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<Step, Abort> {
    let extra = if i.op_count() == 0 { 0 } else { i.immediate(0) };
    let size = stack_size(i)?;
    let (target, sp, new) = peek(cpu, size)?;
    let target = check_target(cpu, target)?;
    sp.set(cpu, new.wrapping_add(extra) & mask(sp.size));
    go(cpu, target);
    Ok(Step::Done)
}

fn leave<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let size = stack_size(i)?;
    let sp = stack_pointer(cpu);
    let frame = RegPart {
        gpr: Gpr::Rbp,
        size: sp.size,
        high: false,
    }
    .get(cpu);
    let at = linear(cpu, SegReg::Ss, frame, size.into(), Read)?;
    let value = cpu.read(at, size, Read)?;
    sp.set(cpu, frame.wrapping_add(size.into()) & mask(sp.size));
    RegPart {
        gpr: Gpr::Rbp,
        size,
        high: false,
    }
    .set(cpu, value);
    Ok(())
}

fn xlat<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<(), Abort> {
    let size = match i.memory_base() {
        Register::BX => 2,
        Register::EBX => 4,
        _ => 8,
    };
    let base = RegPart {
        gpr: Gpr::Rbx,
        size,
        high: false,
    }
    .get(cpu);
    let offset = base.wrapping_add(accumulator(1).get(cpu)) & mask(size);
    let seg = super::operand::seg_reg(i.memory_segment()).unwrap_or(SegReg::Ds);
    let at = linear(cpu, seg, offset, 1, Read)?;
    let value = cpu.read(at, 1, Read)?;
    accumulator(1).set(cpu, value);
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, one restartable iteration after the other.

use super::Abort;
use super::alu::{self, STATUS, mask};
use super::cpu::Cpu;
use super::execute::{Step, advance};
use super::operand::{RegPart, accumulator, linear, seg_reg};
use super::walk::AccessKind::{Read, Write};
use crate::vcpu::rflags::{DF, ZF};
use crate::vcpu::{Gpr, SegReg};
use iced_x86::{Code, Instruction, OpKind};
use umbra_mmu_abi::Gva;

/// Iterations after which a repeated instruction lets interrupts in.
const BURST: u32 = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

fn classify(i: &Instruction) -> Option<(Op, u8)> {
    Some(match i.code() {
        Code::Movsb_m8_m8 => (Op::Movs, 1),
        Code::Movsw_m16_m16 => (Op::Movs, 2),
        Code::Movsd_m32_m32 => (Op::Movs, 4),
        Code::Movsq_m64_m64 => (Op::Movs, 8),
        Code::Stosb_m8_AL => (Op::Stos, 1),
        Code::Stosw_m16_AX => (Op::Stos, 2),
        Code::Stosd_m32_EAX => (Op::Stos, 4),
        Code::Stosq_m64_RAX => (Op::Stos, 8),
        Code::Lodsb_AL_m8 => (Op::Lods, 1),
        Code::Lodsw_AX_m16 => (Op::Lods, 2),
        Code::Lodsd_EAX_m32 => (Op::Lods, 4),
        Code::Lodsq_RAX_m64 => (Op::Lods, 8),
        Code::Cmpsb_m8_m8 => (Op::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Op::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Op::Cmps, 4),
        Code::Cmpsq_m64_m64 => (Op::Cmps, 8),
        Code::Scasb_AL_m8 => (Op::Scas, 1),
        Code::Scasw_AX_m16 => (Op::Scas, 2),
        Code::Scasd_EAX_m32 => (Op::Scas, 4),
        Code::Scasq_RAX_m64 => (Op::Scas, 8),
        Code::Insb_m8_DX => (Op::Ins, 1),
        Code::Insw_m16_DX => (Op::Ins, 2),
        Code::Insd_m32_DX => (Op::Ins, 4),
        Code::Outsb_DX_m8 => (Op::Outs, 1),
        Code::Outsw_DX_m16 => (Op::Outs, 2),
        Code::Outsd_DX_m32 => (Op::Outs, 4),
        _ => return None,
    })
}

/// Is it one of the instructions of this file?
pub fn is_string(i: &Instruction) -> bool {
    matches!(
        i.op0_kind(),
        OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
    ) || matches!(
        i.op1_kind(),
        OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
    )
}

fn address_bytes(i: &Instruction) -> u8 {
    let of = |k| match k {
        OpKind::MemoryESDI | OpKind::MemorySegSI => Some(2),
        OpKind::MemoryESEDI | OpKind::MemorySegESI => Some(4),
        OpKind::MemoryESRDI | OpKind::MemorySegRSI => Some(8),
        _ => None,
    };
    of(i.op0_kind()).or_else(|| of(i.op1_kind())).unwrap_or(8)
}

/// Executes up to `BURST` iterations.
pub fn execute<C: Cpu>(cpu: &mut C, i: &Instruction) -> Result<Step, Abort> {
    let (op, size) = classify(i).ok_or(Abort::Unsupported)?;
    let address = address_bytes(i);
    let repeated = i.has_rep_prefix() || i.has_repne_prefix();
    if !repeated {
        iterate(cpu, i, op, size, address)?;
        advance(cpu, i);
        return Ok(Step::Done);
    }
    let counter = RegPart {
        gpr: Gpr::Rcx,
        size: address,
        high: false,
    };
    for _ in 0..BURST {
        let left = counter.get(cpu);
        if left == 0 {
            advance(cpu, i);
            return Ok(Step::Done);
        }
        iterate(cpu, i, op, size, address)?;
        counter.set(cpu, left - 1);
        let ended = match op {
            Op::Cmps | Op::Scas => (cpu.rflags() & ZF != 0) != i.has_repe_prefix(),
            Op::Movs | Op::Stos | Op::Lods | Op::Ins | Op::Outs => false,
        };
        if ended || left == 1 {
            advance(cpu, i);
            return Ok(Step::Done);
        }
    }
    Ok(Step::Again)
}

fn iterate<C: Cpu>(cpu: &mut C, i: &Instruction, op: Op, size: u8, address: u8) -> Result<(), Abort> {
    let pointer = |gpr| RegPart {
        gpr,
        size: address,
        high: false,
    };
    let (si, di) = (pointer(Gpr::Rsi), pointer(Gpr::Rdi));
    let acc = accumulator(size);
    let source = |cpu: &mut C| -> Result<Gva, Abort> {
        let seg = seg_reg(i.memory_segment()).unwrap_or(SegReg::Ds);
        let offset = si.get(cpu);
        linear(cpu, seg, offset, size.into(), Read)
    };
    let target = |cpu: &mut C, kind| -> Result<Gva, Abort> {
        let offset = di.get(cpu);
        linear(cpu, SegReg::Es, offset, size.into(), kind)
    };
    match op {
        Op::Movs => {
            let (from, to) = (source(cpu)?, target(cpu, Write)?);
            cpu.probe(from, size, Read)?;
            cpu.probe(to, size, Write)?;
            let value = cpu.read(from, size, Read)?;
            cpu.write(to, size, value)?;
        }
        Op::Stos => {
            let to = target(cpu, Write)?;
            let value = acc.get(cpu);
            cpu.write(to, size, value)?;
        }
        Op::Lods => {
            let from = source(cpu)?;
            let value = cpu.read(from, size, Read)?;
            acc.set(cpu, value);
        }
        Op::Cmps => {
            let (from, to) = (source(cpu)?, target(cpu, Read)?);
            cpu.probe(from, size, Read)?;
            cpu.probe(to, size, Read)?;
            let (a, b) = (cpu.read(from, size, Read)?, cpu.read(to, size, Read)?);
            compare(cpu, a, b, size);
        }
        Op::Scas => {
            let to = target(cpu, Read)?;
            let b = cpu.read(to, size, Read)?;
            let a = acc.get(cpu);
            compare(cpu, a, b, size);
        }
        Op::Ins => {
            let to = target(cpu, Write)?;
            cpu.probe(to, size, Write)?;
            let port = cpu.gpr(Gpr::Rdx) as u16;
            let value = cpu.input(port, size);
            cpu.write(to, size, value.into())?;
        }
        Op::Outs => {
            let from = source(cpu)?;
            let value = cpu.read(from, size, Read)?;
            let port = cpu.gpr(Gpr::Rdx) as u16;
            cpu.output(port, size, value as u32);
        }
    }
    let back = cpu.rflags() & DF != 0;
    let step = |cpu: &mut C, r: RegPart| {
        let old = r.get(cpu);
        let new = if back {
            old.wrapping_sub(size.into())
        } else {
            old.wrapping_add(size.into())
        };
        r.set(cpu, new & mask(address));
    };
    match op {
        Op::Movs | Op::Cmps => {
            step(cpu, si);
            step(cpu, di);
        }
        Op::Lods | Op::Outs => step(cpu, si),
        Op::Stos | Op::Scas | Op::Ins => step(cpu, di),
    }
    Ok(())
}

fn compare<C: Cpu>(cpu: &mut C, a: u64, b: u64, size: u8) {
    let flags = alu::sub(a, b, 0, size).1;
    let old = cpu.rflags();
    cpu.set_rflags((old & !STATUS) | flags);
}

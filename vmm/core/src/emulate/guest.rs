// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulator on a real guest: a stopped virtual CPU, its RAM, its page tables, its devices.

use super::cpu::{Cpu, Mode};
use super::decode::{DecodeCache, Undecodable};
use super::execute::{Step, execute};
use super::operand::canonical;
use super::walk::{AccessKind, Paging, PagingMode, Privilege, Walk, record, walk};
use super::{Abort, Code, CodeSize, MAX_INSTRUCTION, Unsupported, UnsupportedCause};
use crate::devices::Devices;
use crate::guest_mem::GuestMemory;
use crate::inject::Exception;
use crate::time::Ticks;
use crate::vcpu::{Field, Gpr, SegReg, Segment, Vcpu, cr0, rflags, segment_fields};
use umbra_mmu_abi::{Gpa, Gva, PAGE_SIZE};

/// What the exit already said about the memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The linear address that hardware translated.
    pub linear: Gva,
    /// Its translation.
    pub gpa: Gpa,
    /// The guest's tables allowed writing (else reading is known only).
    pub write: bool,
}

/// Everything that an instruction of this guest can touch.
pub struct Guest<'a, V, M, D> {
    /// The stopped processor.
    pub vcpu: &'a mut V,
    /// Guest RAM.
    pub mem: &'a mut M,
    /// Devices.
    pub devices: &'a mut D,
    /// Guest time of the exit.
    pub now: Ticks,
    /// Translation registers.
    pub paging: Paging,
    /// Flags at the exit.
    pub rflags: u64,
    /// CS rights: where the backend has them for nothing, no other read is needed for 64-bit code.
    pub hint: Option<Hint>,
    mode: Mode,
    segments: [Option<Segment>; 6],
    /// The last translation: page, frame, may write.
    last: Option<(u64, u64, bool)>,
}

fn page(raw: u64) -> u64 {
    raw & !(PAGE_SIZE - 1)
}

impl<'a, V: Vcpu, M: GuestMemory, D: Devices> Guest<'a, V, M, D> {
    /// The guest at its last exit. Reads the code segment's rights from the processor, nothing else.
    pub fn new(
        vcpu: &'a mut V,
        mem: &'a mut M,
        devices: &'a mut D,
        now: Ticks,
        paging: Paging,
        flags: u64,
        hint: Option<Hint>,
    ) -> Self {
        let rights = crate::vcpu::AccessRights(vcpu.read(Field::GuestCsAccessRights) as u32);
        let protected = paging.cr0 & cr0::PE != 0;
        let v86 = protected && flags & rflags::VM != 0;
        let code = if paging.mode() == PagingMode::Level4 && rights.long() {
            CodeSize::Bits64
        } else if rights.db() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        // CPL is SS.DPL; CS.DPL is the same except for conforming code.
        let cpl = if !protected {
            0
        } else if v86 {
            3
        } else if rights.conforming() {
            crate::vcpu::AccessRights(vcpu.read(Field::GuestSsAccessRights) as u32).dpl()
        } else {
            rights.dpl()
        };
        let last = hint.map(|h| (page(h.linear.raw()), page(h.gpa.raw()), h.write));
        let mode = Mode {
            code,
            protected,
            v86,
            cpl,
        };
        Self {
            vcpu,
            mem,
            devices,
            now,
            paging,
            rflags: flags,
            hint,
            mode,
            segments: [None; 6],
            last,
        }
    }

    fn privilege(&self) -> Privilege {
        if self.mode.cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor {
                ac: self.rflags & rflags::AC != 0,
            }
        }
    }

    fn translate(&mut self, at: u64, kind: AccessKind) -> Result<Gpa, Abort> {
        if let Some((from, to, write)) = self.last
            && from == page(at)
            && (write || kind == AccessKind::Read)
        {
            return Ok(Gpa::new(to | (at & (PAGE_SIZE - 1))));
        }
        let who = self.privilege();
        let gpa = walk(self.mem, &self.paging, Gva::new(at), kind, who).map_err(Abort::Fault)?;
        if kind != AccessKind::Fetch {
            self.last = Some((page(at), page(gpa.raw()), kind == AccessKind::Write));
        }
        Ok(gpa)
    }

    /// The instruction bytes at the processor's RIP, 15 or as many as the page has, and their linear address.
    fn fetch(&mut self, walks: &mut FetchWalks) -> Result<(Code, u64), Abort> {
        let rip = self.vcpu.rip();
        let linear = match self.mode.code {
            CodeSize::Bits64 => rip,
            CodeSize::Bits32 | CodeSize::Bits16 => self.segment_base(SegReg::Cs).wrapping_add(rip) & 0xffff_ffff,
        };
        if !canonical(linear) {
            return Err(Abort::Fault(Exception::GP0));
        }
        let gpa = self.fetch_address(walks, linear)?;
        let mut code = Code::EMPTY;
        if gpa.offset() <= PAGE_SIZE - 16 {
            // Two words, which is less work than 15 bytes.
            let (low, high) = code.bytes.split_at_mut(8);
            let high_gpa = Gpa::new(gpa.raw() + 8);
            if self
                .mem
                .read(gpa, low)
                .and_then(|()| self.mem.read(high_gpa, high))
                .is_err()
            {
                return Err(Abort::FetchOutsideRam(gpa));
            }
            code.len = MAX_INSTRUCTION as u8;
        } else {
            self.append(&mut code, gpa)?;
        }
        Ok((code, linear))
    }

    #[inline]
    fn fetch_address(&mut self, walks: &mut FetchWalks, linear: u64) -> Result<Gpa, Abort> {
        let who = match self.privilege() {
            Privilege::User => Privilege::User,
            Privilege::Supervisor { .. } => Privilege::Supervisor { ac: false },
        };
        let gva = Gva::new(linear);
        let slot = (linear / PAGE_SIZE) as usize % walks.len();
        if let Some(known) = &walks[slot]
            && let Some(gpa) = known.again(self.mem, &self.paging, gva, AccessKind::Fetch, who)
        {
            return Ok(gpa);
        }
        let walk = record(self.mem, &self.paging, gva, AccessKind::Fetch, who).map_err(Abort::Fault)?;
        walks[slot] = Some(walk);
        Ok(walk.translate(gva))
    }

    /// Appends the bytes from `gpa` to the end of its page, up to 15 in all.
    fn append(&mut self, code: &mut Code, gpa: Gpa) -> Result<(), Abort> {
        let start = code.len as usize;
        let room = (PAGE_SIZE - gpa.offset()) as usize;
        let end = MAX_INSTRUCTION.min(start + room);
        self.mem
            .read(gpa, &mut code.bytes[start..end])
            .map_err(|_| Abort::FetchOutsideRam(gpa))?;
        code.len = end as u8;
        Ok(())
    }

    fn phys_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        let mut raw = [0; 8];
        match self.mem.read(gpa, &mut raw[..size as usize]) {
            Ok(()) => u64::from_le_bytes(raw),
            Err(_) => {
                let mut value = 0;
                for (offset, part) in aligned_parts(gpa, size) {
                    let v = self
                        .devices
                        .mmio_read(self.now, Gpa::new(gpa.raw() + u64::from(offset)), part);
                    value |= (v & super::alu::mask(part)) << (8 * offset);
                }
                value
            }
        }
    }

    fn phys_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        if !self.mem.readonly(gpa) && self.mem.write(gpa, &value.to_le_bytes()[..size as usize]).is_ok() {
            return;
        }
        for (offset, part) in aligned_parts(gpa, size) {
            let v = value >> (8 * offset) & super::alu::mask(part);
            self.devices
                .mmio_write(self.now, Gpa::new(gpa.raw() + u64::from(offset)), part, v);
        }
    }
}

/// Splits `size` bytes at `gpa` into accesses of 1, 2, 4 or 8 bytes, as (offset, size). What comes as one of these sizes
/// stays whole even if it is not aligned, as on a bus.
fn aligned_parts(gpa: Gpa, size: u8) -> impl Iterator<Item = (u32, u8)> {
    let mut done = 0u8;
    core::iter::from_fn(move || {
        if done == size {
            return None;
        }
        let part = if matches!(size, 1 | 2 | 4 | 8) {
            size
        } else {
            let align = 1u8 << (gpa.raw() + u64::from(done)).trailing_zeros().min(2);
            let left = size - done;
            align.min(1 << left.ilog2())
        };
        let at = done;
        done += part;
        Some((at.into(), part))
    })
}

/// Bytes of `size` at `at` that lie on its first page.
fn on_first_page(at: Gva, size: u8) -> u8 {
    (PAGE_SIZE - (at.raw() & (PAGE_SIZE - 1))).min(size.into()) as u8
}

impl<V: Vcpu, M: GuestMemory, D: Devices> Cpu for Guest<'_, V, M, D> {
    fn mode(&self) -> Mode {
        self.mode
    }
    fn gpr(&mut self, r: Gpr) -> u64 {
        self.vcpu.gpr(r)
    }
    fn set_gpr(&mut self, r: Gpr, value: u64) {
        self.vcpu.set_gpr(r, value);
    }
    fn rip(&self) -> u64 {
        self.vcpu.rip()
    }
    fn set_rip(&mut self, rip: u64) {
        self.vcpu.set_rip(rip);
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, flags: u64) {
        self.rflags = flags;
    }
    fn segment(&mut self, seg: SegReg) -> Segment {
        let slot = seg as usize;
        match self.segments.get(slot) {
            Some(Some(s)) => *s,
            _ => {
                let s = self.vcpu.segment(seg);
                if let Some(cached) = self.segments.get_mut(slot) {
                    *cached = Some(s);
                }
                s
            }
        }
    }
    fn segment_base(&mut self, seg: SegReg) -> u64 {
        match self.segments.get(seg as usize) {
            Some(Some(s)) => s.base,
            _ => self.vcpu.read(segment_fields(seg)[1]),
        }
    }
    fn known_operand(&self) -> Option<Gva> {
        self.hint.map(|h| h.linear)
    }

    fn probe(&mut self, at: Gva, size: u8, kind: AccessKind) -> Result<(), Abort> {
        self.translate(at.raw(), kind)?;
        let first = on_first_page(at, size);
        if first < size {
            self.translate(self.wrapped(at, first), kind)?;
        }
        Ok(())
    }

    fn read(&mut self, at: Gva, size: u8, kind: AccessKind) -> Result<u64, Abort> {
        let first = on_first_page(at, size);
        if first == size {
            let gpa = self.translate(at.raw(), kind)?;
            return Ok(self.phys_read(gpa, size));
        }
        let second = self.wrapped(at, first);
        let (low, high) = (self.translate(at.raw(), kind)?, self.translate(second, kind)?);
        Ok(self.phys_read(low, first) | self.phys_read(high, size - first) << (8 * u32::from(first)))
    }

    fn write(&mut self, at: Gva, size: u8, value: u64) -> Result<(), Abort> {
        let first = on_first_page(at, size);
        if first == size {
            let gpa = self.translate(at.raw(), AccessKind::Write)?;
            self.phys_write(gpa, size, value);
            return Ok(());
        }
        let second = self.wrapped(at, first);
        let low = self.translate(at.raw(), AccessKind::Write)?;
        let high = self.translate(second, AccessKind::Write)?;
        self.phys_write(low, first, value);
        self.phys_write(high, size - first, value >> (8 * u32::from(first)));
        Ok(())
    }

    fn input(&mut self, port: u16, size: u8) -> u32 {
        self.devices.pio_read(self.now, port, size)
    }
    fn output(&mut self, port: u16, size: u8, value: u32) {
        self.devices.pio_write(self.now, port, size, value);
    }
}

impl<V: Vcpu, M: GuestMemory, D: Devices> Guest<'_, V, M, D> {
    /// `at + bytes`; linear addresses wrap at 32 bits outside 64-bit code.
    fn wrapped(&self, at: Gva, bytes: u8) -> u64 {
        let next = at.raw().wrapping_add(bytes.into());
        if self.mode.code == CodeSize::Bits64 {
            next
        } else {
            next & 0xffff_ffff
        }
    }
}

/// The last walks for instruction fetches, by page number.
type FetchWalks = [Option<Walk>; 8];

/// The emulator's memory between instructions.
#[derive(Default)]
pub struct Emulator {
    walks: FetchWalks,
    /// Decoded instructions.
    pub cache: DecodeCache,
    /// Instructions emulated to their end (or to the end of a burst).
    pub emulated: u64,
}

/// What became of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// It is done (or a burst of its iterations): enter the guest again.
    Stepped(Step),
    /// The guest gets this exception.
    Fault(Exception),
    /// The guest must stop.
    Unsupported(Unsupported),
}

impl Emulator {
    /// Emulates the instruction at the guest's RIP.
    pub fn run<V: Vcpu, M: GuestMemory, D: Devices>(&mut self, guest: &mut Guest<'_, V, M, D>) -> Emulated {
        let (rip, size, flags) = (guest.vcpu.rip(), guest.mode.code, guest.rflags);
        let mut code = Code::EMPTY;
        let result = self.step(guest, &mut code);
        // EPT violations save RF = 1. A stale RF would only mask an instruction breakpoint, and this guest has none: not
        // worth a system call on its own.
        if (guest.rflags ^ flags) & !rflags::RF != 0 {
            guest.vcpu.write(Field::GuestRflags, guest.rflags);
        }
        let unsupported = |cause| Emulated::Unsupported(Unsupported { cause, rip, code, size });
        match result {
            Ok(step) => {
                self.emulated += 1;
                Emulated::Stepped(step)
            }
            Err(Abort::Fault(e)) => Emulated::Fault(e),
            Err(Abort::Unsupported) => unsupported(UnsupportedCause::Instruction),
            Err(Abort::FetchOutsideRam(gpa)) => unsupported(UnsupportedCause::FetchOutsideRam(gpa)),
        }
    }

    fn step<V: Vcpu, M: GuestMemory, D: Devices>(
        &mut self,
        guest: &mut Guest<'_, V, M, D>,
        code: &mut Code,
    ) -> Result<Step, Abort> {
        let (fetched, linear) = guest.fetch(&mut self.walks)?;
        *code = fetched;
        let (rip, size) = (guest.vcpu.rip(), guest.mode.code);
        match self.cache.get(code, rip, size) {
            Ok(i) => execute(guest, i),
            Err(Undecodable::Truncated) if (code.len as usize) < MAX_INSTRUCTION => {
                // It goes on on the next page.
                let next = linear.wrapping_add(code.len.into());
                let next = if size == CodeSize::Bits64 {
                    next
                } else {
                    next & 0xffff_ffff
                };
                let gpa = guest.fetch_address(&mut self.walks, next)?;
                guest.append(code, gpa)?;
                match self.cache.get(code, rip, size) {
                    Ok(i) => execute(guest, i),
                    Err(Undecodable::Truncated | Undecodable::Invalid) => Err(Abort::Fault(Exception::UD)),
                }
            }
            // Fifteen bytes that are still no whole instruction: longer than any (#GP).
            Err(Undecodable::Truncated) => Err(Abort::Fault(Exception::GP0)),
            Err(Undecodable::Invalid) => Err(Abort::Fault(Exception::UD)),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does one processor do with an access? TLB, walk, flags, and the faults on the way.

use super::memory::SimMemory;
use super::paging::{Access, CR0_PG, CR4_PAE, CR4_PGE, CR4_SMEP, Model, Paging, PagingMode, Registers, StaleDenial};
use super::tlb::{Cached, Forgetful, Tlb};
use super::walk::{Memory, Translation, WalkError, load_pdptes, walk};
use crate::fault::ErrorCode;
use crate::stage2::{Frame, GpteSize};
use umbra_mmu_abi as abi;

/// A page of what the tables' addresses mean in the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// The host address of its first byte: the numbers of a large frame's pages are in a row, but need not be aligned.
    pub host: u64,
    /// log2 of its bytes.
    pub shift: u32,
    /// Writes are allowed.
    pub writable: bool,
}

/// What is below the tables that a processor walks: an EPT, or host memory itself.
pub trait Physical: Memory {
    /// How many flushes of all processors there have been.
    fn flushes(&self) -> u64;

    /// The host's page at a physical address, for an access of `kind`.
    ///
    /// # Errors
    /// There is none, or it does not allow that.
    fn host(&mut self, address: u64, kind: abi::Access) -> Result<HostPage, Self::Refused>;

    /// Looks whether `used`, out of the processor's caches, is still what the tables say, and panics if it is not and
    /// should be. A guest's own tables may say something else until the guest flushes.
    fn verify(&self, paging: &Paging, gva: u64, used: &Translation);

    /// The memory itself.
    fn memory(&self) -> &SimMemory;
}

/// Why an access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit<R> {
    /// A page fault of the tables that the processor walks.
    PageFault {
        /// The linear address.
        cr2: u64,
        /// Why.
        code: ErrorCode,
    },
    /// What is below refused: the walk, or the access itself.
    Refused(R),
    /// #GP: an address that is not canonical, or a value that a register cannot have.
    GeneralProtection,
}

/// What is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read (also what a fetch gets).
    Load(GpteSize),
    /// A write of the low `bytes` bytes of `value`: 1, 2, 4 or 8 of them, in one word of 8.
    Store {
        /// How many.
        bytes: u8,
        /// What.
        value: u64,
    },
}

/// A processor.
#[derive(Debug)]
pub struct Cpu {
    registers: Registers,
    model: Model,
    paging: Paging,
    tlb: Tlb,
    flushes: u64,
}

impl Cpu {
    /// With paging off and nothing in its caches.
    pub fn new(model: Model, forgetful: Option<Forgetful>) -> Self {
        let registers = Registers::default();
        Self {
            registers,
            model,
            paging: Paging::new(&registers, model),
            tlb: Tlb::new(forgetful),
            flushes: 0,
        }
    }

    /// The registers.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The caches.
    pub fn tlb(&self) -> &Tlb {
        &self.tlb
    }

    /// What the registers make of tables.
    pub fn paging(&self) -> &Paging {
        &self.paging
    }

    /// Puts values into the registers as a VM entry does, with a VPID: nothing is forgotten, whatever changes.
    pub fn enter(&mut self, registers: Registers) {
        self.registers = registers;
        self.paging = Paging::new(&registers, self.model);
    }

    /// MOV to CR3. With PAE paging it reads the PDPTE registers from memory, which may be refused.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn load_cr3<P: Physical>(&mut self, below: &mut P, cr3: u64) -> Result<(), Exit<P::Refused>> {
        let new = Registers { cr3, ..self.registers };
        let loads = new.mode() == PagingMode::Pae;
        self.change(below, new, loads)?;
        self.tlb.load_cr3();
        Ok(())
    }

    /// MOV to CR0, MOV to CR4 or WRMSR to EFER: to the values in `registers`, with what each invalidates (section
    /// 4.10.4.1) and with the load of the PDPTE registers where it is due (section 4.4.1). CR3 stays.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn write_control<P: Physical>(&mut self, below: &mut P, registers: Registers) -> Result<(), Exit<P::Refused>> {
        let old = self.registers;
        let new = Registers {
            cr3: old.cr3,
            pdptes: old.pdptes,
            ..registers
        };
        self.change(below, new, new.loads_pdptes(&old))?;
        let cr0 = old.cr0 & !new.cr0;
        let cr4 = old.cr4 ^ new.cr4;
        if cr0 & CR0_PG != 0 || cr4 & (CR4_PGE | CR4_PAE) != 0 || cr4 & new.cr4 & CR4_SMEP != 0 {
            self.tlb.flush();
        }
        Ok(())
    }

    fn change<P: Physical>(
        &mut self,
        below: &mut P,
        mut new: Registers,
        loads_pdptes: bool,
    ) -> Result<(), Exit<P::Refused>> {
        self.catch_up(below);
        if loads_pdptes {
            let paging = Paging::new(&new, self.model);
            let loaded = load_pdptes(below, &paging).map_err(Exit::Refused)?;
            new.pdptes = loaded.ok_or(Exit::GeneralProtection)?;
        }
        self.enter(new);
        Ok(())
    }

    /// INVLPG.
    pub fn invlpg(&mut self, gva: u64) {
        self.tlb.invlpg(self.truncate(gva));
    }

    /// INVVPID of one address, by whoever runs the guest.
    pub fn invvpid(&mut self, gva: u64) {
        self.tlb.invvpid(self.truncate(gva), self.paging.mode());
    }

    /// Forgets everything (INVVPID of all contexts, or a reset).
    pub fn flush(&mut self) {
        self.tlb.flush();
    }

    /// Modes of 32 bits have no more of an address.
    fn truncate(&self, gva: u64) -> u64 {
        match self.paging.mode() {
            PagingMode::None | PagingMode::TwoLevel | PagingMode::Pae => gva & 0xffff_ffff,
            PagingMode::FourLevel | PagingMode::FiveLevel => gva,
        }
    }

    /// Sees the flushes of all processors that others have asked for.
    fn catch_up(&mut self, below: &impl Physical) {
        let flushes = below.flushes();
        if flushes != self.flushes {
            self.flushes = flushes;
            self.tlb.flush();
        }
    }

    /// Does an access; a read answers with what it read. Accesses are aligned.
    ///
    /// # Errors
    /// It did not happen; the next attempt begins anew.
    pub fn access<P: Physical>(
        &mut self,
        below: &mut P,
        gva: u64,
        access: Access,
        operation: Operation,
    ) -> Result<u64, Exit<P::Refused>> {
        let gva = self.truncate(gva);
        let host = self.translate(below, gva, access)?;
        let memory = below.memory();
        let frame = frame_at(memory, host);
        let offset = (host & 4095) as u16;
        Ok(match operation {
            Operation::Load(size) => memory.load(frame, offset, size),
            Operation::Store { bytes, value } => {
                assert_eq!(access.kind, abi::Access::Write, "what stores is a write");
                memory.store_bytes(frame, offset, &value.to_le_bytes()[..bytes as usize]);
                value
            }
        })
    }

    /// The host address of `gva`, for an access that then happens: flags are set.
    ///
    /// # Errors
    /// There is none, or it is not allowed.
    pub fn translate<P: Physical>(&mut self, below: &mut P, gva: u64, access: Access) -> Result<u64, Exit<P::Refused>> {
        self.catch_up(below);
        let mode = self.paging.mode();
        if mode == PagingMode::None {
            let page = below.host(gva, access.kind).map_err(Exit::Refused)?;
            return Ok(page.host + (gva & ((1 << page.shift) - 1)));
        }
        if !canonical(gva, mode) {
            return Err(Exit::GeneralProtection);
        }
        if let Some(cached) = self.tlb.lookup(gva)
            && let Some(host) = self.hit(below, gva, access, &cached)?
        {
            return Ok(host);
        }
        let found = walk(below, &mut self.tlb, &self.paging, gva, access);
        let filled = match found {
            Ok(translation) => {
                below.verify(&self.paging, gva, &translation);
                below
                    .host(translation.address, access.kind)
                    .map(|page| (translation, page))
                    .map_err(Exit::Refused)
            }
            Err(WalkError::PageFault(code)) => Err(Exit::PageFault { cr2: gva, code }),
            Err(WalkError::Refused(refused)) => Err(Exit::Refused(refused)),
        };
        match filled {
            Ok((translation, page)) => Ok(self.fill(gva, &translation, &page)),
            Err(exit) => {
                self.tlb.faulted(gva, mode);
                Err(exit)
            }
        }
    }

    /// What the TLB makes of an access: the host address, or a fault, or (none) that the tables have to be walked.
    fn hit<P: Physical>(
        &mut self,
        below: &mut P,
        gva: u64,
        access: Access,
        cached: &Cached,
    ) -> Result<Option<u64>, Exit<P::Refused>> {
        if !self.paging.permits(cached.allowed, access) {
            self.tlb.faulted(gva, self.paging.mode());
            return match self.model.stale_denial {
                StaleDenial::Walks => Ok(None),
                StaleDenial::Faults => Err(Exit::PageFault {
                    cr2: gva,
                    code: ErrorCode::P | self.paging.access_code(access),
                }),
            };
        }
        let write = access.kind == abi::Access::Write;
        if write && !(cached.dirty && cached.writable_below) {
            return Ok(None);
        }
        let host = cached.host + (gva & ((1 << cached.shift) - 1));
        let used = Translation {
            address: host,
            shift: cached.page_shift,
            allowed: cached.allowed,
            dirty: cached.dirty,
            global: cached.global,
        };
        below.verify(&self.paging, gva, &used);
        Ok(Some(host))
    }

    fn fill(&mut self, gva: u64, translation: &Translation, page: &HostPage) -> u64 {
        let host = page.host + (translation.address & ((1 << page.shift) - 1));
        // The TLB has no parts of 4M.
        let shift = match translation.shift.min(page.shift) {
            22 => 21,
            shift => shift,
        };
        let cached = Cached {
            host: host - (gva & ((1 << shift) - 1)),
            shift,
            page_shift: translation.shift,
            allowed: translation.allowed,
            dirty: translation.dirty,
            writable_below: page.writable,
            global: translation.global,
        };
        self.tlb.insert(gva, cached);
        host
    }
}

fn canonical(gva: u64, mode: PagingMode) -> bool {
    let unused = 64 - mode.width();
    match mode {
        PagingMode::None | PagingMode::TwoLevel | PagingMode::Pae => true,
        PagingMode::FourLevel | PagingMode::FiveLevel => ((gva << unused) as i64 >> unused) as u64 == gva,
    }
}

/// The frame at a host address, which a guest was let through to.
fn frame_at(memory: &SimMemory, host: u64) -> Frame {
    use super::memory::HostFrame;
    match memory.at(host >> 12) {
        HostFrame::Ram(frame) => {
            assert!(
                !memory.is_withdrawn(frame),
                "the guest reaches {frame:?}, which the host has withdrawn"
            );
            frame
        }
        other @ (HostFrame::Table(_) | HostFrame::Nothing) => {
            panic!("the guest reaches {other:?} at host address {host:#x}")
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a guest-linear address translate to? The guest's page tables, as the processor walks them.

use crate::guest_mem::GuestMemory;
use crate::inject::Exception;
use crate::vcpu::{cr0, cr4, efer};
use umbra_mmu_abi::{Gpa, Gva, PAGE_SHIFT, PAGE_SIZE};

/// Guest paging mode (SDM vol. 3, section 4.1.1). Five-level paging is not offered to guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingMode {
    /// CR0.PG = 0.
    None,
    /// Two levels, 4-byte entries.
    Bits32,
    /// Three levels, 8-byte entries.
    Pae,
    /// Four levels.
    Level4,
}

/// The registers that decide how addresses translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Width of guest-physical addresses in bits (CPUID 0x8000_0008).
    pub phys_bits: u8,
}

impl Paging {
    /// The mode that these registers select.
    pub const fn mode(&self) -> PagingMode {
        if self.cr0 & cr0::PG == 0 {
            PagingMode::None
        } else if self.efer & efer::LMA != 0 {
            PagingMode::Level4
        } else if self.cr4 & cr4::PAE != 0 {
            PagingMode::Pae
        } else {
            PagingMode::Bits32
        }
    }

    const fn nxe(&self) -> bool {
        self.efer & efer::NXE != 0
    }
}

/// How an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, or a read that a write to the same place follows.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// By whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0-2; `ac`: EFLAGS.AC, which lifts SMAP for explicit accesses.
    Supervisor {
        /// EFLAGS.AC.
        ac: bool,
    },
}

/// Page-fault error code bits (SDM vol. 3, figure 4-12).
pub mod pfec {
    #![allow(missing_docs)]
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const NX: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    at: Gpa,
    entry: u64,
}

/// A translation together with the table entries that made it.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    paging: Paging,
    kind: AccessKind,
    who: Privilege,
    /// Linear page, and the frame it translates to.
    page: u64,
    frame: u64,
    /// From the root on, as they are after accessed and dirty flags were set.
    steps: [Step; 4],
    count: usize,
}

/// Translates `gva`. Sets accessed and dirty flags as the processor would; a failed walk sets none.
///
/// Entries outside RAM read as all ones, as an absent bus does.
pub fn walk<M: GuestMemory>(
    mem: &mut M,
    paging: &Paging,
    gva: Gva,
    kind: AccessKind,
    who: Privilege,
) -> Result<Gpa, Exception> {
    Ok(record(mem, paging, gva, kind, who)?.translate(gva))
}

/// As `walk`; the result can be asked later whether walking again would give the same.
pub fn record<M: GuestMemory>(
    mem: &mut M,
    paging: &Paging,
    gva: Gva,
    kind: AccessKind,
    who: Privilege,
) -> Result<Walk, Exception> {
    let raw = gva.raw();
    let mode = paging.mode();
    let mut walk = Walk {
        paging: *paging,
        kind,
        who,
        page: raw & !(PAGE_SIZE - 1),
        frame: raw & 0xffff_f000,
        steps: [Step {
            at: Gpa::new(0),
            entry: 0,
        }; 4],
        count: 0,
    };
    // levels, entry bytes, bits of index per level
    let (levels, entry_bytes, index_bits) = match mode {
        PagingMode::None => return Ok(walk),
        PagingMode::Bits32 => (2u32, 4u64, 10u32),
        PagingMode::Pae => (3, 8, 9),
        PagingMode::Level4 => (4, 8, 9),
    };
    let mut table = match mode {
        PagingMode::None | PagingMode::Bits32 => paging.cr3 & 0xffff_f000,
        PagingMode::Pae => paging.cr3 & 0xffff_ffe0,
        PagingMode::Level4 => paging.cr3 & phys_mask(paging) & !0xfff,
    };
    let mut allowed = WRITABLE | USER;
    let mut no_execute = false;
    let mut level = levels;
    walk.frame = loop {
        let shift = PAGE_SHIFT + (level - 1) * index_bits;
        let index = raw >> shift & ((1 << index_bits) - 1);
        let pdpte = mode == PagingMode::Pae && level == 3;
        // The PDPT of PAE paging has four entries.
        let index = if pdpte { index & 3 } else { index };
        let at = Gpa::new(table + index * entry_bytes);
        let entry = read_entry(mem, at, entry_bytes);
        if entry & PRESENT == 0 {
            return Err(fault(paging, gva, kind, who, 0));
        }
        let large = level > 1 && entry & PAGE_SIZE_BIT != 0 && can_be_large(paging, mode, level);
        if entry & reserved(paging, mode, level, large) != 0 {
            return Err(fault(paging, gva, kind, who, pfec::P | pfec::RSVD));
        }
        if !pdpte {
            allowed &= entry;
            no_execute |= entry_bytes == 8 && entry & NX != 0;
        }
        walk.steps[walk.count] = Step { at, entry };
        walk.count += 1;
        if level == 1 || large {
            let offset_mask = (1u64 << shift) - 1;
            break if large && mode == PagingMode::Bits32 {
                // PSE-36: bits 20:13 are address bits 39:32.
                (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32 | (walk.page & offset_mask)
            } else {
                (entry & phys_mask(paging) & !0xfff & !offset_mask) | (walk.page & offset_mask)
            };
        }
        table = entry & phys_mask(paging) & !0xfff;
        level -= 1;
    };
    if !permitted(paging, allowed, no_execute, kind, who) {
        return Err(fault(paging, gva, kind, who, pfec::P));
    }
    let last = walk.count - 1;
    for (n, step) in walk.steps[..=last].iter_mut().enumerate() {
        if mode == PagingMode::Pae && n == 0 {
            continue; // PDPTEs have no such flags
        }
        let dirty = if n == last && kind == AccessKind::Write {
            DIRTY
        } else {
            0
        };
        let updated = step.entry | ACCESSED | dirty;
        if updated != step.entry && !mem.readonly(step.at) {
            step.entry = updated;
            // The guest's only vCPU is stopped, so this is atomic. A table outside RAM or in a ROM keeps nothing.
            let _ = mem.write(step.at, &updated.to_le_bytes()[..entry_bytes as usize]);
        }
    }
    Ok(walk)
}

impl Walk {
    /// The translation of an address on the walk's page.
    #[inline]
    pub fn translate(&self, gva: Gva) -> Gpa {
        Gpa::new(self.frame | (gva.raw() & (PAGE_SIZE - 1)))
    }

    /// Would walking for `gva` give the same? Then its translation: the same registers lead through the same entries.
    #[inline]
    pub fn again<M: GuestMemory>(
        &self,
        mem: &M,
        paging: &Paging,
        gva: Gva,
        kind: AccessKind,
        who: Privilege,
    ) -> Option<Gpa> {
        if self.page != gva.raw() & !(PAGE_SIZE - 1) || self.kind != kind || self.who != who || self.paging != *paging {
            return None;
        }
        let bytes = if self.paging.mode() == PagingMode::Bits32 { 4 } else { 8 };
        for step in &self.steps[..self.count] {
            if read_entry(mem, step.at, bytes) != step.entry {
                return None;
            }
        }
        Some(self.translate(gva))
    }
}

#[inline]
fn read_entry<M: GuestMemory>(mem: &M, at: Gpa, bytes: u64) -> u64 {
    if bytes == 4 {
        let mut raw = [0; 4];
        match mem.read(at, &mut raw) {
            Ok(()) => u32::from_le_bytes(raw).into(),
            Err(_) => u32::MAX.into(),
        }
    } else {
        let mut raw = [0; 8];
        match mem.read(at, &mut raw) {
            Ok(()) => u64::from_le_bytes(raw),
            Err(_) => u64::MAX,
        }
    }
}

const fn phys_mask(paging: &Paging) -> u64 {
    (1 << paging.phys_bits) - 1
}

const fn can_be_large(paging: &Paging, mode: PagingMode, level: u32) -> bool {
    match mode {
        PagingMode::None => false,
        PagingMode::Bits32 => level == 2 && paging.cr4 & cr4::PSE != 0,
        PagingMode::Pae => level == 2,
        // 1-GiB pages are not offered (CPUID): bit 7 of a PDPTE is reserved.
        PagingMode::Level4 => level == 2,
    }
}

/// Bits that must be zero (SDM vol. 3, figures 4-4, 4-7, 4-11).
const fn reserved(paging: &Paging, mode: PagingMode, level: u32, large: bool) -> u64 {
    let high = match mode {
        PagingMode::None => return 0,
        PagingMode::Bits32 => return if large { 1 << 21 } else { 0 },
        PagingMode::Pae if level == 3 => return !phys_mask(paging) | 0x1e6,
        // Bits 62:52 are reserved in PAE entries and ignored in 4-level ones.
        PagingMode::Pae => !phys_mask(paging) & !NX,
        PagingMode::Level4 => !phys_mask(paging) & ((1 << 52) - 1),
    };
    let nx = if paging.nxe() { 0 } else { NX };
    let size = match (level, large) {
        (4, _) | (3, false) => PAGE_SIZE_BIT,
        (2, true) => 0x1f_e000,
        _ => 0,
    };
    high | nx | size
}

const fn permitted(paging: &Paging, allowed: u64, no_execute: bool, kind: AccessKind, who: Privilege) -> bool {
    let user_page = allowed & USER != 0;
    let writable = allowed & WRITABLE != 0;
    match (who, kind) {
        (Privilege::User, AccessKind::Read) => user_page,
        (Privilege::User, AccessKind::Write) => user_page && writable,
        (Privilege::User, AccessKind::Fetch) => user_page && !no_execute,
        (Privilege::Supervisor { .. }, AccessKind::Fetch) => !(no_execute || user_page && paging.cr4 & cr4::SMEP != 0),
        (Privilege::Supervisor { ac }, AccessKind::Read) => !(user_page && !ac && paging.cr4 & cr4::SMAP != 0),
        (Privilege::Supervisor { ac }, AccessKind::Write) => {
            !(user_page && !ac && paging.cr4 & cr4::SMAP != 0) && (writable || paging.cr0 & cr0::WP == 0)
        }
    }
}

fn fault(paging: &Paging, gva: Gva, kind: AccessKind, who: Privilege, cause: u32) -> Exception {
    let write = if kind == AccessKind::Write { pfec::W } else { 0 };
    let user = if who == Privilege::User { pfec::U } else { 0 };
    // The I bit exists with no-execute (under 8-byte entries) or SMEP only.
    let reports_fetch = paging.cr4 & cr4::SMEP != 0 || (paging.cr4 & cr4::PAE != 0 && paging.nxe());
    let fetch = if kind == AccessKind::Fetch && reports_fetch {
        pfec::I
    } else {
        0
    };
    Exception::page_fault(gva.raw(), cause | write | user | fetch)
}

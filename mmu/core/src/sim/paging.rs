// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the control registers make of a paging-structure entry? Modes, reserved bits, access rights.
//!
//! Intel SDM vol. 3, chapter 4. Nothing here is shared with the MMU that it tests.

use crate::fault::ErrorCode;
use umbra_mmu_abi as abi;

/// CR0.WP: supervisor writes respect R/W.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.NW.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG: paging is on.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE: 4M pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE: entries of 8 bytes.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.PGE: global pages.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4.LA57: five levels.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.SMEP: the supervisor fetches nothing from user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP: the supervisor touches no user pages without EFLAGS.AC.
pub const CR4_SMAP: u64 = 1 << 21;
/// IA32_EFER.LME: long mode.
pub const EFER_LME: u64 = 1 << 8;
/// IA32_EFER.NXE: bit 63 of an entry forbids fetches.
pub const EFER_NXE: u64 = 1 << 11;

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
pub(super) const PAGE_SIZE: u64 = 1 << 7;
pub(super) const GLOBAL: u64 = 1 << 8;
pub(super) const NO_EXEC: u64 = 1 << 63;

/// How linear addresses are translated (table 4-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// Not at all.
    None,
    /// 32-bit paging.
    TwoLevel,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

impl PagingMode {
    /// Every mode.
    pub const ALL: [Self; 5] = [Self::None, Self::TwoLevel, Self::Pae, Self::FourLevel, Self::FiveLevel];

    /// The level of the table that a walk begins with; in PAE paging the registers are above it.
    pub const fn top(self) -> u8 {
        match self {
            Self::None => 0,
            Self::TwoLevel | Self::Pae => 2,
            Self::FourLevel => 4,
            Self::FiveLevel => 5,
        }
    }

    /// log2 of the bytes under one entry of a table of `level`.
    pub const fn shift(self, level: u8) -> u32 {
        match self {
            Self::TwoLevel => 12 + (level as u32 - 1) * 10,
            Self::None | Self::Pae | Self::FourLevel | Self::FiveLevel => 12 + (level as u32 - 1) * 9,
        }
    }

    /// Bits of a linear address.
    pub const fn width(self) -> u32 {
        match self {
            Self::None | Self::TwoLevel | Self::Pae => 32,
            Self::FourLevel => 48,
            Self::FiveLevel => 57,
        }
    }

    /// Bytes of an entry.
    pub const fn entry(self) -> u64 {
        match self {
            Self::TwoLevel => 4,
            Self::None | Self::Pae | Self::FourLevel | Self::FiveLevel => 8,
        }
    }
}

/// What the processor itself is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// MAXPHYADDR, at most 52.
    pub maxphyaddr: u8,
    /// When the accessed flags of a walk that faults are set.
    pub accessed: AccessedFlags,
    /// What an access does that an old translation in the TLB does not allow.
    pub stale_denial: StaleDenial,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            maxphyaddr: 46,
            accessed: AccessedFlags::OnSuccess,
            stale_denial: StaleDenial::Walks,
        }
    }
}

/// Section 4.10.4.3: tables that have come to allow more need no flush, at the price of a fault that they do not explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleDenial {
    /// Never such a fault: the tables are walked first, as most processors do.
    Walks,
    /// Such a fault, once.
    Faults,
}

/// Section 4.8 has the accessed flag of an entry set when it is used in a translation; whether a walk that ends in a
/// fault used the entries above is up to the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessedFlags {
    /// Only a walk that translates, and allows the access, sets any. So does KVM's walker.
    OnSuccess,
    /// Each entry's as soon as it is known to be present and well-formed, as most processors do.
    AsWalked,
}

/// The registers that paging depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Registers {
    /// PG and WP.
    pub cr0: u64,
    /// The root.
    pub cr3: u64,
    /// PSE, PAE, PGE, LA57, SMEP and SMAP.
    pub cr4: u64,
    /// LME and NXE. (LMA is LME where paging is on.)
    pub efer: u64,
    /// The PDPTE registers of PAE paging, as the last load of CR3 found them in memory.
    pub pdptes: [u64; 4],
}

impl Registers {
    /// Table 4-1.
    pub const fn mode(&self) -> PagingMode {
        if self.cr0 & CR0_PG == 0 {
            PagingMode::None
        } else if self.cr4 & CR4_PAE == 0 {
            PagingMode::TwoLevel
        } else if self.efer & EFER_LME == 0 {
            PagingMode::Pae
        } else if self.cr4 & CR4_LA57 == 0 {
            PagingMode::FourLevel
        } else {
            PagingMode::FiveLevel
        }
    }

    /// Whether a change of control bits from those of `old` reads the PDPTE registers from memory (section 4.4.1).
    pub(super) fn loads_pdptes(&self, old: &Self) -> bool {
        let cr0 = (self.cr0 ^ old.cr0) & (CR0_CD | CR0_NW | CR0_PG);
        let cr4 = (self.cr4 ^ old.cr4) & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP);
        self.mode() == PagingMode::Pae && cr0 | cr4 != 0
    }
}

/// Who accesses (section 4.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// Code at CPL 3.
    User,
    /// Code at CPL below 3 with EFLAGS.AC clear.
    Supervisor,
    /// Code at CPL below 3 with EFLAGS.AC set.
    SupervisorAc,
    /// The processor itself, for a descriptor table or a TSS, at any CPL: EFLAGS.AC does not matter.
    Implicit,
}

impl Privilege {
    /// Everyone.
    pub const ALL: [Self; 4] = [Self::User, Self::Supervisor, Self::SupervisorAc, Self::Implicit];
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What.
    pub kind: abi::Access,
    /// Who.
    pub privilege: Privilege,
}

bitflags::bitflags! {
    /// What the entries of a walk allow together. Reads of a supervisor are always among it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Allowed: u8 {
        /// R/W is set in each.
        const WRITE = 1 << 0;
        /// U/S is set in each: a user-mode address.
        const USER = 1 << 1;
        /// XD is set in none.
        const EXEC = 1 << 2;
    }
}

/// The registers, taken apart once for many walks.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    pub(super) mode: PagingMode,
    pub(super) root: u64,
    pub(super) pdptes: [u64; 4],
    pub(super) model: Model,
    pub(super) global: bool,
    pse: bool,
    wp: bool,
    nxe: bool,
    smep: bool,
    smap: bool,
}

/// Bits `low..=high`, or none.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low {
        0
    } else {
        u64::MAX >> (63 - high) & u64::MAX << low
    }
}

impl Paging {
    /// Paging as `registers` have it on a processor of `model`.
    pub const fn new(registers: &Registers, model: Model) -> Self {
        let mode = registers.mode();
        let address = match mode {
            PagingMode::None => 0,
            PagingMode::TwoLevel => bits(31, 12),
            PagingMode::Pae => bits(31, 5),
            PagingMode::FourLevel | PagingMode::FiveLevel => bits(model.maxphyaddr as u32 - 1, 12),
        };
        Self {
            mode,
            root: registers.cr3 & address,
            pdptes: registers.pdptes,
            model,
            global: registers.cr4 & CR4_PGE != 0,
            pse: registers.cr4 & CR4_PSE != 0,
            wp: registers.cr0 & CR0_WP != 0,
            nxe: registers.efer & EFER_NXE != 0,
            smep: registers.cr4 & CR4_SMEP != 0,
            smap: registers.cr4 & CR4_SMAP != 0,
        }
    }

    /// The mode.
    pub const fn mode(&self) -> PagingMode {
        self.mode
    }

    /// Whether a present entry of a table of `level` maps a page.
    pub(super) const fn is_leaf(&self, level: u8, entry: u64) -> bool {
        match level {
            1 => true,
            2 => entry & PAGE_SIZE != 0 && (self.pse || !matches!(self.mode, PagingMode::TwoLevel)),
            3 => entry & PAGE_SIZE != 0,
            _ => false,
        }
    }

    /// The bits that must be 0 in this present entry of a table of `level`.
    pub(super) const fn reserved(&self, level: u8, entry: u64) -> u64 {
        let leaf = self.is_leaf(level, entry);
        let width = self.model.maxphyaddr as u32;
        let xd = if self.nxe { 0 } else { NO_EXEC };
        // Bit 12 of a large page is PAT.
        let low = match (leaf, level) {
            (true, 2) => bits(20, 13),
            (true, 3) => bits(29, 13),
            _ => 0,
        };
        match self.mode {
            PagingMode::None => 0,
            // Section 4.3: address bits 39:32, as far as there are any, are in bits 20:13 (PSE-36).
            PagingMode::TwoLevel if leaf && level == 2 => bits(21, if width < 40 { width - 19 } else { 21 }),
            PagingMode::TwoLevel => 0,
            // Section 4.4.2.
            PagingMode::Pae => bits(62, width) | low | xd,
            // Section 4.5: bit 7 of a PML4E or PML5E is reserved.
            PagingMode::FourLevel | PagingMode::FiveLevel => {
                bits(51, width) | low | xd | if level > 3 { PAGE_SIZE } else { 0 }
            }
        }
    }

    /// The bits that must be 0 in a present PDPTE when CR3 is loaded (section 4.4.1).
    pub const fn pdpte_reserved(&self) -> u64 {
        bits(63, self.model.maxphyaddr as u32) | bits(8, 5) | bits(2, 1)
    }

    /// The address in an entry: of a table, or of a page of `1 << shift` bytes.
    pub(super) const fn address(&self, entry: u64, shift: u32) -> u64 {
        match (self.mode, shift) {
            (PagingMode::TwoLevel, 22) => entry & bits(31, 22) | (entry & bits(20, 13)) << 19,
            (PagingMode::TwoLevel, _) => entry & bits(31, 12),
            _ => entry & bits(self.model.maxphyaddr as u32 - 1, shift),
        }
    }

    /// What this entry allows.
    pub(super) fn allowed(&self, entry: u64) -> Allowed {
        let mut allowed = Allowed::empty();
        allowed.set(Allowed::WRITE, entry & WRITE != 0);
        allowed.set(Allowed::USER, entry & USER != 0);
        allowed.set(Allowed::EXEC, entry & NO_EXEC == 0);
        allowed
    }

    /// Whether entries that allow `allowed` permit the access (section 4.6.1).
    pub fn permits(&self, allowed: Allowed, access: Access) -> bool {
        let user_page = allowed.contains(Allowed::USER);
        let writable = allowed.contains(Allowed::WRITE);
        let executable = allowed.contains(Allowed::EXEC);
        let (reach, wp) = match access.privilege {
            Privilege::User => (user_page, true),
            Privilege::SupervisorAc => (true, self.wp),
            Privilege::Supervisor | Privilege::Implicit => (!(self.smap && user_page), self.wp),
        };
        match (access.kind, access.privilege) {
            (abi::Access::Read, _) => reach,
            (abi::Access::Write, _) => reach && (writable || !wp),
            (abi::Access::Fetch, Privilege::User) => user_page && executable,
            (abi::Access::Fetch, Privilege::Supervisor | Privilege::SupervisorAc | Privilege::Implicit) => {
                executable && !(self.smep && user_page)
            }
        }
    }

    /// The part of the error code that the access decides (section 4.7).
    pub fn access_code(&self, access: Access) -> ErrorCode {
        let pae = match self.mode {
            PagingMode::None | PagingMode::TwoLevel => false,
            PagingMode::Pae | PagingMode::FourLevel | PagingMode::FiveLevel => true,
        };
        let kind = match access.kind {
            abi::Access::Read => ErrorCode::empty(),
            abi::Access::Write => ErrorCode::W,
            abi::Access::Fetch if self.smep || pae && self.nxe => ErrorCode::I,
            abi::Access::Fetch => ErrorCode::empty(),
        };
        match access.privilege {
            Privilege::User => kind | ErrorCode::U,
            Privilege::Supervisor | Privilege::SupervisorAc | Privilege::Implicit => kind,
        }
    }
}

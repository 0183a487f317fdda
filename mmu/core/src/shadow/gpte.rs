// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does an entry of the guest's own tables say? Its reserved bits, rights, size and address, in every paging mode.

use super::registers::{Features, GuestCpu};
use crate::role::{PteAccess, Role};
use crate::stage2::GpteSize;
use umbra_mmu_abi::Gfn;

/// P, W, U, A, D, PS and XD, where every format has them.
pub const PRESENT: u64 = 1 << 0;
/// Writable.
pub const WRITE: u64 = 1 << 1;
/// User mode too.
pub const USER: u64 = 1 << 2;
/// Used for a translation.
pub const ACCESSED: u64 = 1 << 5;
/// Used for a write.
pub const DIRTY: u64 = 1 << 6;
/// Maps a large page.
pub const LARGE: u64 = 1 << 7;
/// No fetches.
pub const NO_EXEC: u64 = 1 << 63;

/// Bits `low..=high`; none where `high` is below `low`.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low {
        0
    } else {
        u64::MAX >> (63 - high) & u64::MAX << low
    }
}

/// What the bits of an entry mean: it follows from the role of the shadow page, or of the root. Worked out once.
// REQ: SP-2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpteFormat {
    /// By level: the bit that makes a present entry map a page; P where every one does.
    leaf: [u64; LEVELS],
    /// By level: the bits of a present entry that must be 0, in one that points at a table and in one that maps a page.
    reserved: [[u64; 2]; LEVELS],
    size: GpteSize,
}

/// Levels 1 to 5, and room that makes any level a valid index ([`at`]).
pub const LEVELS: usize = 8;

/// The index of a level.
#[inline]
pub const fn at(level: u8) -> usize {
    (level & 7) as usize
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// 4 bytes, with pages of 4M or without.
    TwoLevel { pse: bool },
    /// 8 bytes, bits 52..=62 reserved.
    Pae,
    /// 8 bytes, bits 52..=62 ignored.
    Long,
}

impl Kind {
    const fn leaf(self, level: usize, cpu: &GuestCpu) -> u64 {
        match (level, self) {
            (1, _) => PRESENT,
            (2, Self::TwoLevel { pse: true }) => LARGE,
            (2, Self::Pae | Self::Long) => LARGE,
            (3, Self::Long) if cpu.features.contains(Features::PAGES_1G) => LARGE,
            _ => 0,
        }
    }

    /// SDM vol. 3, tables 5-4 to 5-6, 5-8 to 5-11, 5-14 to 5-20.
    const fn reserved(self, level: usize, leaf: bool, nxe: bool, cpu: &GuestCpu) -> u64 {
        let address = cpu.maxphyaddr as u32;
        let no_exec = if nxe { 0 } else { NO_EXEC };
        match self {
            Self::TwoLevel { .. } if level == 2 && leaf => {
                // PSE-36: bits 39:32 of the address are in 20:13, as far as addresses reach.
                let wide = if cpu.features.contains(Features::PSE36) {
                    address
                } else {
                    32
                };
                bits(21, if wide < 40 { wide - 19 } else { 21 })
            }
            Self::TwoLevel { .. } => 0,
            Self::Pae => bits(62, address) | no_exec | if level == 2 && leaf { bits(20, 13) } else { 0 },
            Self::Long => {
                let size = match (level, leaf) {
                    (1, _) | (2, false) => 0,
                    (2, true) => bits(20, 13),
                    (3, true) => bits(29, 13),
                    (_, _) => LARGE,
                };
                bits(51, address) | no_exec | size
            }
        }
    }
}

impl GpteFormat {
    /// The format of the guest tables that pages of `role` shadow.
    pub const fn new(role: Role, cpu: &GuestCpu) -> Self {
        let kind = match (role.cr4_pae(), role.lma()) {
            (false, _) => Kind::TwoLevel { pse: role.pse() },
            (true, false) => Kind::Pae,
            (true, true) => Kind::Long,
        };
        let mut format = Self {
            leaf: [0; LEVELS],
            reserved: [[0; 2]; LEVELS],
            size: if role.cr4_pae() { GpteSize::B8 } else { GpteSize::B4 },
        };
        let mut level = 1;
        while level <= 5 {
            format.leaf[level] = kind.leaf(level, cpu);
            format.reserved[level] = [
                kind.reserved(level, false, role.nxe(), cpu),
                kind.reserved(level, true, role.nxe(), cpu),
            ];
            level += 1;
        }
        format
    }

    /// Bytes of an entry.
    #[inline]
    pub const fn size(&self) -> GpteSize {
        self.size
    }

    /// log2 of the entries of a table.
    #[inline]
    pub const fn index_bits(&self) -> u32 {
        match self.size {
            GpteSize::B4 => 10,
            GpteSize::B8 => 9,
        }
    }

    /// The entry of a table of `level` that translates `gva`.
    #[inline]
    pub const fn index(&self, level: u8, gva: u64) -> u16 {
        (gva >> self.shift(level) & ((1 << self.index_bits()) - 1)) as u16
    }

    /// Bytes into the table's frame of an entry.
    #[inline]
    pub const fn offset(&self, index: u16) -> u16 {
        index * self.size as u16
    }

    /// log2 of the bytes under an entry of `level`.
    #[inline]
    pub const fn shift(&self, level: u8) -> u32 {
        12 + (level as u32 - 1) * self.index_bits()
    }

    /// Whether a present entry maps a page, rather than a table.
    #[inline]
    pub const fn is_leaf(&self, level: u8, gpte: u64) -> bool {
        gpte & self.leaf[at(level)] != 0
    }

    /// The bits of a present entry that must be 0.
    #[inline]
    pub const fn reserved(&self, level: u8, gpte: u64) -> u64 {
        self.reserved[at(level)][self.is_leaf(level, gpte) as usize]
    }

    /// Whether a reserved bit of a present entry is set.
    #[inline]
    pub const fn is_reserved(&self, level: u8, gpte: u64) -> bool {
        gpte & self.reserved(level, gpte) != 0
    }

    /// What the entry allows. A 4-byte one has no bit against fetches.
    #[inline]
    pub const fn access(&self, gpte: u64) -> PteAccess {
        const _: () = assert!(PteAccess::WRITE.bits() as u64 == WRITE && PteAccess::USER.bits() as u64 == USER);
        const _: () = assert!(PteAccess::EXEC.bits() == 1);
        PteAccess::from_bits_retain((gpte & (WRITE | USER)) as u8 | (gpte >> 63 ^ 1) as u8)
    }

    /// The guest table that the entry points at.
    #[inline]
    pub const fn table(&self, gpte: u64) -> Gfn {
        Gfn::new((gpte & bits(51, 12)) >> 12)
    }

    /// The first frame of the page that the leaf maps.
    #[inline]
    pub const fn page(&self, level: u8, gpte: u64) -> Gfn {
        match (self.size, level) {
            (GpteSize::B4, 2) => Gfn::new((gpte & bits(31, 22)) >> 12 | (gpte & bits(20, 13)) >> 13 << 20),
            (GpteSize::B4 | GpteSize::B8, _) => Gfn::new((gpte & bits(51, self.shift(level))) >> 12),
        }
    }

    /// Whether the entry is one that sptes may be made of without a fault: it is present and sound, and the processor has
    /// used it before, so that nobody misses an accessed bit.
    // REQ: PF-2
    #[inline]
    pub const fn is_used(&self, level: u8, gpte: u64) -> bool {
        gpte & (PRESENT | ACCESSED) == PRESENT | ACCESSED && !self.is_reserved(level, gpte)
    }

    /// What an spte for this leaf may allow, below entries that allow `above`: no write that would leave the guest's
    /// dirty bit clear.
    #[inline]
    pub const fn leaf_access(&self, above: PteAccess, gpte: u64) -> PteAccess {
        let access = above.intersection(self.access(gpte));
        if gpte & DIRTY == 0 {
            access.difference(PteAccess::WRITE)
        } else {
            access
        }
    }
}

/// The formats of all roles.
#[derive(Debug)]
pub struct GpteFormats([GpteFormat; 16]);

impl GpteFormats {
    /// For a guest's processor.
    pub fn new(cpu: &GuestCpu) -> Self {
        Self(core::array::from_fn(|bits| {
            let bit = |at: usize| bits >> at & 1 != 0;
            let role = Role::new().with_cr4_pae(bit(0)).with_lma(bit(1)).with_pse(bit(2));
            GpteFormat::new(role.with_nxe(bit(3)), cpu)
        }))
    }

    /// That of one role.
    #[inline]
    pub fn of(&self, role: Role) -> &GpteFormat {
        let bits = [role.cr4_pae(), role.lma(), role.pse(), role.nxe()];
        let at = bits.into_iter().rev().fold(0, |at, bit| at << 1 | bit as usize);
        &self.0[at & 15]
    }
}

/// Bits of a present pdpte that must be 0, or the load of cr3 faults (SDM vol. 3, table 5-8).
// REQ: EM-1
pub const fn pdpte_reserved(pdpte: u64, cpu: &GuestCpu) -> u64 {
    match pdpte & PRESENT {
        0 => 0,
        _ => pdpte & (bits(63, cpu.maxphyaddr as u32) | bits(8, 5) | bits(2, 1)),
    }
}

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

/// What the bits of an entry mean: it follows from the role of the shadow page, or of the root.
// REQ: SP-2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpteFormat {
    kind: Kind,
    nxe: bool,
    maxphyaddr: u32,
    features: Features,
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

impl GpteFormat {
    /// The format of the guest tables that pages of `role` shadow.
    pub const fn new(role: Role, cpu: &GuestCpu) -> Self {
        let kind = match (role.cr4_pae(), role.lma()) {
            (false, _) => Kind::TwoLevel { pse: role.pse() },
            (true, false) => Kind::Pae,
            (true, true) => Kind::Long,
        };
        Self {
            kind,
            nxe: role.nxe(),
            maxphyaddr: cpu.maxphyaddr as u32,
            features: cpu.features,
        }
    }

    /// Bytes of an entry.
    pub const fn size(&self) -> GpteSize {
        match self.kind {
            Kind::TwoLevel { .. } => GpteSize::B4,
            Kind::Pae | Kind::Long => GpteSize::B8,
        }
    }

    /// log2 of the entries of a table.
    pub const fn index_bits(&self) -> u32 {
        match self.kind {
            Kind::TwoLevel { .. } => 10,
            Kind::Pae | Kind::Long => 9,
        }
    }

    /// The entry of a table of `level` that translates `gva`.
    pub const fn index(&self, level: u8, gva: u64) -> u16 {
        (gva >> self.shift(level) & ((1 << self.index_bits()) - 1)) as u16
    }

    /// Bytes into the table's frame of an entry.
    pub const fn offset(&self, index: u16) -> u16 {
        index * self.size() as u16
    }

    /// log2 of the bytes under an entry of `level`.
    pub const fn shift(&self, level: u8) -> u32 {
        12 + (level as u32 - 1) * self.index_bits()
    }

    /// Whether a present entry maps a page, rather than a table.
    pub const fn is_leaf(&self, level: u8, gpte: u64) -> bool {
        match (level, self.kind) {
            (1, _) => true,
            (2, Kind::TwoLevel { pse }) => pse && gpte & LARGE != 0,
            (2, Kind::Pae | Kind::Long) => gpte & LARGE != 0,
            (3, Kind::Long) => gpte & LARGE != 0 && self.features.contains(Features::PAGES_1G),
            _ => false,
        }
    }

    /// The bits of a present entry that must be 0 (SDM vol. 3, tables 5-4 to 5-6, 5-8 to 5-11, 5-14 to 5-20).
    pub const fn reserved(&self, level: u8, gpte: u64) -> u64 {
        let no_exec = if self.nxe { 0 } else { NO_EXEC };
        let leaf = self.is_leaf(level, gpte);
        match self.kind {
            Kind::TwoLevel { .. } if level == 2 && leaf => {
                // PSE-36: bits 39:32 of the address are in 20:13, as far as addresses reach.
                let wide = if self.features.contains(Features::PSE36) {
                    self.maxphyaddr
                } else {
                    32
                };
                bits(21, if wide < 40 { wide - 19 } else { 21 })
            }
            Kind::TwoLevel { .. } => 0,
            Kind::Pae => {
                let large = if level == 2 && leaf { bits(20, 13) } else { 0 };
                bits(62, self.maxphyaddr) | no_exec | large
            }
            Kind::Long => {
                let size = match (level, leaf) {
                    (1, _) => 0,
                    (2, true) => bits(20, 13),
                    (3, true) => bits(29, 13),
                    (2, false) => 0,
                    (_, _) => LARGE,
                };
                bits(51, self.maxphyaddr) | no_exec | size
            }
        }
    }

    /// Whether a reserved bit of a present entry is set.
    #[inline]
    pub const fn is_reserved(&self, level: u8, gpte: u64) -> bool {
        gpte & self.reserved(level, gpte) != 0
    }

    /// What the entry allows.
    #[inline]
    pub const fn access(&self, gpte: u64) -> PteAccess {
        let wu = gpte & (WRITE | USER);
        let exec = match self.kind {
            Kind::TwoLevel { .. } => 1,
            Kind::Pae | Kind::Long => (gpte >> 63 ^ 1) & 1,
        };
        const _: () = assert!(PteAccess::WRITE.bits() as u64 == WRITE && PteAccess::USER.bits() as u64 == USER);
        PteAccess::from_bits_retain(wu as u8 | exec as u8)
    }

    /// The guest table that the entry points at.
    #[inline]
    pub const fn table(&self, gpte: u64) -> Gfn {
        let gpte = match self.kind {
            Kind::TwoLevel { .. } => gpte & bits(31, 12),
            Kind::Pae | Kind::Long => gpte & bits(51, 12),
        };
        Gfn::new(gpte >> 12)
    }

    /// The first frame of the page that the leaf maps.
    #[inline]
    pub const fn page(&self, level: u8, gpte: u64) -> Gfn {
        match (self.kind, level) {
            (Kind::TwoLevel { .. }, 2) => Gfn::new((gpte & bits(31, 22)) >> 12 | (gpte & bits(20, 13)) >> 13 << 20),
            (Kind::TwoLevel { .. }, _) => Gfn::new((gpte & bits(31, 12)) >> 12),
            (Kind::Pae | Kind::Long, _) => Gfn::new((gpte & bits(51, self.shift(level))) >> 12),
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

/// Bits of a present pdpte that must be 0, or the load of cr3 faults (SDM vol. 3, table 5-8).
// REQ: EM-1
pub const fn pdpte_reserved(pdpte: u64, cpu: &GuestCpu) -> u64 {
    match pdpte & PRESENT {
        0 => 0,
        _ => pdpte & (bits(63, cpu.maxphyaddr as u32) | bits(8, 5) | bits(2, 1)),
    }
}

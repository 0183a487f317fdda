// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is a table for? The part of its key, beside the gfn, under which it can be shared (KVM: `kvm_mmu_page_role`).
//!
//! A shadow page is found by (gfn, role). Everything that makes the same guest table mean something else is in the role,
//! so a guest table in use in two roles has two shadow pages.

use crate::stage2::TableLevel;
use bitfield_struct::bitfield;

bitflags::bitflags! {
    /// What a chain of guest entries allows beside supervisor reads (KVM: `ACC_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PteAccess: u8 {
        /// Instruction fetches.
        const EXEC = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// User mode.
        const USER = 1 << 2;
        /// Everything.
        const ALL = Self::EXEC.bits() | Self::WRITE.bits() | Self::USER.bits();
    }
}

impl PteAccess {
    const fn of_field(bits: u8) -> Self {
        Self::from_bits_retain(bits)
    }
    const fn field(self) -> u8 {
        self.bits()
    }
}

/// A table's role, in one word.
// REQ: SP-1
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct Role {
    /// 1: its entries map 4K pages; up to 5.
    #[bits(4)]
    pub level: u8,
    /// `cr4.pae`: the guest's entries have 8 bytes, else 4.
    pub cr4_pae: bool,
    /// Which half (level 1) or quarter (level 2) of a table of 1024 4-byte entries this is: a host table has 512.
    #[bits(2)]
    pub quadrant: u8,
    /// It maps gfns in order, without a guest table: guest paging is off, a large guest page is split, or EPT.
    pub direct: bool,
    /// What the guest's upper entries allow: the same for everything below.
    #[bits(3, default = PteAccess::empty(), from = PteAccess::of_field, into = PteAccess::field)]
    pub access: PteAccess,
    /// Zapped while a root register points here: it goes with the last of those.
    // REQ: SP-5
    pub invalid: bool,
    /// `efer.nxe`: bit 63 of a guest entry forbids fetches; else it is reserved.
    pub nxe: bool,
    /// `cr0.wp`: read-only entries bind the supervisor too.
    pub cr0_wp: bool,
    /// `cr4.smep && !cr0.wp`: a user page made writable for the supervisor must not become executable for it.
    pub smep_andnot_wp: bool,
    /// `cr4.smap && !cr0.wp`: a user page made writable for the supervisor is no user page to the hardware's SMAP.
    pub smap_andnot_wp: bool,
    /// Hardware sets no accessed and dirty bits here.
    pub ad_disabled: bool,
    /// `efer.lma`: bits 52..=62 of the guest's 8-byte entries are ignored; else they are reserved.
    pub lma: bool,
    /// `cr4.pse`: bit 7 of the guest's 4-byte directory entries makes a page of 4M; else it is ignored.
    pub pse: bool,
    #[bits(13)]
    __: u32,
}

impl Role {
    /// A table of an EPT mirror.
    // REQ: SP-1
    pub const fn ept(level: TableLevel) -> Self {
        Self::new()
            .with_level(level as u8)
            .with_cr4_pae(true)
            .with_direct(true)
            .with_access(PteAccess::ALL)
            .with_ad_disabled(true)
    }

    /// log2 of the 4K frames under one of its entries.
    pub const fn entry_shift(self) -> u32 {
        (self.level() as u32 - 1) * 9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // REQ: SP-1: no two fields share a bit, and each of them makes another role.
    #[test]
    fn every_field_makes_another_role() {
        let base = Role::ept(TableLevel::Pt);
        let others = [
            base.with_level(2),
            base.with_cr4_pae(false),
            base.with_quadrant(1),
            base.with_quadrant(2),
            base.with_quadrant(3),
            base.with_direct(false),
            base.with_access(PteAccess::WRITE),
            base.with_access(PteAccess::empty()),
            base.with_invalid(true),
            base.with_nxe(true),
            base.with_cr0_wp(true),
            base.with_smep_andnot_wp(true),
            base.with_smap_andnot_wp(true),
            base.with_ad_disabled(false),
            base.with_lma(true),
            base.with_pse(true),
        ];
        for (i, a) in others.iter().enumerate() {
            assert_ne!(*a, base);
            assert!(others[..i].iter().all(|b| a != b), "{a:?} is there twice");
        }
    }

    #[test]
    fn entries_of_a_level_cover_512_of_the_level_below() {
        assert_eq!(Role::ept(TableLevel::Pt).entry_shift(), 0);
        assert_eq!(Role::ept(TableLevel::Pml4).entry_shift(), 27);
        assert_eq!(Role::new().with_level(5).entry_shift(), 36);
    }
}

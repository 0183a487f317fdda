// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the guest translate just now? Its control registers, the paging mode they make, and what a write to them is
//! worth.
//!
//! The guest's registers and those that hardware has while it runs are two things: hardware always pages, with cr0.wp and
//! efer.nxe set, in the mode of the shadow tables ([`GuestMode::shadow_top`]).

use crate::role::{PteAccess, Role};

/// cr0.PE, protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// cr0.WP, read-only pages bind the supervisor.
pub const CR0_WP: u64 = 1 << 16;
/// cr0.NW.
pub const CR0_NW: u64 = 1 << 29;
/// cr0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// cr0.PG, paging.
pub const CR0_PG: u64 = 1 << 31;
/// cr4.PSE, pages of 4M in two-level paging.
pub const CR4_PSE: u64 = 1 << 4;
/// cr4.PAE, entries of 8 bytes.
pub const CR4_PAE: u64 = 1 << 5;
/// cr4.PGE, global pages.
pub const CR4_PGE: u64 = 1 << 7;
/// cr4.LA57, five levels.
pub const CR4_LA57: u64 = 1 << 12;
/// cr4.SMEP, no supervisor fetches from user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// cr4.SMAP, no supervisor data accesses to user pages.
pub const CR4_SMAP: u64 = 1 << 21;
/// efer.LME, long mode when paging starts.
pub const EFER_LME: u64 = 1 << 8;
/// efer.LMA, long mode is active.
pub const EFER_LMA: u64 = 1 << 10;
/// efer.NXE, bit 63 of an entry forbids fetches.
pub const EFER_NXE: u64 = 1 << 11;

bitflags::bitflags! {
    /// What the guest's processor has (its CPUID).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u8 {
        /// 5-level paging.
        const LA57 = 1 << 0;
        /// Pages of 1G.
        const PAGES_1G = 1 << 1;
        /// Pages of 4M above 4G.
        const PSE36 = 1 << 2;
        /// No-execute.
        const NX = 1 << 3;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 4;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 5;
    }
}

/// The guest's processor, the same for all vCPUs for the life of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestCpu {
    /// Width of its physical addresses in bits, 32..=48.
    pub maxphyaddr: u8,
    /// What it has.
    pub features: Features,
}

impl Default for GuestCpu {
    fn default() -> Self {
        Self {
            maxphyaddr: 40,
            features: Features::all().difference(Features::LA57),
        }
    }
}

/// How linear addresses are translated (SDM vol. 3, table 5-1).
// REQ: SP-2
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestMode {
    /// Not at all.
    None,
    /// 32-bit paging: two levels of 4-byte entries.
    TwoLevel,
    /// PAE paging: four registers and two levels.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

impl GuestMode {
    /// The level of the tables that cr3, or a pdpte, names; 0 without paging.
    pub const fn top(self) -> u8 {
        match self {
            Self::None => 0,
            Self::TwoLevel | Self::Pae => 2,
            Self::FourLevel => 4,
            Self::FiveLevel => 5,
        }
    }

    /// The level of the shadow pages that root registers name. 2: hardware does PAE paging with four of them.
    pub const fn shadow_top(self) -> u8 {
        match self {
            Self::None | Self::TwoLevel | Self::Pae => 2,
            Self::FourLevel => 4,
            Self::FiveLevel => 5,
        }
    }

    /// Whether the tables have 512 entries of 8 bytes.
    pub const fn wide(self) -> bool {
        match self {
            Self::None | Self::TwoLevel => false,
            Self::Pae | Self::FourLevel | Self::FiveLevel => true,
        }
    }
}

/// A register that cannot have this value: the guest's #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The control registers as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Registers {
    /// cr0.
    pub cr0: u64,
    /// cr3.
    pub cr3: u64,
    /// cr4.
    pub cr4: u64,
    /// efer.
    pub efer: u64,
}

impl Registers {
    /// The paging mode.
    pub const fn mode(&self) -> GuestMode {
        if self.cr0 & CR0_PG == 0 {
            GuestMode::None
        } else if self.cr4 & CR4_PAE == 0 {
            GuestMode::TwoLevel
        } else if self.efer & EFER_LMA == 0 {
            GuestMode::Pae
        } else if self.cr4 & CR4_LA57 == 0 {
            GuestMode::FourLevel
        } else {
            GuestMode::FiveLevel
        }
    }

    /// The role of what a root register points at: what all shadow pages below have in common with it.
    // REQ: SP-1, PF-4
    pub fn root_role(&self) -> Role {
        let mode = self.mode();
        let role = Role::new().with_level(mode.shadow_top()).with_access(PteAccess::ALL);
        if mode == GuestMode::None {
            return role.with_direct(true).with_cr4_pae(true);
        }
        let wp = self.cr0 & CR0_WP != 0;
        role.with_cr4_pae(mode.wide())
            .with_lma(mode.top() > 2)
            .with_pse(mode == GuestMode::TwoLevel && self.cr4 & CR4_PSE != 0)
            .with_nxe(mode.wide() && self.efer & EFER_NXE != 0)
            .with_cr0_wp(wp)
            .with_smep_andnot_wp(self.cr4 & CR4_SMEP != 0 && !wp)
            .with_smap_andnot_wp(self.cr4 & CR4_SMAP != 0 && !wp)
    }

    /// Whether these values can be in the registers together. (SDM vol. 3, 2.5 and 5.1.1; bits that do not concern
    /// paging are the business of others.)
    ///
    /// # Errors
    /// They cannot.
    pub fn check(&self, cpu: &GuestCpu) -> Result<(), GeneralProtection> {
        let has = |feature| cpu.features.contains(feature);
        let paging = self.cr0 & CR0_PG != 0;
        let long = self.efer & EFER_LMA != 0;
        let refused = [
            paging && self.cr0 & CR0_PE == 0,
            self.cr0 & CR0_NW != 0 && self.cr0 & CR0_CD == 0,
            self.cr0 >> 32 != 0,
            long && self.cr4 & CR4_PAE == 0,
            self.cr4 & CR4_LA57 != 0 && !has(Features::LA57),
            self.cr4 & CR4_SMEP != 0 && !has(Features::SMEP),
            self.cr4 & CR4_SMAP != 0 && !has(Features::SMAP),
            self.efer & EFER_NXE != 0 && !has(Features::NX),
            long && self.cr3 >> cpu.maxphyaddr != 0,
        ];
        match refused.contains(&true) {
            true => Err(GeneralProtection),
            false => Ok(()),
        }
    }

    /// After a write to cr0: efer.LMA follows cr0.PG.
    ///
    /// # Errors
    /// #GP: nothing was written.
    pub fn with_cr0(&self, cr0: u64, cpu: &GuestCpu) -> Result<Self, GeneralProtection> {
        let long = cr0 & CR0_PG != 0 && self.efer & EFER_LME != 0;
        let efer = self.efer & !EFER_LMA | if long { EFER_LMA } else { 0 };
        let new = Self { cr0, efer, ..*self };
        new.check(cpu).map(|()| new)
    }

    /// After a write to cr4.
    ///
    /// # Errors
    /// #GP: nothing was written.
    pub fn with_cr4(&self, cr4: u64, cpu: &GuestCpu) -> Result<Self, GeneralProtection> {
        let new = Self { cr4, ..*self };
        match self.efer & EFER_LMA != 0 && (self.cr4 ^ cr4) & CR4_LA57 != 0 {
            true => Err(GeneralProtection),
            false => new.check(cpu).map(|()| new),
        }
    }

    /// After a write to efer.
    ///
    /// # Errors
    /// #GP: nothing was written.
    pub fn with_efer(&self, efer: u64, cpu: &GuestCpu) -> Result<Self, GeneralProtection> {
        let new = Self {
            // LMA is read-only.
            efer: efer & !EFER_LMA | self.efer & EFER_LMA,
            ..*self
        };
        match self.cr0 & CR0_PG != 0 && (self.efer ^ efer) & EFER_LME != 0 {
            true => Err(GeneralProtection),
            false => new.check(cpu).map(|()| new),
        }
    }

    /// Whether the step from `old` loads the four pdptes: PAE paging starts, or one of the bits that reload them changes.
    // REQ: EM-1
    pub fn loads_pdptes(&self, old: &Self) -> bool {
        let reload = (self.cr0 ^ old.cr0) & (CR0_CD | CR0_NW) | (self.cr4 ^ old.cr4) & (CR4_PGE | CR4_PSE | CR4_SMEP);
        self.mode() == GuestMode::Pae && (old.mode() != GuestMode::Pae || reload != 0)
    }
}

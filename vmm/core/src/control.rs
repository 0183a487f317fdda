// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may the guest write to CR0, CR4 and EFER, and which mode is it in afterwards?

use crate::inject::Exception;
use crate::vcpu::{cr0, cr4, efer};

/// CR0 bits that the vmm owns: writes that change them exit. The rest (MP, EM, TS, AM) belongs to the guest.
pub const CR0_OWNED: u64 = !(cr0::MP | cr0::EM | cr0::TS | cr0::AM);
/// CR4 bits that belong to the guest: no effect on translation, all offered by CPUID.
pub const CR4_FREE: u64 = cr4::TSD | cr4::DE | cr4::PGE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
/// CR4 bits that the vmm owns.
pub const CR4_OWNED: u64 = !CR4_FREE;

/// CR4 bits that the guest may set: those of features that CPUID offers.
const CR4_ALLOWED: u64 = CR4_FREE | cr4::PSE | cr4::PAE;
const EFER_ALLOWED: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// The registers that decide the mode, as the guest sees them. Bits that the guest owns may be out of date here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// CR0 that hardware runs with for the guest's `cr0`: caches stay on, and VMX demands NE.
pub const fn hardware_cr0(guest: u64) -> u64 {
    (guest & !(cr0::CD | cr0::NW)) | cr0::NE | cr0::ET
}

/// CR4 that hardware runs with: VMX demands VMXE.
pub const fn hardware_cr4(guest: u64) -> u64 {
    guest | cr4::VMXE
}

impl Control {
    const fn paging(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }
    /// IA-32e mode.
    pub const fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }
    /// PAE paging outside IA-32e mode: the processor holds the PDPTEs in registers.
    pub const fn pae_paging(&self) -> bool {
        self.paging() && !self.long_mode() && self.cr4 & cr4::PAE != 0
    }

    /// MOV to CR0 (SDM vol. 3, sections 2.5 and 10.8.5). `long_code`: the code segment is 64-bit.
    pub fn write_cr0(&self, value: u64, long_code: bool) -> Result<Self, Exception> {
        let bad = value >> 32 != 0 || value & (cr0::PG | cr0::PE) == cr0::PG || value & (cr0::NW | cr0::CD) == cr0::NW;
        if bad {
            return Err(Exception::GP0);
        }
        let known = cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        let mut next = Self {
            cr0: (value & known) | cr0::ET,
            ..*self
        };
        match (self.paging(), next.paging()) {
            (false, true) if self.efer & efer::LME != 0 => {
                if self.cr4 & cr4::PAE == 0 || long_code {
                    return Err(Exception::GP0);
                }
                next.efer |= efer::LMA;
            }
            (true, false) => {
                if self.long_mode() && long_code {
                    return Err(Exception::GP0);
                }
                next.efer &= !efer::LMA;
            }
            (false, true) | (false, false) | (true, true) => {}
        }
        Ok(next)
    }

    /// MOV to CR4.
    pub fn write_cr4(&self, value: u64) -> Result<Self, Exception> {
        if value & !CR4_ALLOWED != 0 || self.long_mode() && value & cr4::PAE == 0 {
            return Err(Exception::GP0);
        }
        Ok(Self { cr4: value, ..*self })
    }

    /// WRMSR to IA32_EFER.
    pub fn write_efer(&self, value: u64) -> Result<Self, Exception> {
        if value & !EFER_ALLOWED != 0 || self.paging() && (value ^ self.efer) & efer::LME != 0 {
            return Err(Exception::GP0);
        }
        // LMA is read-only.
        Ok(Self {
            efer: (value & !efer::LMA) | (self.efer & efer::LMA),
            ..*self
        })
    }

    /// Does going from `before` to here change how addresses translate?
    pub const fn translation_changed(&self, before: &Self) -> bool {
        (self.cr0 ^ before.cr0) & (cr0::PG | cr0::WP) != 0
            || (self.cr4 ^ before.cr4) & (cr4::PSE | cr4::PAE | cr4::PGE) != 0
            || (self.efer ^ before.efer) & (efer::NXE | efer::LMA) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: Control = Control {
        cr0: cr0::ET,
        cr4: 0,
        efer: 0,
    };

    #[test]
    fn the_way_into_long_mode_and_back() {
        let c = REAL.write_cr0(cr0::PE, false).expect("protected mode");
        let c = c.write_cr4(cr4::PAE).expect("PAE");
        let c = c.write_efer(efer::LME | efer::NXE).expect("LME");
        assert!(!c.long_mode());
        let c = c.write_cr0(cr0::PE | cr0::PG, false).expect("paging");
        assert!(c.long_mode());
        assert_eq!(c.write_cr4(0), Err(Exception::GP0), "PAE cannot go in long mode");
        assert_eq!(
            c.write_efer(efer::NXE),
            Err(Exception::GP0),
            "LME is fixed under paging"
        );
        assert_eq!(c.write_cr0(cr0::PE, true), Err(Exception::GP0), "not from 64-bit code");
        let c = c.write_cr0(cr0::PE, false).expect("from compatibility mode");
        assert!(!c.long_mode() && c.efer & efer::LME != 0);
    }

    #[test]
    fn refused_values() {
        for v in [1 << 32, cr0::PG, cr0::NW] {
            assert_eq!(REAL.write_cr0(v, false), Err(Exception::GP0), "{v:#x}");
        }
        let lme = Control {
            efer: efer::LME,
            cr0: cr0::PE,
            ..REAL
        };
        assert_eq!(
            lme.write_cr0(cr0::PE | cr0::PG, false),
            Err(Exception::GP0),
            "long mode needs PAE"
        );
        for v in [cr4::VME, cr4::MCE, cr4::VMXE, cr4::LA57, cr4::SMEP, 1 << 18, 1 << 40] {
            assert_eq!(REAL.write_cr4(v), Err(Exception::GP0), "{v:#x}");
        }
        assert_eq!(REAL.write_efer(1 << 12), Err(Exception::GP0));
    }

    #[test]
    fn pae_paging_is_not_long_mode() {
        let c = Control {
            cr0: cr0::PE,
            cr4: cr4::PAE,
            efer: 0,
        };
        let c = c.write_cr0(cr0::PE | cr0::PG, false).expect("paging");
        assert!(c.pae_paging() && !c.long_mode());
    }

    #[test]
    fn hardware_never_runs_with_caches_off_or_without_vmx_bits() {
        let hw = hardware_cr0(cr0::PE | cr0::CD | cr0::NW);
        assert_eq!(hw & (cr0::CD | cr0::NW | cr0::NE), cr0::NE);
        assert_eq!(hardware_cr4(cr4::PAE), cr4::PAE | cr4::VMXE);
    }
}

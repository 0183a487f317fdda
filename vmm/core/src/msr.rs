// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which model-specific registers does the guest find? Known ones by policy; anything else is #GP and counted.

/// MSR numbers.
pub mod index {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRRCAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
}

/// What answers to an MSR number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// The guest's time stamp counter.
    Tsc,
    /// IA32_EFER.
    Efer,
    /// IA32_PAT, in the VMCS.
    Pat,
    /// A register that keeps what is written.
    Kept(Kept),
    /// Reads as this; writes are dropped.
    Fixed(u64),
    /// Reads as this; writes are #GP.
    ReadOnly(u64),
    /// Not there: #GP.
    Absent,
}

/// Registers that only keep a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// IA32_APIC_BASE: there is no local APIC behind it.
    ApicBase,
    /// IA32_MISC_ENABLE.
    MiscEnable,
}

/// IA32_APIC_BASE at reset: the usual address, boot processor, not enabled.
const APIC_BASE: u64 = 0xfee0_0100;
/// IA32_MISC_ENABLE: fast strings (bit 0); no BTS and no PEBS (bits 11, 12).
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;

/// The policy.
pub const fn classify(number: u32) -> Msr {
    use index as i;
    match number {
        i::TSC => Msr::Tsc,
        i::EFER => Msr::Efer,
        i::PAT => Msr::Pat,
        i::APIC_BASE => Msr::Kept(Kept::ApicBase),
        i::MISC_ENABLE => Msr::Kept(Kept::MiscEnable),
        // Locked, with VMX off.
        i::FEATURE_CONTROL => Msr::ReadOnly(1),
        // A microcode revision, and an update trigger that does nothing.
        i::BIOS_SIGN_ID => Msr::Fixed(1 << 32),
        i::BIOS_UPDT_TRIG | i::DEBUGCTL | i::EBL_CR_POWERON => Msr::Fixed(0),
        i::PLATFORM_ID | i::PLATFORM_INFO => Msr::ReadOnly(0),
        // No machine-check banks.
        i::MCG_CAP => Msr::ReadOnly(0),
        i::MCG_STATUS => Msr::Fixed(0),
        // No range registers. Guests that look without asking CPUID find write-back by default, enabled.
        i::MTRRCAP => Msr::ReadOnly(0),
        i::MTRR_DEF_TYPE => Msr::Fixed(1 << 11 | 6),
        _ => Msr::Absent,
    }
}

/// May this be written to IA32_PAT? Each byte is a memory type: 0, 1, 4, 5, 6 or 7.
pub const fn valid_pat(value: u64) -> bool {
    let mut n = 0;
    while n < 8 {
        let kind = value >> (8 * n) & 0xff;
        if kind == 2 || kind == 3 || kind > 7 {
            return false;
        }
        n += 1;
    }
    true
}

/// State behind the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msrs {
    apic_base: u64,
    misc_enable: u64,
    /// Accesses to MSRs that are not there.
    pub absent_accesses: u64,
    /// The last of them.
    pub last_absent: Option<u32>,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            apic_base: APIC_BASE,
            misc_enable: MISC_ENABLE,
            absent_accesses: 0,
            last_absent: None,
        }
    }
}

impl Msrs {
    /// A kept register.
    pub fn kept(&self, which: Kept) -> u64 {
        match which {
            Kept::ApicBase => self.apic_base,
            Kept::MiscEnable => self.misc_enable,
        }
    }

    /// Replaces a kept register.
    pub fn set_kept(&mut self, which: Kept, value: u64) {
        match which {
            Kept::ApicBase => self.apic_base = value,
            Kept::MiscEnable => self.misc_enable = value,
        }
    }

    /// Notes an access to an MSR that is not there.
    pub fn count_absent(&mut self, number: u32) {
        self.absent_accesses += 1;
        self.last_absent = Some(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_vmx_machine_checks_or_apic_timers_is_there() {
        // VMX capabilities, MC banks, TSC deadline, x2APIC, RAPL, AMD's.
        for n in (0x480..0x492)
            .chain(0x400..0x480)
            .chain([0x6e0, 0x802, 0x606, 0xc001_0015])
        {
            assert_eq!(classify(n), Msr::Absent, "{n:#x}");
        }
        assert_eq!(classify(index::FEATURE_CONTROL), Msr::ReadOnly(1), "locked without VMX");
    }

    #[test]
    fn pat_values() {
        assert!(valid_pat(0x0007_0406_0007_0406));
        for bad in [2, 3, 8, 0x0200_0000_0000_0000] {
            assert!(!valid_pat(bad), "{bad:#x}");
        }
    }
}

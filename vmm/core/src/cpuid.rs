// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which processor does the guest see? The host's, cut down to what this vmm keeps per guest.

use alloc::vec::Vec;

/// EAX, EBX, ECX, EDX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Leaf 1, EDX: features that need no state beyond FXSAVE and no device.
const LEAF1_EDX: u32 = 1 << 0 // FPU
    | 1 << 2 // DE
    | 1 << 3 // PSE
    | 1 << 4 // TSC
    | 1 << 5 // MSR
    | 1 << 6 // PAE
    | 1 << 8 // CX8
    | 1 << 11 // SEP
    | 1 << 13 // PGE
    | 1 << 15 // CMOV
    | 1 << 16 // PAT
    | 1 << 17 // PSE-36
    | 1 << 19 // CLFSH
    | 1 << 23 // MMX
    | 1 << 24 // FXSR
    | 1 << 25 // SSE
    | 1 << 26; // SSE2

/// Leaf 1, ECX.
const LEAF1_ECX: u32 = 1 << 0 // SSE3
    | 1 << 9 // SSSE3
    | 1 << 13 // CMPXCHG16B
    | 1 << 19 // SSE4.1
    | 1 << 20 // SSE4.2
    | 1 << 22 // MOVBE
    | 1 << 23 // POPCNT
    | 1 << 30; // RDRAND

/// Leaf 0x8000_0001, EDX: SYSCALL, NX, LM.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 29;
/// Leaf 0x8000_0001, ECX: LAHF in 64-bit mode.
const EXTENDED_ECX: u32 = 1 << 0;

/// Highest basic leaf: TSC frequency (0x15) and processor frequency (0x16) spare guests the calibration by timers.
const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_0008;
const BRAND: &[u8; 48] = b"Intel(R) processor, virtual (Umbra)\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The guest's CPUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpuid {
    basic: Vec<Leaf>,
    extended: Vec<Leaf>,
    phys_bits: u8,
}

impl Cpuid {
    /// Builds the guest's leaves. `host(leaf, subleaf)` executes CPUID; `tsc_hz` is the guest's TSC rate.
    pub fn new(host: impl Fn(u32, u32) -> Leaf, tsc_hz: u64) -> Self {
        let one = host(1, 0);
        let extended_one = host(0x8000_0001, 0);
        let phys_bits = (host(0x8000_0008, 0).eax as u8).clamp(32, 46);
        let mhz = (tsc_hz / 1_000_000).clamp(1, 0xffff) as u32;
        let mut basic = alloc::vec![Leaf::default(); MAX_BASIC as usize + 1];
        // "GenuineIntel": VT-x is Intel's, and Linux trusts leaf 0x15 of no other vendor.
        basic[0] = Leaf {
            eax: MAX_BASIC,
            ebx: 0x756e_6547,
            ecx: 0x6c65_746e,
            edx: 0x4965_6e69,
        };
        basic[1] = Leaf {
            eax: one.eax,
            // One logical processor, 64-byte CLFLUSH lines, APIC id 0.
            ebx: 1 << 16 | 8 << 8,
            ecx: one.ecx & LEAF1_ECX,
            edx: one.edx & LEAF1_EDX,
        };
        // "See leaf 4", which says: no caches described.
        basic[2] = Leaf {
            eax: 0x01,
            ..Leaf::default()
        };
        basic[0x15] = Leaf {
            eax: 1,
            ebx: 1,
            ecx: u32::try_from(tsc_hz).unwrap_or(0),
            edx: 0,
        };
        if basic[0x15].ecx == 0 {
            // Above 4.29 GHz the crystal is stated in a quarter.
            basic[0x15] = Leaf {
                eax: 1,
                ebx: 4,
                ecx: (tsc_hz / 4) as u32,
                edx: 0,
            };
        }
        basic[0x16] = Leaf {
            eax: mhz,
            ebx: mhz,
            ecx: 0,
            edx: 0,
        };
        let mut extended = alloc::vec![Leaf::default(); (MAX_EXTENDED - 0x8000_0000) as usize + 1];
        extended[0] = Leaf {
            eax: MAX_EXTENDED,
            ..Leaf::default()
        };
        extended[1] = Leaf {
            ecx: extended_one.ecx & EXTENDED_ECX,
            edx: extended_one.edx & EXTENDED_EDX,
            ..Leaf::default()
        };
        for (n, leaf) in extended[2..5].iter_mut().enumerate() {
            let word = |at: usize| {
                let at = 16 * n + 4 * at;
                u32::from_le_bytes([BRAND[at], BRAND[at + 1], BRAND[at + 2], BRAND[at + 3]])
            };
            *leaf = Leaf {
                eax: word(0),
                ebx: word(1),
                ecx: word(2),
                edx: word(3),
            };
        }
        // Invariant TSC: guest time does not change its rate.
        extended[7] = Leaf {
            edx: 1 << 8,
            ..Leaf::default()
        };
        extended[8] = Leaf {
            eax: u32::from(phys_bits) | 48 << 8,
            ..Leaf::default()
        };
        Self {
            basic,
            extended,
            phys_bits,
        }
    }

    /// What CPUID answers. Leaves beyond the highest basic one answer as that one does (Intel's rule). No leaf depends on
    /// ECX: those that would describe features that are hidden.
    pub fn query(&self, leaf: u32, _subleaf: u32) -> Leaf {
        let table = if leaf >> 31 == 0 { &self.basic } else { &self.extended };
        match table.get((leaf & 0x7fff_ffff) as usize) {
            Some(l) => *l,
            None => self.basic.last().copied().unwrap_or_default(),
        }
    }

    /// Width of guest-physical addresses, in bits.
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ones() -> Cpuid {
        let host = |leaf, _| match leaf {
            0x8000_0008 => Leaf {
                eax: 0x3027,
                ..Leaf::default()
            },
            _ => Leaf {
                eax: !0,
                ebx: !0,
                ecx: !0,
                edx: !0,
            },
        };
        Cpuid::new(host, 50_000_000)
    }

    #[test]
    fn what_is_not_virtualised_is_hidden_on_any_host() {
        let c = all_ones();
        let one = c.query(1, 0);
        // ECX: MONITOR 3, VMX 5, SMX 6, FMA 12, PCID 17, x2APIC 21, TSC deadline 24, XSAVE 26, OSXSAVE 27, AVX 28, F16C 29,
        // hypervisor 31.
        for bit in [3, 5, 6, 12, 17, 21, 24, 26, 27, 28, 29, 31] {
            assert_eq!(one.ecx >> bit & 1, 0, "leaf 1 ECX bit {bit}");
        }
        // EDX: MCE 7, APIC 9, MTRR 12, MCA 14, HTT 28.
        for bit in [7, 9, 12, 14, 28] {
            assert_eq!(one.edx >> bit & 1, 0, "leaf 1 EDX bit {bit}");
        }
        assert_eq!(c.query(7, 0), Leaf::default());
        assert_eq!(c.query(0xd, 0), Leaf::default());
        // EDX: 1-GiB pages 26, RDTSCP 27.
        assert_eq!(c.query(0x8000_0001, 0).edx, 1 << 11 | 1 << 20 | 1 << 29);
    }

    #[test]
    fn features_that_the_host_lacks_are_not_invented() {
        let c = Cpuid::new(|_, _| Leaf::default(), 50_000_000);
        assert_eq!((c.query(1, 0).ecx, c.query(1, 0).edx), (0, 0));
        assert_eq!(c.query(0x8000_0001, 0).edx, 0);
    }

    #[test]
    fn the_tsc_rate_is_stated_exactly() {
        for hz in [1_000_000, 50_000_000, 2_600_000_000, 4_294_967_295, 5_000_000_000u64] {
            let c = Cpuid::new(|_, _| Leaf::default(), hz);
            let l = c.query(0x15, 0);
            assert_eq!(u64::from(l.ecx) * u64::from(l.ebx) / u64::from(l.eax), hz);
        }
    }

    #[test]
    fn leaves_beyond_the_last_answer_as_the_last_basic_one() {
        let c = all_ones();
        assert_eq!(c.query(0x17, 0), c.query(0x16, 0));
        assert_eq!(c.query(0x4000_0000, 0), c.query(0x16, 0), "no hypervisor leaf");
        assert_eq!(c.query(0x8000_0009, 0), c.query(0x16, 0));
    }

    #[test]
    fn the_brand_string_reads_back() {
        let c = all_ones();
        let mut text = std::vec::Vec::new();
        for leaf in 0x8000_0002..=0x8000_0004 {
            let l = c.query(leaf, 0);
            for w in [l.eax, l.ebx, l.ecx, l.edx] {
                text.extend_from_slice(&w.to_le_bytes());
            }
        }
        assert!(text.starts_with(b"Intel(R) processor, virtual (Umbra)\0"));
    }
}

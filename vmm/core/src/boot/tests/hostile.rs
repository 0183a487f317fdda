// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever is in an image file: does the loader never panic, and never touch what is not the guest's RAM?

use super::*;
use proptest::prelude::*;
use std::string::ToString;

fn good() -> Vec<Vec<u8>> {
    let base = 0x20_0000;
    vec![
        bzimage::kernel(true),
        bzimage::kernel(false),
        vmlinux::pvh(1),
        vmlinux::pvh(2),
        vmlinux::kernel(1, None),
        vmlinux::kernel(2, None),
        multiboot::kernel(),
        multiboot::flat(base + 0x800, base + 0x2000),
    ]
}

/// Numbers that tend to break arithmetic.
fn nasty() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        0..0x1000_u64,
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| (1_u64 << bit).wrapping_neg()),
        Just(u64::MAX),
        Just(u32::MAX.into()),
    ]
}

/// Places in the headers, where damage matters most, or anywhere.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..0x100_usize, 4 => 0x1f0..0x270_usize, 1 => 0..0x9000_usize]
}

#[derive(Clone, Debug)]
struct Damage {
    at: usize,
    len: usize,
    value: u64,
}

fn damage() -> impl Strategy<Value = Damage> {
    (place(), prop::sample::select(&[1_usize, 2, 4, 8][..]), nasty()).prop_map(|(at, len, value)| Damage {
        at,
        len,
        value,
    })
}

/// Loads; `Memory` itself fails every access outside RAM, and the loader must not even try.
fn attempt(mib: u64, images: &Images<'_>) -> Result<(), TestCaseError> {
    let mut memory = Memory::pc(mib);
    match load(&mut memory, images) {
        Ok(entry) => {
            prop_assert!(
                memory.check(Gpa::new(entry.rip), 1).is_ok(),
                "entered outside RAM: {entry:x?}"
            );
            prop_assert!(entry.rip >= 0x1000);
        }
        Err(LoadError::Memory(refused)) => prop_assert!(false, "tried to write {refused}"),
        Err(error) => prop_assert!(!error.to_string().is_empty()),
    }
    // What was placed must be apart: a byte belongs to one write.
    let mut placed = memory.writes.clone();
    placed.extend(&memory.zeroed);
    placed.retain(|range| range.1 > 0);
    placed.sort_unstable();
    for pair in placed.windows(2) {
        prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:x?}", pair);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_are_harmless(
        which in 0..8_usize,
        damages in prop::collection::vec(damage(), 1..6),
        cut in prop::option::of(0..0x9000_usize),
        mib in prop::sample::select(&[2_u64, 17, 32][..]),
        acpi in any::<bool>(),
    ) {
        let mut kernel = good().swap_remove(which);
        for damage in damages {
            let bytes = damage.value.to_le_bytes();
            for (i, byte) in bytes[..damage.len].iter().enumerate() {
                if let Some(at) = kernel.get_mut(damage.at + i) {
                    *at = *byte;
                }
            }
        }
        kernel.truncate(cut.unwrap_or(usize::MAX));
        let modules = [Module { data: &[1; 3000], cmdline: "m" }];
        attempt(mib, &Images { initrd: Some(&[2; 5000]), acpi, ..images(&kernel) })?;
        attempt(mib, &Images { modules: &modules, acpi, ..images(&kernel) })?;
    }

    #[test]
    fn random_files_are_harmless(mut kernel in prop::collection::vec(any::<u8>(), 0..2000), kind in 0..4) {
        let magic: (usize, &[u8]) = match kind {
            0 => (0, b"\x7fELF\x01\x01"),
            1 => (0, b"\x7fELF\x02\x01"),
            2 => (0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02"),
            _ => (0, b""),
        };
        if let Some(room) = kernel.get_mut(magic.0..magic.0 + magic.1.len()) {
            room.copy_from_slice(magic.1);
        }
        attempt(4, &images(&kernel))?;
    }
}

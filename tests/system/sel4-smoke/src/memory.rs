// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do heap, copy functions and page mappings work?

use crate::objects::Objects;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hint::black_box;
use sel4::init_thread::slot;
use sel4::{CapRights, Error, ObjectBlueprint, PageAttributes};
use umbra_test_report::{Check, Report, good, same, ticks};

/// Where nothing of the program is.
const FREE_ADDRESS: u64 = 0x40_0000_0000;

/// All tests of this file.
pub fn run(report: &mut Report, objects: &mut Objects) {
    report.test(
        "copy functions agree with a byte loop for every size and overlap",
        copies,
    );
    report.test("the heap gives, takes back and grows", heap);
    report.test("a page is mapped, used, unmapped and mapped elsewhere", || {
        mapping(objects)
    });
    let (mut a, b) = (alloc::vec![0u8; 4096], alloc::vec![1u8; 4096]);
    report.measured(
        "memcpy 4096 bytes",
        ticks(|| black_box(&mut a).copy_from_slice(black_box(&b))),
    );
    report.measured(
        "memcpy 24 bytes",
        ticks(|| black_box(&mut a[..24]).copy_from_slice(black_box(&b[..24]))),
    );
    report.measured("memset 4096 bytes", ticks(|| black_box(&mut a).fill(black_box(7))));
}

const SIZE: usize = 320;

fn pattern() -> [u8; SIZE] {
    core::array::from_fn(|i| (i * 7 + i / 256) as u8)
}

fn copies() -> Check {
    for n in 0..200 {
        for (to, from) in [
            (0, 0),
            (1, 0),
            (0, 1),
            (8, 3),
            (3, 8),
            (40, 16),
            (16, 40),
            (100, 0),
            (0, 100),
        ] {
            let mut found = pattern();
            let mut wanted = pattern();
            found.copy_within(black_box(from)..black_box(from + n), black_box(to));
            let source = pattern();
            for i in 0..n {
                // Kept from becoming a call of the very function under test.
                wanted[to + i] = black_box(source[from + i]);
            }
            same("memmove", (n, to, from, found == wanted), (n, to, from, true))?;
        }
        let mut filled = pattern();
        filled[3..3 + n].fill(black_box(0xa5));
        let right = filled.iter().zip(pattern()).enumerate();
        let right = right.filter(|(i, (a, b))| **a == if (3..3 + n).contains(i) { 0xa5 } else { *b });
        same("memset", (n, right.count()), (n, SIZE))?;
        let mut other = pattern();
        if n > 0 {
            other[n - 1] ^= 0x80;
            let (a, b) = (
                black_box(&pattern())[..n].cmp(&black_box(&other)[..n]),
                pattern()[n - 1].cmp(&other[n - 1]),
            );
            same("memcmp", (n, a), (n, b))?;
            other[n - 1] ^= 0x80;
        }
        same(
            "bcmp",
            (n, black_box(&pattern())[..n] == black_box(&other)[..n]),
            (n, true),
        )?;
    }
    Ok(())
}

fn heap() -> Check {
    let boxed: Box<[u64; 64]> = Box::new(core::array::from_fn(|i| i as u64));
    let mut numbers = Vec::new();
    for i in 0..10_000u64 {
        numbers.push(i);
    }
    same("sum", numbers.iter().sum::<u64>() + boxed[63], 9999 * 5000 + 63)?;
    // More than the heap holds, one after the other.
    for _ in 0..100 {
        black_box(alloc::vec![1u8; 100_000]);
    }
    Ok(())
}

fn mapping(objects: &mut Objects) -> Check {
    let frame = good("retype", objects.object(ObjectBlueprint::SmallPage))?;
    objects.map(frame, FREE_ADDRESS)?;
    let word = core::ptr::with_exposed_provenance_mut::<u64>(FREE_ADDRESS as usize);
    // SAFETY: the frame was just mapped there, writable, and nothing else is there.
    unsafe {
        same("new frame", word.read_volatile(), 0)?;
        word.write_volatile(0x1234);
    }
    let map = |vaddr| frame.frame_map(slot::VSPACE, vaddr, CapRights::READ_WRITE, PageAttributes::WriteBack);
    same(
        "second mapping of one capability",
        map(FREE_ADDRESS + 0x1000).is_err(),
        true,
    )?;
    good("unmap", frame.frame_unmap())?;
    good("unmap twice", frame.frame_unmap())?;
    good("map elsewhere", map(FREE_ADDRESS + 0x1000))?;
    // SAFETY: mapped there now.
    same("content", unsafe { word.byte_add(0x1000).read_volatile() }, 0x1234)?;
    let other = good(
        "retype",
        objects.object::<sel4::cap::cap_type::SmallPage>(ObjectBlueprint::SmallPage),
    )?;
    let occupied = other.frame_map(
        slot::VSPACE,
        FREE_ADDRESS + 0x1000,
        CapRights::ALL,
        PageAttributes::WriteBack,
    );
    same("occupied address", occupied, Err(Error::DeleteFirst))?;
    same("aligned", good("address", frame.frame_get_address())? & 0xfff, 0)
}

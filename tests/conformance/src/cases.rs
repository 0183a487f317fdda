// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which behaviours must every second stage show? One function each.

use crate::machine::{Failure, Found, LARGE, Machine, SMALL, Seen, expect_audit, read, set, write};
use umbra_mmu_abi::{Access, Generation, Gfn, Gpa, SlotError, SlotFlags, SlotId, Stat};
use umbra_mmu_core::change::ChangeError;
use umbra_mmu_core::fault::{Fault, Outcome};

/// A named behaviour.
pub struct Case<M: Machine> {
    /// As it is printed.
    pub name: &'static str,
    /// Shows it.
    pub run: fn(&mut M) -> Result<(), Failure>,
}

macro_rules! all {
    ($($name:ident),* $(,)?) => {
        /// Every case.
        pub fn cases<M: Machine>() -> impl Iterator<Item = Case<M>> {
            [$(Case { name: stringify!($name), run: $name::<M> }),*].into_iter()
        }
    };
}

all![
    fresh_page_is_mapped_on_first_touch,
    every_small_page_is_its_own,
    large_page_is_mapped_by_one_fault,
    slot_of_mixed_pages_is_one_memory,
    frame_without_slot_emulates,
    address_beyond_the_tables_emulates,
    write_to_readonly_slot_emulates,
    aliases_show_the_same_frame,
    deleted_slot_faults,
    deleted_large_slot_faults,
    deleted_slot_spares_its_alias_and_neighbour,
    content_outlives_its_slot,
    moved_slot_leaves_its_old_place,
    flags_change_both_ways,
    refused_change_changes_nothing,
    memory_appears_where_mmio_was_cached,
    large_page_takes_the_place_of_a_table,
    zap_all_ends_every_mapping,
    zap_all_twice_before_the_background_is_done,
    deleting_during_the_background_zap,
    generation_wraps_under_cached_mmio,
    far_apart_slots_get_their_tables,
    audit_sees_a_lost_mapping,
];

macro_rules! fail {
    ($expected:expr, $found:expr) => {
        return Err(Failure {
            expected: $expected,
            at: (file!(), line!()),
            found: $found,
        })
    };
}

macro_rules! memory {
    ($seen:expr, $value:expr, $faults:expr) => {
        match $seen? {
            Seen::Memory { value, faults } if (value, faults) == ($value, $faults) => {}
            seen => fail!(stringify!(memory == $value, $faults faults), Found::Seen(seen)),
        }
    };
    ($seen:expr, $value:expr) => {
        match $seen? {
            Seen::Memory { value, .. } if value == $value => {}
            seen => fail!(stringify!(memory == $value), Found::Seen(seen)),
        }
    };
}

macro_rules! emulate {
    ($seen:expr, $gpa:expr, readonly_slot: $readonly:expr) => {
        match $seen? {
            Seen::Emulate(mmio) if (mmio.gfn, mmio.readonly_slot) == ($gpa.gfn(), $readonly) => {}
            seen => fail!(stringify!(emulation, readonly_slot: $readonly), Found::Seen(seen)),
        }
    };
}

macro_rules! done {
    ($change:expr) => {
        if let Err(error) = $change {
            fail!(stringify!($change), Found::Change(error))
        }
    };
}

macro_rules! equal {
    ($found:expr, $wanted:expr) => {
        if $found != $wanted {
            fail!(stringify!($found == $wanted), Found::Number(u64::from($found)))
        }
    };
}

/// The guest faults there: tried on the hardware alone.
macro_rules! faults {
    ($machine:expr, $gpa:expr) => {
        match ($machine.read($gpa), $machine.write($gpa, 0xdead)) {
            (Err(read), Err(write)) if read.gpa.gfn() == $gpa.gfn() && write.gpa.gfn() == $gpa.gfn() => {}
            (read, _) => fail!(
                concat!("faults at ", stringify!($gpa)),
                Found::Number(read.unwrap_or(0))
            ),
        }
    };
}

const RW: SlotFlags = SlotFlags::empty();
const RO: SlotFlags = SlotFlags::READONLY;
const BASE: Gfn = Gfn::new(0x400);
/// In [`LARGE`]: the page of the first 2M frame.
const FIRST_LARGE: u32 = 4;

const fn page(index: u64) -> Gpa {
    Gfn::new(BASE.raw() + index).gpa()
}

fn delete<M: Machine>(m: &mut M, id: u16) -> Result<(), ChangeError> {
    set(m, id, BASE, 0, (SMALL, 0), RW)
}

fn mapped<M: Machine>(m: &mut M) -> u64 {
    m.mmu().stat(Stat::Mapped4K) + m.mmu().stat(Stat::Mapped2M)
}

// REQ: PF-1
fn fresh_page_is_mapped_on_first_touch<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    faults!(m, page(1));
    memory!(write(m, page(1), 0x1234_5678_9abc_def0), 0, 1);
    memory!(read(m, page(1)), 0x1234_5678_9abc_def0, 0);
    equal!(mapped(m), 1u64);
    Ok(())
}

fn every_small_page_is_its_own<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 32, (SMALL, 0), RW));
    for i in 0..32 {
        memory!(write(m, page(i), 0x100 + i), 0, 1);
    }
    for i in 0..32 {
        memory!(read(m, page(i)), 0x100 + i, 0);
    }
    equal!(m.mmu().stat(Stat::Mapped4K), 32u64);
    expect_audit(m, 0)
}

fn large_page_is_mapped_by_one_fault<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 1024, (LARGE, FIRST_LARGE), RW));
    memory!(write(m, page(17), 17), 0, 1);
    memory!(write(m, page(511), 511), 0, 0);
    memory!(read(m, page(17)), 17, 0);
    faults!(m, page(512));
    memory!(write(m, page(512), 512), 0, 1);
    memory!(read(m, page(511)), 511, 0);
    equal!(m.mmu().stat(Stat::Mapped2M), 2u64);
    expect_audit(m, 0)
}

fn slot_of_mixed_pages_is_one_memory<M: Machine>(m: &mut M) -> Result<(), Failure> {
    let base = Gfn::new(BASE.raw() - 4);
    done!(set(m, 0, base, 4 + 1024 + 4, (LARGE, 0), RW));
    let at = |i: u64| Gfn::new(base.raw() + i).gpa();
    for i in [0, 3, 4, 515, 516, 1027, 1028, 1031] {
        memory!(write(m, at(i), 0xa000 + i), 0);
    }
    for i in [0, 3, 4, 515, 516, 1027, 1028, 1031] {
        memory!(read(m, at(i)), 0xa000 + i, 0);
    }
    equal!(m.mmu().stat(Stat::Mapped4K), 4u64);
    equal!(m.mmu().stat(Stat::Mapped2M), 2u64);
    expect_audit(m, 0)?;
    done!(delete(m, 0));
    for i in [0, 4, 1027, 1031] {
        faults!(m, at(i));
    }
    Ok(())
}

// REQ: GEN-1, GEN-4
fn frame_without_slot_emulates<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    for _ in 0..3 {
        emulate!(read(m, page(4)), page(4), readonly_slot: false);
        emulate!(write(m, page(4), 1), page(4), readonly_slot: false);
    }
    equal!(mapped(m), 0u64);
    expect_audit(m, 0)
}

/// Only the MMU is asked: no guest of these machines can make such an access.
fn address_beyond_the_tables_emulates<M: Machine>(m: &mut M) -> Result<(), Failure> {
    let gpa = Gpa::new((1 << 52) - 8);
    let (mmu, vcpu) = m.parts();
    match mmu.fault(vcpu, &Fault::violation(gpa, Access::Read)) {
        Ok(Outcome::Emulate(mmio)) if mmio.gfn == gpa.gfn() => Ok(()),
        Ok(_) => fail!("an emulation", Found::Number(0)),
        Err(error) => fail!("an emulation", Found::Fault(error)),
    }
}

// REQ: MEM-5
fn write_to_readonly_slot_emulates<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 2, (SMALL, 0), RW));
    memory!(write(m, page(0), 50), 0);
    memory!(write(m, page(1), 51), 0);
    done!(delete(m, 0));
    done!(set(m, 0, BASE, 2, (SMALL, 0), RO));
    emulate!(write(m, page(0), 1), page(0), readonly_slot: true);
    memory!(read(m, page(0)), 50, 1);
    for _ in 0..2 {
        emulate!(write(m, page(0), 1), page(0), readonly_slot: true);
    }
    memory!(read(m, page(0)), 50, 0);
    memory!(read(m, page(1)), 51, 1);
    expect_audit(m, 0)
}

// REQ: MEM-2
fn aliases_show_the_same_frame<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    done!(set(m, 1, Gfn::new(BASE.raw() + 8), 4, (SMALL, 2), RO));
    memory!(write(m, page(2), 22), 0);
    memory!(read(m, page(8)), 22, 1);
    memory!(write(m, page(2), 23), 0, 0);
    memory!(read(m, page(8)), 23, 0);
    emulate!(write(m, page(8), 1), page(8), readonly_slot: true);
    memory!(read(m, page(2)), 23, 0);
    Ok(())
}

// REQ: MEM-7
fn deleted_slot_faults<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 8, (SMALL, 0), RW));
    for i in 0..8 {
        memory!(write(m, page(i), i), 0, 1);
    }
    done!(delete(m, 0));
    for i in 0..8 {
        faults!(m, page(i));
    }
    equal!(mapped(m), 0u64);
    emulate!(read(m, page(0)), page(0), readonly_slot: false);
    Ok(())
}

// REQ: MEM-7
fn deleted_large_slot_faults<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 512, (LARGE, FIRST_LARGE), RW));
    memory!(write(m, page(100), 7), 0, 1);
    memory!(write(m, page(300), 8), 0, 0);
    done!(delete(m, 0));
    faults!(m, page(100));
    faults!(m, page(300));
    Ok(())
}

fn deleted_slot_spares_its_alias_and_neighbour<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    done!(set(m, 1, Gfn::new(BASE.raw() + 4), 4, (SMALL, 0), RW));
    done!(set(m, 2, Gfn::new(BASE.raw() + 8), 4, (SMALL, 4), RW));
    memory!(write(m, page(1), 11), 0);
    memory!(read(m, page(5)), 11);
    memory!(write(m, page(9), 99), 0);
    done!(delete(m, 0));
    faults!(m, page(1));
    memory!(read(m, page(5)), 11, 0);
    memory!(read(m, page(9)), 99, 0);
    expect_audit(m, 0)
}

fn content_outlives_its_slot<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 512, (LARGE, FIRST_LARGE), RW));
    memory!(write(m, page(9), 0x1111_2222_3333_4444), 0);
    done!(delete(m, 0));
    done!(set(m, 3, Gfn::new(BASE.raw() + 1024), 512, (LARGE, FIRST_LARGE), RW));
    memory!(read(m, page(1024 + 9)), 0x1111_2222_3333_4444, 1);
    faults!(m, page(9));
    Ok(())
}

// REQ: MEM-1
fn moved_slot_leaves_its_old_place<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 8, (SMALL, 0), RW));
    memory!(write(m, page(0), 1), 0);
    memory!(write(m, page(7), 8), 0);
    // To a place that overlaps the old one.
    done!(set(m, 0, Gfn::new(BASE.raw() + 4), 8, (SMALL, 0), RW));
    faults!(m, page(0));
    emulate!(read(m, page(0)), page(0), readonly_slot: false);
    memory!(read(m, page(4)), 1, 1);
    faults!(m, page(7));
    memory!(read(m, page(11)), 8, 1);
    expect_audit(m, 0)
}

// REQ: MEM-1, MEM-5
fn flags_change_both_ways<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    memory!(write(m, page(0), 5), 0);
    done!(set(m, 0, BASE, 4, (SMALL, 0), RO));
    memory!(read(m, page(0)), 5, 1);
    emulate!(write(m, page(0), 6), page(0), readonly_slot: true);
    memory!(read(m, page(0)), 5, 0);
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    memory!(write(m, page(0), 6), 0, 1);
    memory!(read(m, page(0)), 6, 0);
    expect_audit(m, 0)
}

// REQ: MEM-2
fn refused_change_changes_nothing<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 8, (SMALL, 0), RW));
    memory!(write(m, page(0), 3), 0);
    let before = m.mmu().generation();
    let wrap = Gfn::new((1 << 36) - 4);
    let refusals = [
        (
            SlotError::Overlap,
            set(m, 1, Gfn::new(BASE.raw() + 7), 8, (SMALL, 8), RW),
        ),
        (
            SlotError::Overlap,
            set(m, 1, Gfn::new(BASE.raw() - 1), 10, (SMALL, 8), RW),
        ),
        (SlotError::Invalid, set(m, 1, wrap, 8, (SMALL, 8), RW)),
        (SlotError::Invalid, set(m, 1, Gfn::new(u64::MAX), 8, (SMALL, 8), RW)),
        (SlotError::Invalid, set(m, 0, BASE, 4, (SMALL, 0), RW)),
        (SlotError::Invalid, set(m, 600, Gfn::new(0x2000), 4, (SMALL, 8), RW)),
        // A 2M frame neither moves by a page nor is cut.
        (
            SlotError::Invalid,
            set(m, 1, Gfn::new(0x2001), 512, (LARGE, FIRST_LARGE), RW),
        ),
        (
            SlotError::Invalid,
            set(m, 1, Gfn::new(0x2000), 511, (LARGE, FIRST_LARGE), RW),
        ),
        (SlotError::NoSpace, set(m, 1, Gfn::new(0x2000), 33, (SMALL, 0), RW)),
        (
            SlotError::NoSpace,
            set(m, 1, Gfn::new(0x2000), 1, (SMALL, u32::MAX), RW),
        ),
        (SlotError::NoEntry, delete(m, 1)),
    ];
    for (wanted, result) in refusals {
        match result {
            Err(ChangeError::Refused(error)) if error == wanted => {}
            Err(error) => fail!("another refusal", Found::Change(error)),
            Ok(()) => fail!("a refusal", Found::Number(wanted as u64)),
        }
    }
    equal!(m.mmu().generation().0, before.0);
    memory!(read(m, page(0)), 3, 0);
    expect_audit(m, 0)
}

// REQ: GEN-3, GEN-4
fn memory_appears_where_mmio_was_cached<M: Machine>(m: &mut M) -> Result<(), Failure> {
    emulate!(read(m, page(3)), page(3), readonly_slot: false);
    done!(set(m, 0, BASE, 8, (SMALL, 0), RW));
    memory!(write(m, page(3), 33), 0, 1);
    done!(delete(m, 0));
    emulate!(read(m, page(3)), page(3), readonly_slot: false);
    expect_audit(m, 0)
}

fn large_page_takes_the_place_of_a_table<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 8, (SMALL, 0), RW));
    memory!(write(m, page(0), 1), 0);
    emulate!(read(m, page(100)), page(100), readonly_slot: false);
    done!(delete(m, 0));
    emulate!(read(m, page(200)), page(200), readonly_slot: false);
    done!(set(m, 1, BASE, 512, (LARGE, FIRST_LARGE), RW));
    memory!(write(m, page(200), 2), 0, 1);
    equal!(m.mmu().stat(Stat::Mapped2M), 1u64);
    expect_audit(m, 0)?;
    // And back: a table where the large page was.
    done!(delete(m, 1));
    done!(set(m, 0, BASE, 8, (SMALL, 0), RW));
    memory!(read(m, page(0)), 1, 1);
    expect_audit(m, 0)
}

// REQ: ZAP-1, ZAP-2
fn zap_all_ends_every_mapping<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 32, (SMALL, 0), RW));
    done!(set(m, 1, Gfn::new(0x1000), 1024, (LARGE, FIRST_LARGE), RW));
    let large = Gfn::new(0x1000).gpa();
    for i in 0..32 {
        memory!(write(m, page(i), i + 1), 0);
    }
    memory!(write(m, large, 77), 0);
    m.mmu().zap_all();
    for i in 0..32 {
        faults!(m, page(i));
    }
    faults!(m, large);
    // Half of them come back before the old tables are gone.
    for i in 0..16 {
        memory!(read(m, page(i)), i + 1, 1);
    }
    memory!(read(m, large), 77, 1);
    expect_audit(m, 0)?;
    while m.mmu().has_background_work() {
        m.mmu().background();
    }
    for i in 0..16 {
        memory!(read(m, page(i)), i + 1, 0);
    }
    memory!(read(m, large), 77, 0);
    for i in 16..32 {
        memory!(read(m, page(i)), i + 1, 1);
    }
    expect_audit(m, 0)
}

// REQ: ZAP-3
fn zap_all_twice_before_the_background_is_done<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 32, (SMALL, 0), RW));
    for round in 0..4 {
        for i in 0..32 {
            memory!(write(m, page(i), round * 100 + i), 0, 1);
        }
        m.mmu().zap_all();
        expect_audit(m, 0)?;
        if round == 1 {
            m.mmu().background();
        }
    }
    while m.mmu().has_background_work() {
        m.mmu().background();
    }
    equal!(mapped(m), 0u64);
    for i in 0..32 {
        memory!(read(m, page(i)), 300 + i, 1);
    }
    expect_audit(m, 0)
}

fn deleting_during_the_background_zap<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 32, (SMALL, 0), RW));
    for i in 0..32 {
        memory!(write(m, page(i), i), 0);
    }
    m.mmu().zap_all();
    for i in 0..8 {
        memory!(read(m, page(i)), i, 1);
    }
    done!(delete(m, 0));
    equal!(mapped(m), 0u64);
    for i in 0..32 {
        faults!(m, page(i));
    }
    expect_audit(m, 0)
}

// REQ: GEN-5
fn generation_wraps_under_cached_mmio<M: Machine>(m: &mut M) -> Result<(), Failure> {
    let wraps = m.mmu().stat(Stat::GenerationWraps);
    let mut last = m.mmu().generation();
    // No more than the default start is away from the wrap, unless it wrapped already.
    for _ in 0..2 {
        emulate!(read(m, page(40)), page(40), readonly_slot: false);
        done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
        emulate!(read(m, page(40)), page(40), readonly_slot: false);
        memory!(write(m, page(0), 9), 0, 1);
        done!(delete(m, 0));
        let now = m.mmu().generation();
        let wrapped = m.mmu().stat(Stat::GenerationWraps) > wraps;
        if now <= last && !wrapped {
            fail!("a generation that moves on", Found::Number(now.0.into()))
        }
        last = now;
        match read(m, page(40))? {
            Seen::Emulate(mmio) if mmio.generation == now => {}
            seen => fail!("an emulation of this generation", Found::Seen(seen)),
        }
    }
    let seen: Generation = last;
    equal!(seen.0, m.mmu().generation().0);
    Ok(())
}

fn far_apart_slots_get_their_tables<M: Machine>(m: &mut M) -> Result<(), Failure> {
    // One each in a page directory of its own; all below 512 GiB.
    let bases = [0x400, 0x4_0000, 0x12_3450, 0x7f0_0000];
    for (i, base) in bases.into_iter().enumerate() {
        done!(set(m, i as u16, Gfn::new(base), 2, (SMALL, 2 * i as u32), RW));
    }
    for (i, base) in bases.into_iter().enumerate() {
        memory!(write(m, Gfn::new(base + 1).gpa(), 0xf00 + i as u64), 0, 1);
    }
    for (i, base) in bases.into_iter().enumerate() {
        memory!(read(m, Gfn::new(base + 1).gpa()), 0xf00 + i as u64, 0);
    }
    expect_audit(m, 0)
}

// REQ: RM-3
fn audit_sees_a_lost_mapping<M: Machine>(m: &mut M) -> Result<(), Failure> {
    done!(set(m, 0, BASE, 4, (SMALL, 0), RW));
    memory!(write(m, page(0), 1), 0);
    memory!(write(m, page(1), 2), 0);
    m.lose_mapping(SlotId(0), page(1).gfn());
    expect_audit(m, 1)?;
    faults!(m, page(1));
    memory!(read(m, page(0)), 1, 0);
    done!(delete(m, 0));
    expect_audit(m, 0)
}

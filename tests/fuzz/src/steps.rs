// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do bytes become what guests and hosts do? Every byte string is a script of the model test.

use crate::bytes::Bytes;
use umbra_mmu_core::stage2::BackingShape;
use umbra_model::judge::Guest;
use umbra_model::layout::{DATA, POOL, SHAPES, SLOTS, roots};
use umbra_model::memory::SLOT_IDS;
use umbra_model::modes::Mode;
use umbra_model::oracle::{Controls, Paging, Who};
use umbra_model::script::{Header, Step};
use umbra_model::world::MAXPHYADDR;

/// Any mode.
pub fn mode(bytes: &mut Bytes<'_>) -> Mode {
    Mode::ALL[bytes.below(Mode::ALL.len())]
}

/// A machine of `mode`. Few processors and tables, so that they meet and run out.
pub fn header(mode: Mode) -> Header {
    let Header::Machine {
        engine,
        paging,
        tables,
        generation,
        ..
    } = mode.plan(0, 0).header;
    Header::Machine {
        engine,
        paging,
        vcpus: 2,
        tables,
        generation,
    }
}

/// The next step. Addresses are where something is, or anything at all.
pub fn step(bytes: &mut Bytes<'_>, guest: &Guest) -> Step {
    let kind = bytes.u8();
    let vcpu = kind >> 7;
    let regs = guest.cpus[usize::from(vcpu)].regs;
    match kind & 0x7f {
        0..24 => Step::Read {
            vcpu,
            gva: gva(bytes, regs.paging),
            who: who(bytes),
        },
        24..64 => write(bytes, vcpu, regs.paging),
        64..72 => Step::Fetch {
            vcpu,
            gva: gva(bytes, regs.paging),
            who: who(bytes),
        },
        72..80 => Step::Invlpg {
            vcpu,
            gva: gva(bytes, regs.paging),
        },
        80..92 => load(bytes, vcpu, regs.paging),
        92..100 => slot(bytes),
        100..102 => Step::TakeLog { id: id(bytes) },
        102..104 => Step::ReadLog { id: id(bytes) },
        104..106 => Step::ClearLog {
            id: id(bytes),
            first: bytes.u8().into(),
            npages: bytes.u8().into(),
        },
        106..110 => Step::Device {
            gpa: gfn(bytes) << 12 | u64::from(bytes.u8()) << 3,
            value: value(bytes),
        },
        other => host(bytes, other),
    }
}

/// What the host does that the guest must not see.
fn host(bytes: &mut Bytes<'_>, kind: u8) -> Step {
    match kind {
        110..114 => Step::ZapAll {},
        114..117 => Step::Background {},
        117 => Step::Limit {
            tables: 16 + u32::from(bytes.u8() & 63),
        },
        118 => Step::Shrink {
            tables: 1 + u32::from(bytes.u8() & 7),
        },
        119 => Step::InvalidateEnd {},
        _ => {
            let backing = bytes.below(SHAPES.len());
            let pages = SHAPES[backing].pages().expect("the layout is small");
            let first = u32::from(bytes.u16()) % pages;
            let npages = (1 + u32::from(bytes.u8())).min(pages - first);
            let backing = backing as u16;
            match kind {
                120..122 => Step::Age { backing, first, npages },
                122 | 123 => Step::InvalidateStart { backing, first, npages },
                124 => Step::Split {
                    backing: 1,
                    first: whole(first),
                },
                125 => Step::Collapse {
                    backing: 1,
                    first: whole(first),
                },
                _ => Step::Reclaim { backing, first, npages },
            }
        }
    }
}

/// A page of the large frames.
fn whole(page: u32) -> u32 {
    let BackingShape { small_head, large, .. } = SHAPES[1];
    small_head + page % (large * 512)
}

/// With which rights.
pub fn who(bytes: &mut Bytes<'_>) -> Who {
    [Who::Supervisor, Who::User, Who::SupervisorAc][bytes.below(3)]
}

fn id(bytes: &mut Bytes<'_>) -> u16 {
    bytes.below(SLOT_IDS) as u16
}

/// A gfn: mostly of the guest's tables, data and slots.
fn gfn(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.u8() {
        low @ 0..64 => low.into(),
        data @ 64..112 => DATA.start + u64::from(data) % (DATA.end - DATA.start),
        pool @ 112..160 => POOL.start + u64::from(pool) % (POOL.end - POOL.start),
        alias @ 160..224 => 0x100 + u64::from(alias - 160),
        large @ 224..248 => 0x3f8 + u64::from(large - 224) * 45,
        248..252 => bytes.u16().into(),
        252..=255 => bytes.u64() & ((1 << 28) - 1),
    }
}

/// A linear address, a multiple of 8: that of a gfn, one made of indices that are shared, or any.
pub fn gva(bytes: &mut Bytes<'_>, paging: Paging) -> u64 {
    let form = bytes.u8();
    let offset = u64::from(form & 0x3f) << 3;
    let page = match form >> 6 {
        0 | 1 => gfn(bytes) << 12,
        2 => {
            let indices = bytes.u16();
            let index = |level: u8| [0, 1, 2, 3, 4, 6, 7, 511][usize::from(indices >> ((level - 1) * 3) & 7)];
            (1..=paging.top()).fold(0, |gva, level| gva | index(level) << paging.shift(level))
        }
        _ => bytes.u64() & !0xfff,
    };
    umbra_model::world::linear(paging, page | offset)
}

/// An entry of a table, or any value.
fn value(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.u8() {
        0 => 0,
        flags @ 1..=192 => {
            let low = u64::from(flags & 0x7f) | u64::from(flags & 0x40) << 1;
            gfn(bytes) << 12 | low | 1
        }
        193..=224 => 1 << (bytes.u8() & 63) | gfn(bytes) << 12 | 7,
        225..=255 => bytes.u64(),
    }
}

fn write(bytes: &mut Bytes<'_>, vcpu: u8, paging: Paging) -> Step {
    let gva = gva(bytes, paging);
    let who = who(bytes);
    let form = bytes.u8();
    let size = [8, 8, 8, 8, 8, 4, 2, 1][usize::from(form & 7)];
    let offset = u64::from(form >> 3) % (8 / u64::from(size)) * u64::from(size);
    let value = value(bytes);
    Step::Write {
        vcpu,
        gva: gva | offset,
        who,
        bytes: size,
        value: if size == 8 {
            value
        } else {
            value & ((1 << (size * 8)) - 1)
        },
    }
}

fn load(bytes: &mut Bytes<'_>, vcpu: u8, paging: Paging) -> Step {
    let form = bytes.u8();
    let paging = match form & 7 {
        0..5 => paging,
        _ => Paging::ALL[usize::from(form >> 3) % Paging::ALL.len()],
    };
    let cr3 = match form >> 6 {
        0 | 1 => roots(paging)[usize::from(form >> 6)],
        2 => gfn(bytes) << 12,
        _ => bytes.u64() & !0x1f,
    };
    // More bits are a general protection fault, or not there.
    let bits = match paging {
        Paging::Off | Paging::TwoLevel | Paging::Pae => 32,
        Paging::FourLevel | Paging::FiveLevel => MAXPHYADDR,
    };
    Step::Load {
        vcpu,
        paging,
        controls: Controls::from_bits_truncate(bytes.u8()),
        cr3: cr3 & ((1 << bits) - 1),
    }
}

/// One of the first slots, somewhere else, with other flags, gone; or any slot.
fn slot(bytes: &mut Bytes<'_>) -> Step {
    let form = bytes.u8();
    let (id, base, npages, backing, first, flags) = SLOTS[usize::from(form) % SLOTS.len()];
    let like = |base, npages, flags| Step::Slot {
        id,
        base,
        npages,
        backing,
        first,
        flags,
    };
    match form >> 5 {
        0 => like(base, 0, flags),
        1 | 2 => like(base, npages, flags ^ (form >> 3 & 3)),
        3 => like(gfn(bytes), npages, flags),
        4 => like(base, npages, flags),
        _ => Step::Slot {
            // Below the user's slots, or beyond all.
            id: match bytes.u8() & 15 {
                id @ 0..8 => id.into(),
                other => 1000 + u16::from(other),
            },
            base: match bytes.u8() {
                255 => bytes.u64() & ((1 << 52) - 1),
                _ => gfn(bytes),
            },
            npages: match bytes.u8() {
                255 => bytes.u16().into(),
                few => few.into(),
            },
            backing: (bytes.u8() & 3).into(),
            first: bytes.u16().into(),
            flags: bytes.u8() & 3,
        },
    }
}

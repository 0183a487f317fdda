// SPDX-License-Identifier: MIT OR Apache-2.0
//! Can a guest harm anything with what it writes into its page tables?

use crate::bytes::Bytes;
use crate::steps;
use umbra_model::layout::{POOL, roots};
use umbra_model::machine::machine;
use umbra_model::oracle::{Controls, Paging, Who};
use umbra_model::script::Step;
use umbra_model::world::World;

/// So many entries are written, and then so many accesses made, a few times over.
const ENTRIES: usize = 24;
const ACCESSES: usize = 12;
const ROUNDS: usize = 6;

/// Arbitrary entries in the guest's tables, then accesses through them with arbitrary control bits: each is what a processor
/// would make of those tables, with the same flags set in them, and audits find nothing.
pub fn guest_tables(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mode = steps::mode(&mut bytes);
    let header = steps::header(mode);
    let mut world = World::new(&header, machine(&header), u64::MAX).unwrap_or_else(|failure| panic!("{failure}"));
    let mut run = |step: Step| {
        if let Err(failure) = world.step(&step) {
            panic!("{step}: {failure}");
        }
    };
    for _ in 0..ROUNDS {
        if bytes.is_empty() {
            break;
        }
        // Without paging a guest reaches all of its tables; the other processor goes on using them meanwhile.
        run(load(Paging::Off, Controls::empty(), 0));
        for _ in 0..bytes.below(ENTRIES) {
            run(entry(&mut bytes));
        }
        let controls = Controls::from_bits_truncate(bytes.u8());
        let root = roots(mode.paging)[bytes.below(2)];
        run(load(mode.paging, controls, root));
        for _ in 0..bytes.below(ACCESSES) {
            run(access(&mut bytes, mode.paging));
        }
    }
    if let Err(failure) = world.audit() {
        panic!("in the end: {failure}");
    }
}

fn load(paging: Paging, controls: Controls, cr3: u64) -> Step {
    Step::Load {
        vcpu: 0,
        paging,
        controls,
        cr3,
    }
}

/// A store of any 8 bytes anywhere in the pages of tables, mostly where they are walked.
fn entry(bytes: &mut Bytes<'_>) -> Step {
    let page = u64::from(bytes.u8()) % POOL.end;
    let index = match bytes.u8() {
        few @ 0..224 => u64::from(few & 7),
        last @ 224..240 => 511 - u64::from(last & 3),
        _ => u64::from(bytes.u16()) & 511,
    };
    let value = match bytes.u8() {
        // Flags anywhere, a page of the guest's.
        0..160 => {
            let low = u64::from(bytes.u16()) & 0xfff | 1;
            let high = if bytes.u8() & 7 == 0 {
                u64::from(bytes.u16()) << 48
            } else {
                0
            };
            let page = u64::from(bytes.u8()) << 12;
            let large = if bytes.u8() & 7 == 0 { 0x40_0000 } else { 0 };
            high | large | page | low
        }
        _ => bytes.u64(),
    };
    Step::Write {
        vcpu: 0,
        gva: page << 12 | index << 3,
        who: Who::Supervisor,
        bytes: 8,
        value,
    }
}

fn access(bytes: &mut Bytes<'_>, paging: Paging) -> Step {
    let form = bytes.u8();
    let vcpu = u8::from(form & 0xf0 == 0xf0);
    let gva = steps::gva(bytes, paging);
    let who = steps::who(bytes);
    match form & 3 {
        0 => Step::Read { vcpu, gva, who },
        1 | 2 => Step::Write {
            vcpu,
            gva,
            who,
            bytes: 8,
            value: bytes.u64(),
        },
        _ if form & 4 == 0 => Step::Fetch { vcpu, gva, who },
        _ => Step::Invlpg { vcpu, gva },
    }
}

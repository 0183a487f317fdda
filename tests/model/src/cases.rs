// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guest tables can a walk meet? Every combination of the bits that matter, one chain of tables at a time.

use crate::oracle::{Access, Controls, Memory, Paging, Registers};

/// One chain of tables, and the address that it translates.
#[derive(Clone, Debug)]
pub struct Case {
    /// The address.
    pub gva: u64,
    /// The registers, without controls.
    pub regs: Registers,
    /// The entry of each level, 1 at index 0, with its address; the rest is nowhere.
    pub entries: [(u64, u64); 5],
}

impl Memory for Case {
    fn entry(&self, gpa: u64, _: u8, each: &mut dyn FnMut(u64)) {
        if let Some((_, value)) = self.entries.iter().find(|(at, _)| *at == gpa) {
            each(*value);
        }
    }
}

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// The table of level n lies n pages higher.
const TABLES: u64 = 0x10_0000;

/// Every subset of some bits.
fn subsets(bits: &[u64]) -> impl Iterator<Item = u64> + use<'_> {
    (0..1u32 << bits.len()).map(move |set| {
        let chosen = bits.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
        chosen.map(|(_, bit)| bit).sum()
    })
}

/// The controls that matter in a mode: every combination.
pub fn controls(paging: Paging) -> impl Iterator<Item = Controls> {
    (0..=Controls::all().bits())
        .map(Controls::from_bits_truncate)
        .filter(move |controls| {
            // PSE is for two levels only; NXE reaches no 4-byte entry, but the error code could be wrong about it.
            controls.contains(Controls::PSE) || paging == Paging::TwoLevel
        })
}

struct Chain {
    paging: Paging,
    maxphyaddr: u32,
}

impl Chain {
    /// An address whose index differs at each level and in no half that has to be canonical.
    fn gva(&self) -> u64 {
        let indices = [9u64, 7, 2, 5, 3];
        let top = self.paging.top();
        let tables = (1..=top).map(|level| indices[level as usize - 1] << self.paging.shift(level));
        let register = if self.paging == Paging::Pae { 2 << 30 } else { 0 };
        tables.sum::<u64>() + register + 0x5a8
    }

    fn table(&self, level: u8) -> u64 {
        TABLES + level as u64 * 0x1000
    }

    fn address(&self, level: u8, bits: u64) -> u64 {
        let page = level == 1 || bits & PS != 0;
        match (page, self.paging) {
            (false, _) => self.table(level - 1),
            // A page at an address that is aligned for every size.
            (true, Paging::TwoLevel) => 0xc000_0000,
            (true, _) => 0xd_4000_0000,
        }
    }

    fn case(&self, bits: &[u64]) -> Case {
        let gva = self.gva();
        let paging = self.paging;
        let narrow = if paging == Paging::TwoLevel {
            u32::MAX.into()
        } else {
            u64::MAX
        };
        let mut entries = [(u64::MAX, 0); 5];
        for (at, (bits, entry)) in bits.iter().zip(&mut entries).enumerate() {
            let level = at as u8 + 1;
            let index = gva >> paging.shift(level) & ((1 << paging.index_bits()) - 1);
            let gpa = self.table(level) + index * paging.entry_bytes() as u64;
            *entry = (gpa, (bits ^ self.address(level, *bits)) & narrow);
        }
        let root = self.table(paging.top());
        let mut pdptes = [0; 4];
        pdptes[2] = root | P;
        Case {
            gva,
            entries,
            regs: Registers {
                paging,
                cr3: if paging == Paging::Pae { 0x20 } else { root },
                pdptes,
                controls: Controls::empty(),
                maxphyaddr: self.maxphyaddr,
            },
        }
    }
}

/// Calls `each` with every chain of tables that counts in `paging`: all bits of each level with the others permissive
/// but for one; all pairs of levels; the rights of all levels at once.
pub fn each_case(paging: Paging, maxphyaddr: u32, each: &mut dyn FnMut(&Case)) {
    let chain = Chain { paging, maxphyaddr };
    let top = paging.top() as usize;
    let permissive = vec![P | W | U; top];
    if top == 0 {
        return each(&chain.case(&[]));
    }
    let rights = [W, U, NX];
    for focus in 0..top {
        for bits in subsets(&[P, W, U, A, D, PS, G, NX]) {
            let mut levels = permissive.clone();
            levels[focus] = bits;
            each(&chain.case(&levels));
            for other in (0..top).filter(|other| *other != focus) {
                for right in subsets(&rights) {
                    levels[other] = P | right;
                    each(&chain.case(&levels));
                }
                levels[other] = P | W | U;
            }
            // Bits that are reserved here, there or nowhere: the first beyond the width, the last one of an address,
            // those above, and the low ones of a large page's address.
            for odd in [maxphyaddr, 51, 52, 55, 62, 12, 13, 16, 17, 20, 21, 29] {
                levels[focus] = bits ^ 1 << odd;
                each(&chain.case(&levels));
            }
        }
    }
    for upper in 1..top {
        for lower in 0..upper {
            for high in subsets(&[P, W, U, A, PS, NX]) {
                for low in subsets(&[P, W, U, A, D, PS, NX]) {
                    let mut levels = permissive.clone();
                    (levels[upper], levels[lower]) = (high, low);
                    each(&chain.case(&levels));
                }
            }
        }
    }
    for all in 0..8u32.pow(top as u32) {
        let right = |at: u32| subsets(&rights).nth((all >> (3 * at) & 7) as usize).expect("8 subsets");
        each(&chain.case(&(0..top as u32).map(|at| P | right(at)).collect::<Vec<_>>()));
    }
}

/// Calls `each` with every case, every combination of controls and every access; returns how many there were.
pub fn each_access(paging: Paging, maxphyaddr: u32, each: &mut dyn FnMut(&Case, &Registers, Access)) -> u64 {
    let mut count = 0;
    each_case(paging, maxphyaddr, &mut |case| {
        for controls in controls(paging) {
            let regs = Registers { controls, ..case.regs };
            for access in Access::all() {
                each(case, &regs, access);
                count += 1;
            }
        }
    });
    count
}

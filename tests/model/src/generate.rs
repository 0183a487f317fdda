// SPDX-License-Identifier: MIT OR Apache-2.0
//! What could be interesting now? Random steps, the same for the same seed, biased to few addresses that meet often.

use crate::judge::Guest;
use crate::layout::{DATA, LOG_DIRTY, PD, POOL, PT, READONLY, SHAPES, SLOTS, first_tables, roots};
use crate::oracle::{Access, Controls, End, Kind, Paging, Who};
use crate::script::{Engine, Header, Step};

/// A generator of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((self.bits() as u128 * end as u128) >> 64) as u64
    }

    /// True in `percent` of all cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    fn within(&mut self, range: core::ops::Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }
}

/// Makes steps for one machine.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Random,
    engine: Engine,
    paging: Paging,
    vcpus: u8,
    tables: u32,
    /// Addresses that were used, or whose tables were changed, of late.
    recent: [u64; 8],
    /// Steps to come before others.
    queue: Vec<Step>,
}

/// Where a linear address leads at each level: few indices, so that tables are shared.
const INDICES: [u64; 6] = [0, 1, 2, 3, 4, 511];

impl Generator {
    /// For a machine.
    pub fn new(header: &Header, seed: u64) -> Self {
        let Header::Machine {
            engine,
            paging,
            vcpus,
            tables,
            ..
        } = *header;
        Self {
            random: Random::new(seed),
            engine,
            paging,
            vcpus,
            tables,
            recent: [0; 8],
            queue: Vec::new(),
        }
    }

    /// The next step of a guest in this state.
    pub fn next(&mut self, guest: &Guest) -> Step {
        if let Some(step) = self.queue.pop() {
            return step;
        }
        let vcpu = self.vcpu();
        if self.random.chance(5) && self.is_homeless(guest) {
            let (id, base, npages, backing, first, flags) = SLOTS[0];
            return Step::Slot {
                id,
                base,
                npages,
                backing,
                first,
                flags,
            };
        }
        if self.random.chance(3) && self.is_lost(guest, vcpu) {
            return self.repair(guest, vcpu);
        }
        match self.random.below(1000) {
            0..520 => self.access(guest),
            520..760 => self.edit(guest),
            760..850 => self.invlpg(guest),
            850..890 => self.load(guest),
            890..900 => self.change_controls(guest),
            900..902 => self.change_paging(guest),
            902..912 => self.slot(guest),
            912..935 => self.log(guest),
            935..950 => self.device(guest),
            _ => self.host(guest),
        }
    }

    fn vcpu(&mut self) -> u8 {
        self.random.below(self.vcpus.into()) as u8
    }

    fn who(&mut self) -> Who {
        match self.random.below(10) {
            0..5 => Who::Supervisor,
            5..9 => Who::User,
            _ => Who::SupervisorAc,
        }
    }

    /// A gfn where something is, mostly.
    fn gfn(&mut self) -> u64 {
        match self.random.below(100) {
            0..25 => self.random.within(DATA),
            25..45 => self.random.within(POOL),
            45..50 => self.random.below(16),
            50..60 => 0x100 + self.random.below(64),
            60..66 => 0x180 + self.random.below(18),
            66..70 => 0x1c0 + self.random.below(8),
            70..76 => 0x3fa + self.random.below(6),
            76..90 => 0x400 + self.random.of(&[0, 1, 2, 3, 0x1ff, 0x200, 0x201, 0x3ff]),
            90..96 => 0x800 + self.random.below(8),
            96..98 => self.random.of(&[0xfee00, 0xfffff, 0x40, 0x3f9]),
            _ => self.random.below(1 << 28),
        }
    }

    /// A linear address, a multiple of 8.
    fn gva(&mut self, paging: Paging) -> u64 {
        let gva = match self.random.below(100) {
            0..35 => self.random.of(&self.recent.clone()),
            35..60 => self.gfn() << 12,
            _ => {
                let mut gva = 0;
                for level in 1..=paging.top() {
                    let index = self.random.of(&INDICES);
                    let index = if level == 1 && self.random.chance(20) {
                        self.random.below(64)
                    } else {
                        index
                    };
                    gva |= (index & ((1 << paging.index_bits()) - 1)) << paging.shift(level);
                }
                match paging {
                    Paging::Pae => gva | self.random.below(4) << 30,
                    Paging::TwoLevel if self.random.chance(15) => gva | 0x3ff << 22,
                    Paging::Off => self.gfn() << 12,
                    Paging::TwoLevel | Paging::FourLevel | Paging::FiveLevel => gva,
                }
            }
        };
        let offset = match self.random.below(4) {
            0 => self.random.below(512) * 8,
            _ => self.random.of(&[0, 8, 16, 24]),
        };
        let gva = gva & !0xfff | offset;
        let slot = self.random.below(8) as usize;
        self.recent[slot] = gva;
        crate::world::linear(paging, gva)
    }

    fn access(&mut self, guest: &Guest) -> Step {
        let vcpu = self.vcpu();
        let gva = self.gva(guest.cpus[vcpu as usize].regs.paging);
        let who = self.who();
        match self.random.below(100) {
            0..45 => Step::Read { vcpu, gva, who },
            45..85 => {
                // Tables are written by edits; what is written blindly makes for a quiet guest.
                let write = Access { kind: Kind::Write, who };
                match guest.translate(vcpu, gva, write).end {
                    End::Page { gpa } if gpa >> 12 < POOL.end && self.random.chance(90) => {
                        Step::Read { vcpu, gva, who }
                    }
                    _ => self.write(vcpu, gva, who),
                }
            }
            _ => Step::Fetch { vcpu, gva, who },
        }
    }

    fn write(&mut self, vcpu: u8, gva: u64, who: Who) -> Step {
        let bytes = self.random.of(&[8, 8, 8, 4, 2, 1]);
        let offset = if bytes == 8 {
            0
        } else {
            self.random.below(8 / bytes as u64) * bytes as u64
        };
        let value = match self.random.below(3) {
            0 => self.entry(2),
            1 => 0,
            _ => self.random.bits(),
        };
        let value = if bytes == 8 {
            value
        } else {
            value & ((1 << (bytes * 8)) - 1)
        };
        let gva = gva | offset;
        Step::Write {
            vcpu,
            gva,
            who,
            bytes,
            value,
        }
    }

    /// An entry for a table of `level`, of 8 bytes.
    fn entry(&mut self, level: u8) -> u64 {
        let mut entry = match self.random.below(100) {
            0..3 => return 0,
            3..45 if level > 1 => self.random.within(POOL) << 12,
            45..55 if level > 1 => self.random.of(&[PD, PT, 2]) << 12,
            55..75 if level > 1 => self
                .random
                .of(&[0x80, 0x80, 0x40_0080, 0x60_0080, 0x80_0080, 0x20_0080]),
            _ => self.gfn() << 12,
        };
        for (bit, percent) in [(0, 95), (1, 75), (2, 70), (5, 40), (6, 40), (8, 10)] {
            entry |= u64::from(self.random.chance(percent)) << bit;
        }
        match self.random.below(100) {
            0..12 => entry |= 1 << 63,
            12..14 => entry |= 1 << self.random.of(&[40, 51, 52, 62, 7, 13, 21]),
            _ => {}
        }
        entry
    }

    /// A store of a guest to one of its tables, and what it does about that.
    fn edit(&mut self, guest: &Guest) -> Step {
        let vcpu = self.vcpu();
        let paging = match guest.cpus[vcpu as usize].regs.paging {
            Paging::Off => self.paging,
            other => other,
        };
        let level = 1 + self.random.below(paging.top().max(1) as u64) as u8;
        let (root, bytes) = (roots(paging)[self.random.below(2) as usize], paging.entry_bytes());
        let table = match self.random.below(100) {
            0..80 => self.random.within(POOL),
            80..88 if paging == Paging::TwoLevel => root >> 12,
            80..88 => PD,
            88..92 => root >> 12,
            92..94 => 7,
            _ if paging == Paging::TwoLevel => 2,
            _ => PT,
        };
        let index = match self.random.below(100) {
            0..80 => self.random.of(&INDICES),
            80..95 => self.random.below(64),
            _ => self.random.below(512),
        };
        // Entry 0 of a fixed table leads to the tables themselves; losing it makes for a quiet guest.
        let fixed = table < POOL.start && index == 0 && table != PT && table != 2;
        let index = if fixed && !self.random.chance(3) { 1 } else { index };
        let gpa = (table << 12) + index * bytes as u64;
        let old = guest
            .memory
            .page_at(table)
            .map_or(0, |page| guest.memory.word(page, gpa));
        let value = match self.random.below(100) {
            0..45 => self.entry(level),
            // One bit of what is there: rights, flags, presence.
            45..85 => old >> ((gpa & 4) * 8) ^ 1 << self.random.of(&[0, 1, 1, 2, 2, 5, 5, 6, 6, 63]),
            85..95 => old >> ((gpa & 4) * 8) & !0x60,
            _ => 0,
        };
        let value = if bytes == 4 { value & u64::from(u32::MAX) } else { value };
        self.after_edit(guest, vcpu, table, index);
        let gva = if self.random.chance(90) { gpa } else { 0x10_0000 + gpa };
        let store = |vcpu| Step::Write {
            vcpu,
            gva,
            who: Who::Supervisor,
            bytes,
            value,
        };
        let write = Access {
            kind: Kind::Write,
            who: Who::Supervisor,
        };
        if let End::Page { .. } = guest.translate(vcpu, gva, write).end {
            return store(vcpu);
        }
        if self.random.chance(60) && !self.is_homeless(guest) {
            return self.repair(guest, vcpu);
        }
        store(vcpu)
    }

    /// The way to the tables is lost; with paging off there is one, and what leads to them is written again.
    fn repair(&mut self, guest: &Guest, vcpu: u8) -> Step {
        let regs = guest.cpus[vcpu as usize].regs;
        let load = |paging, cr3| Step::Load {
            vcpu,
            paging,
            controls: regs.controls,
            cr3,
        };
        self.queue.push(load(regs.paging, regs.cr3));
        let broken = first_tables().into_iter().filter(|(gpa, bytes, value)| {
            let word = guest
                .memory
                .page_at(gpa >> 12)
                .map_or(0, |page| guest.memory.word(page, *gpa));
            let entry = if *bytes == 4 {
                word >> ((gpa & 4) * 8) & u64::from(u32::MAX)
            } else {
                word
            };
            gpa >> 12 < POOL.start && entry & !0x60 != *value
        });
        let broken: Vec<_> = broken.collect();
        // What it is lost by may stay so for a while.
        let (most, chance) = self.random.of(&[(8, 50), (40, 90), (300, 100)]);
        for (gva, bytes, value) in broken.into_iter().take(most) {
            if self.random.chance(chance) {
                self.queue.push(Step::Write {
                    vcpu,
                    gva,
                    who: Who::Supervisor,
                    bytes,
                    value,
                });
            }
        }
        load(Paging::Off, 0)
    }

    /// Whether the tables have no memory, or none to be written.
    fn is_homeless(&self, guest: &Guest) -> bool {
        let home = guest.memory.slot(SLOTS[0].0);
        home.is_none_or(|slot| slot.base != SLOTS[0].1 || slot.readonly())
    }

    /// Whether a processor does not reach its tables, though they are there.
    fn is_lost(&mut self, guest: &Guest, vcpu: u8) -> bool {
        let gva = self.random.below(32) << 12;
        let write = Access {
            kind: Kind::Write,
            who: Who::Supervisor,
        };
        !self.is_homeless(guest) && !matches!(guest.translate(vcpu, gva, write).end, End::Page { .. })
    }

    /// After an edit, guests use the address, forget it, or both; or neither.
    fn after_edit(&mut self, guest: &Guest, vcpu: u8, table: u64, index: u64) {
        let other = self.vcpu();
        let paging = guest.cpus[vcpu as usize].regs.paging;
        let gva = match table {
            PT | 2 => index << 12,
            PD => index << 21,
            1 | 13 => index << 22,
            _ => self.gva(paging),
        };
        let slot = self.random.below(8) as usize;
        self.recent[slot] = gva;
        let gva = crate::world::linear(paging, gva);
        if self.random.chance(50) {
            let who = self.who();
            let step = match self.random.below(3) {
                0 => Step::Read { vcpu, gva, who },
                1 => Step::Fetch { vcpu, gva, who },
                _ => self.write(vcpu, gva, who),
            };
            self.queue.push(step);
        }
        if self.random.chance(40) {
            self.queue.push(Step::Invlpg { vcpu, gva });
        }
        if other != vcpu && self.random.chance(20) {
            self.queue.push(Step::Read {
                vcpu: other,
                gva,
                who: Who::Supervisor,
            });
        }
    }

    fn invlpg(&mut self, guest: &Guest) -> Step {
        let vcpu = self.vcpu();
        let gva = self.gva(guest.cpus[vcpu as usize].regs.paging);
        Step::Invlpg { vcpu, gva }
    }

    fn load(&mut self, guest: &Guest) -> Step {
        let vcpu = self.vcpu();
        let regs = guest.cpus[vcpu as usize].regs;
        let cr3 = match self.random.below(100) {
            0..40 => regs.cr3,
            40..95 => roots(regs.paging)[self.random.below(2) as usize],
            // Any page makes some root.
            _ => self.random.within(POOL) << 12,
        };
        if !roots(regs.paging).contains(&cr3) {
            // Not for long.
            self.queue.push(Step::Load {
                vcpu,
                paging: regs.paging,
                controls: regs.controls,
                cr3: roots(regs.paging)[0],
            });
            for _ in 0..self.random.below(6) {
                let step = self.access(guest);
                self.queue.push(step);
            }
        }
        Step::Load {
            vcpu,
            paging: regs.paging,
            controls: regs.controls,
            cr3,
        }
    }

    fn change_controls(&mut self, guest: &Guest) -> Step {
        let vcpu = self.vcpu();
        let regs = guest.cpus[vcpu as usize].regs;
        let bit = self.random.of(&[
            Controls::WP,
            Controls::WP,
            Controls::PSE,
            Controls::NXE,
            Controls::SMEP,
            Controls::SMAP,
        ]);
        Step::Load {
            vcpu,
            paging: regs.paging,
            controls: regs.controls ^ bit,
            cr3: regs.cr3,
        }
    }

    /// To another mode, and back after a while.
    fn change_paging(&mut self, guest: &Guest) -> Step {
        let vcpu = self.vcpu();
        let regs = guest.cpus[vcpu as usize].regs;
        let paging = if regs.paging == self.paging {
            self.random.of(&Paging::ALL)
        } else {
            self.paging
        };
        Step::Load {
            vcpu,
            paging,
            controls: regs.controls,
            cr3: roots(paging)[self.random.below(2) as usize],
        }
    }

    fn slot(&mut self, guest: &Guest) -> Step {
        let (mut id, mut base, mut npages, mut backing, mut first, mut flags) = self.random.of(&SLOTS);
        let there = guest.memory.slot(id).copied();
        if id == 0 && self.random.chance(80) {
            (id, base, npages, backing, first, flags) = SLOTS[1];
        }
        match (there, self.random.below(100)) {
            // It comes back soon.
            (None, 0..70) => {}
            (Some(slot), 0..35) => {
                base = slot.base;
                flags = slot.flags ^ LOG_DIRTY;
            }
            (Some(slot), 35..45) => {
                base = slot.base;
                flags = slot.flags ^ READONLY;
            }
            (_, 45..65) => {
                let back = Step::Slot {
                    id,
                    base,
                    npages,
                    backing,
                    first,
                    flags,
                };
                self.queue.push(back);
                for _ in 0..self.random.below(4) {
                    let step = self.access(guest);
                    self.queue.push(step);
                }
                npages = 0;
            }
            (_, 65..85) => {
                base = self
                    .random
                    .of(&[0x100, 0x180, 0x3fa, 0x140, 0x1c0, 0x1000, 0x5fa, 0x40])
            }
            (_, 85..92) => (id, base, npages) = (4, 0x1c0 + self.random.below(4), 1 + self.random.below(4) as u32),
            (_, _) => {
                (id, npages) = (self.random.below(6) as u16, self.random.below(80) as u32);
                base = self.random.of(&[0x140, 0x1c0, 0x900, 0x3fa]);
                first = self.random.below(8) as u32;
                backing = self.random.below(4) as u16;
            }
        }
        Step::Slot {
            id,
            base,
            npages,
            backing,
            first,
            flags,
        }
    }

    fn log(&mut self, guest: &Guest) -> Step {
        let logged = |id: &u16| guest.memory.slot(*id).is_some_and(|slot| slot.flags & LOG_DIRTY != 0);
        let ids: Vec<u16> = (0..8).filter(logged).collect();
        if ids.is_empty() {
            return self.slot(guest);
        }
        let id = self.random.of(&ids);
        match self.random.below(10) {
            0..3 => Step::TakeLog { id },
            3..6 => Step::ReadLog { id },
            6 => Step::SplitForLog { id },
            _ => {
                let pages = guest.memory.slot(id).map_or(1, |slot| slot.npages);
                let first = self.random.below(pages) as u32;
                let npages = 1 + self.random.below(pages - first as u64) as u32;
                Step::ClearLog { id, first, npages }
            }
        }
    }

    fn device(&mut self, guest: &Guest) -> Step {
        let _ = guest;
        let gfn = if self.random.chance(70) {
            self.random.within(DATA)
        } else {
            self.gfn()
        };
        Step::Device {
            gpa: (gfn << 12) + self.random.below(8) * 8,
            value: self.random.bits(),
        }
    }

    /// A range of a backing.
    fn range(&mut self) -> (u16, u32, u32) {
        let backing = self.random.of(&[0, 0, 1, 1, 2]);
        let pages = SHAPES[backing as usize].pages().expect("the layout is small");
        let first = match (backing, self.random.below(2)) {
            (1, _) => 506 + self.random.of(&[0, 1, 6, 7, 6 + 512, 6 + 1024, 6 + 1026]),
            _ => self.random.below(pages.into()) as u32,
        };
        let npages = 1 + match self.random.below(4) {
            0 => 0,
            1 => self.random.below(8) as u32,
            2 => self.random.below(64) as u32,
            _ => self.random.below(pages.into()) as u32,
        };
        (backing, first, npages.min(pages - first))
    }

    fn host(&mut self, guest: &Guest) -> Step {
        let (backing, first, npages) = self.range();
        match self.random.below(100) {
            0..20 => Step::Age { backing, first, npages },
            20..32 => {
                self.queue.push(Step::InvalidateEnd {});
                for _ in 0..self.random.below(4) {
                    let step = if self.random.chance(80) {
                        self.access(guest)
                    } else {
                        self.invlpg(guest)
                    };
                    self.queue.push(step);
                }
                Step::InvalidateStart { backing, first, npages }
            }
            32..40 => Step::Reclaim { backing, first, npages },
            40..44 => Step::Protect { backing, first, npages },
            44..54 => Step::Split {
                backing: 1,
                first: 512 + self.random.below(1024) as u32,
            },
            54..64 => Step::Collapse {
                backing: 1,
                first: 512 + self.random.below(1024) as u32,
            },
            64..70 => Step::Limit {
                tables: match self.random.below(3) {
                    0 => self.tables,
                    _ => self.tables / 2 + self.random.below(self.tables as u64 / 2) as u32,
                },
            },
            70..78 => Step::Shrink {
                tables: 1 + self.random.below(8) as u32,
            },
            78..82 => Step::ZapAll {},
            _ => Step::Background {},
        }
    }

    /// The mode of the MMU.
    pub fn engine(&self) -> Engine {
        self.engine
    }
}

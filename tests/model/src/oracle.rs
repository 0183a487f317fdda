// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a processor make of a linear address? Intel SDM vol. 3, chapter 4, in the order of its sections.
//!
//! Nothing here is shared with what it judges: neither types nor masks nor the order of the work. The paging structures
//! are read through [`Memory`], which may know more than one value of an entry (a TLB may have kept an older one), so
//! there may be more than one right walk.

/// Table 4-1: how linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Paging {
    /// CR0.PG = 0.
    Off,
    /// 32-bit paging: two levels of 4-byte entries.
    TwoLevel,
    /// PAE paging: four registers, two levels of 8-byte entries.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

impl Paging {
    /// Every mode.
    pub const ALL: [Self; 5] = [Self::Off, Self::TwoLevel, Self::Pae, Self::FourLevel, Self::FiveLevel];

    /// The number of the level that CR3 (PAE: a PDPTE register) points at; 1 is the page table.
    pub const fn top(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::TwoLevel | Self::Pae => 2,
            Self::FourLevel => 4,
            Self::FiveLevel => 5,
        }
    }

    /// Bytes of one entry.
    pub const fn entry_bytes(self) -> u8 {
        match self {
            Self::TwoLevel => 4,
            Self::Off | Self::Pae | Self::FourLevel | Self::FiveLevel => 8,
        }
    }

    /// The first bit of the linear address that selects an entry at `level`.
    pub const fn shift(self, level: u8) -> u32 {
        12 + (level as u32 - 1) * self.index_bits()
    }

    /// log2 of the entries of a table.
    pub const fn index_bits(self) -> u32 {
        match self {
            Self::TwoLevel => 10,
            Self::Off | Self::Pae | Self::FourLevel | Self::FiveLevel => 9,
        }
    }
}

bitflags::bitflags! {
    /// The bits of the control registers that change a translation (section 4.1.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Controls: u8 {
        /// CR0.WP: supervisor writes respect R/W.
        const WP = 1;
        /// CR4.PSE: 4M pages in 32-bit paging.
        const PSE = 2;
        /// IA32_EFER.NXE: bit 63 of 8-byte entries is XD.
        const NXE = 4;
        /// CR4.SMEP: no supervisor fetches from user pages.
        const SMEP = 8;
        /// CR4.SMAP: no supervisor data accesses to user pages without EFLAGS.AC.
        const SMAP = 16;
    }
}

/// The state of the processor that a walk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Registers {
    /// The paging mode.
    pub paging: Paging,
    /// CR3.
    pub cr3: u64,
    /// The PDPTE registers; PAE paging only. They are loaded with CR3 and not read from memory in between.
    pub pdptes: [u64; 4],
    /// Bits that change the translation.
    pub controls: Controls,
    /// MAXPHYADDR.
    pub maxphyaddr: u32,
}

/// What the instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// CPL 3.
    User,
    /// CPL below 3, EFLAGS.AC = 0.
    Supervisor,
    /// CPL below 3, EFLAGS.AC = 1.
    SupervisorAc,
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// What.
    pub kind: Kind,
    /// Who.
    pub who: Who,
}

impl Access {
    /// Every access.
    pub fn all() -> impl Iterator<Item = Self> {
        [Kind::Read, Kind::Write, Kind::Fetch].into_iter().flat_map(|kind| {
            [Who::User, Who::Supervisor, Who::SupervisorAc]
                .into_iter()
                .map(move |who| Self { kind, who })
        })
    }
}

/// Section 4.7: the error code of a page fault.
pub mod code {
    /// The fault was not for a page that is not present.
    pub const P: u32 = 1 << 0;
    /// A write.
    pub const W: u32 = 1 << 1;
    /// A user-mode access.
    pub const U: u32 = 1 << 2;
    /// A reserved bit was set.
    pub const RSVD: u32 = 1 << 3;
    /// An instruction fetch.
    pub const I: u32 = 1 << 4;
}

/// Guest-physical memory as the walk may see it.
pub trait Memory {
    /// Calls `each` with every value of the entry of `bytes` (4 or 8) bytes at `gpa` that the processor may use;
    /// never, where there is no memory.
    fn entry(&self, gpa: u64, bytes: u8, each: &mut dyn FnMut(u64));
}

/// An entry that a walk used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Where it is.
    pub gpa: u64,
    /// The value that was used.
    pub value: u64,
}

/// How a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A translation that allows the access.
    Page {
        /// The address.
        gpa: u64,
    },
    /// A page fault with this error code; CR2 is the linear address.
    Fault {
        /// The error code.
        code: u32,
    },
    /// The entry at this address is to be read, and there is no memory.
    NoMemory {
        /// The entry's address.
        gpa: u64,
        /// The error code, were the entry not present.
        code: u32,
    },
}

/// One walk.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    entries: [Used; 5],
    depth: u8,
    /// How it ends.
    pub end: End,
}

const PRESENT: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;

impl Walk {
    /// The entries that were used, from the top. PDPTE registers are not among them: they have no accessed flag.
    pub fn used(&self) -> &[Used] {
        &self.entries[..self.depth as usize]
    }

    /// Section 4.8: what each used entry holds after an access of `kind` that this walk allows.
    pub fn flagged(&self, kind: Kind) -> impl Iterator<Item = Used> {
        let last = self.depth as usize - usize::from(self.depth > 0);
        let dirty = match kind {
            Kind::Read | Kind::Fetch => 0,
            Kind::Write => DIRTY,
        };
        self.used().iter().enumerate().map(move |(at, used)| Used {
            gpa: used.gpa,
            value: used.value | ACCESSED | if at == last { dirty } else { 0 },
        })
    }
}

/// Bits `low..=high`.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low {
        return 0;
    }
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// Whether the entry maps a page at `level` (it is present).
fn maps_page(regs: &Registers, level: u8, entry: u64) -> bool {
    match (level, regs.paging) {
        (1, _) => true,
        (2, Paging::TwoLevel) => entry & PS != 0 && regs.controls.contains(Controls::PSE),
        (2, _) => entry & PS != 0,
        (3, Paging::FourLevel | Paging::FiveLevel) => entry & PS != 0,
        (_, _) => false,
    }
}

/// Tables 4-4 to 4-6 (32-bit), 4-8 to 4-11 (PAE), 4-14 to 4-20 (4- and 5-level): bits that must be 0 where P is 1.
fn reserved(regs: &Registers, level: u8, entry: u64) -> u64 {
    let m = regs.maxphyaddr;
    let xd = if regs.controls.contains(Controls::NXE) { 0 } else { XD };
    let page = maps_page(regs, level, entry);
    match regs.paging {
        Paging::Off => 0,
        // With PSE-36, a 4M page has 40 bits of address at the most: bits 39:32 in 20:13.
        Paging::TwoLevel if level == 2 && page => bits(21, if m < 40 { m - 19 } else { 21 }),
        Paging::TwoLevel => 0,
        Paging::Pae if level == 2 && page => bits(62, m) | bits(20, 13) | xd,
        Paging::Pae => bits(62, m) | xd,
        Paging::FourLevel | Paging::FiveLevel => {
            let address = bits(51, m) | xd;
            match level {
                5 | 4 => address | PS,
                3 if page => address | bits(29, 13),
                2 if page => address | bits(20, 13),
                _ => address,
            }
        }
    }
}

/// Section 4.4.1, table 4-8: bits of a present PDPTE that make the load of CR3 fault (#GP).
pub fn pdpte_reserved(maxphyaddr: u32, pdpte: u64) -> u64 {
    match pdpte & PRESENT {
        0 => 0,
        _ => pdpte & (bits(63, maxphyaddr) | bits(8, 5) | bits(2, 1)),
    }
}

/// Section 4.6: whether access rights (R/W and U/S: set in every entry; XD: in any) allow it.
fn allowed(regs: &Registers, access: Access, rw: bool, us: bool, xd: bool) -> bool {
    let has = |control| regs.controls.contains(control);
    match (access.who, access.kind) {
        (Who::User, Kind::Read) => us,
        (Who::User, Kind::Write) => us && rw,
        (Who::User, Kind::Fetch) => us && !xd,
        (Who::Supervisor | Who::SupervisorAc, Kind::Fetch) => {
            let smep = us && has(Controls::SMEP);
            !xd && !smep
        }
        (who, kind) => {
            let smap = us && has(Controls::SMAP) && who == Who::Supervisor;
            let wp = kind == Kind::Write && has(Controls::WP) && !rw;
            !smap && !wp
        }
    }
}

/// Section 4.7: the bits that the access alone decides.
pub fn access_code(regs: &Registers, access: Access) -> u32 {
    let wide = regs.paging != Paging::TwoLevel && regs.controls.contains(Controls::NXE);
    let fetch = wide || regs.controls.contains(Controls::SMEP);
    let kind = match access.kind {
        Kind::Read => 0,
        Kind::Write => code::W,
        Kind::Fetch if fetch => code::I,
        Kind::Fetch => 0,
    };
    let who = match access.who {
        Who::User => code::U,
        Who::Supervisor | Who::SupervisorAc => 0,
    };
    kind | who
}

struct Walker<'a, M> {
    memory: &'a M,
    regs: &'a Registers,
    gva: u64,
    access: Access,
}

impl<M: Memory> Walker<'_, M> {
    fn fault(&self, walk: &Walk, bits: u32) -> Walk {
        let end = End::Fault {
            code: bits | access_code(self.regs, self.access),
        };
        Walk { end, ..*walk }
    }

    /// `rights`: the AND of R/W and U/S so far, and the OR of XD.
    fn below(&self, walk: &Walk, table: u64, level: u8, rights: u64, each: &mut dyn FnMut(&Walk)) {
        let paging = self.regs.paging;
        let index = self.gva >> paging.shift(level) & ((1 << paging.index_bits()) - 1);
        let gpa = table + index * paging.entry_bytes() as u64;
        let mut any = false;
        self.memory.entry(gpa, paging.entry_bytes(), &mut |value| {
            any = true;
            let mut walk = *walk;
            walk.entries[walk.depth as usize] = Used { gpa, value };
            walk.depth += 1;
            if value & PRESENT == 0 {
                return each(&self.fault(&walk, 0));
            }
            if value & reserved(self.regs, level, value) != 0 {
                return each(&self.fault(&walk, code::P | code::RSVD));
            }
            let rights = rights & value & (RW | US) | (rights | value) & XD;
            if !maps_page(self.regs, level, value) {
                let address = match paging {
                    Paging::TwoLevel => value & bits(31, 12),
                    _ => value & bits(self.regs.maxphyaddr - 1, 12),
                };
                return self.below(&walk, address, level - 1, rights, each);
            }
            let xd = rights & XD != 0 && paging != Paging::TwoLevel;
            if !allowed(self.regs, self.access, rights & RW != 0, rights & US != 0, xd) {
                return each(&self.fault(&walk, code::P));
            }
            let shift = paging.shift(level);
            let base = match (paging, level) {
                (Paging::TwoLevel, 2) => value & bits(31, 22) | (value & bits(20, 13)) << 19,
                (Paging::TwoLevel, _) => value & bits(31, 12),
                _ => value & bits(self.regs.maxphyaddr - 1, shift),
            };
            let gpa = base | self.gva & bits(shift - 1, 0);
            each(&Walk {
                end: End::Page { gpa },
                ..walk
            });
        });
        if !any {
            let code = access_code(self.regs, self.access);
            let end = End::NoMemory { gpa, code };
            each(&Walk { end, ..*walk });
        }
    }
}

/// Calls `each` with every right walk for `access` to `gva`: one, where `memory` knows one value of each entry.
/// `gva` is canonical, and below 4 GiB in the modes of 32 bits.
pub fn walks(memory: &impl Memory, regs: &Registers, gva: u64, access: Access, each: &mut dyn FnMut(&Walk)) {
    let start = Walk {
        entries: [Used { gpa: 0, value: 0 }; 5],
        depth: 0,
        end: End::Page { gpa: gva },
    };
    let walker = Walker {
        memory,
        regs,
        gva,
        access,
    };
    let all = RW | US;
    match regs.paging {
        Paging::Off => each(&start),
        Paging::TwoLevel => walker.below(&start, regs.cr3 & bits(31, 12), 2, all, each),
        Paging::Pae => {
            let pdpte = regs.pdptes[(gva >> 30 & 3) as usize];
            if pdpte & PRESENT == 0 {
                return each(&walker.fault(&start, 0));
            }
            walker.below(&start, pdpte & bits(regs.maxphyaddr - 1, 12), 2, all, each);
        }
        Paging::FourLevel | Paging::FiveLevel => {
            let table = regs.cr3 & bits(regs.maxphyaddr - 1, 12);
            walker.below(&start, table, regs.paging.top(), all, each);
        }
    }
}

/// The walk, where `memory` knows one value of each entry.
///
/// # Panics
/// It knows several.
pub fn translate(memory: &impl Memory, regs: &Registers, gva: u64, access: Access) -> Walk {
    let mut found = None;
    walks(memory, regs, gva, access, &mut |walk| {
        assert!(found.replace(*walk).is_none(), "the entries have one value each");
    });
    found.expect("every walk ends")
}

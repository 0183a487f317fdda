// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the guest's own tables say about an access? A walk as the processor does it, with its faults and its flags.
//!
//! Accessed and dirty bits: the processor sets A in an entry "whenever it uses the entry as part of a translation", and D
//! in the last one before a write (SDM vol. 3, 5.8). It may set A in upper entries although the walk then faults lower
//! down, and it need not. Here nothing is set unless the whole walk succeeds and allows the access: then A in every entry
//! on the way, and D in the last for a write, by compare-and-exchange, from the top. If an entry is another by then, the
//! walk starts again, as the processor's own would:
//!
//! | this walk                        | another vCPU                |
//! |----------------------------------|-----------------------------|
//! | reads entry: present, A clear    |                             |
//! |                                  | clears P, or changes page   |
//! | compare-and-exchange with A: fails, starts again |             |
//!
//! A table in read-only memory keeps its flags as they are. Where there is no memory at all a read gives all ones, as on
//! a bus without anybody: that is an entry with reserved bits.

use super::gpte::{ACCESSED, DIRTY, GpteFormat, LEVELS, PRESENT, at};
use super::registers::{CR4_SMAP, CR4_SMEP, GuestCpu, GuestMode, Registers};
use crate::fault::ErrorCode;
use crate::role::{PteAccess, Role};
use crate::stage2::GpteSize;
use umbra_mmu_abi::{Gfn, Gpa};

/// The guest's tables as a walk reads and marks them.
pub trait GuestTables {
    /// The entry `offset` bytes into `gfn`; `None` where there is no memory.
    fn read(&self, gfn: Gfn, offset: u16, size: GpteSize) -> Option<u64>;

    /// Sets flags in an entry that was `old`.
    fn mark(&self, gfn: Gfn, offset: u16, size: GpteSize, old: u64, new: u64) -> Marked;
}

/// How setting a flag in a guest's entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It is set.
    Done,
    /// The entry is another one now.
    Changed,
    /// The memory cannot be written: the flag stays clear.
    ReadOnly,
}

/// How one vCPU translates: what its registers come to. Kept, so that a fault need not work it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// The mode.
    pub mode: GuestMode,
    /// The role of its root.
    pub role: Role,
    /// What its entries mean.
    pub format: GpteFormat,
    /// The table that cr3 names; with PAE those that the pdptes name, or `None` for one that is not present.
    pub tables: [Option<Gfn>; 4],
    smep: bool,
    smap: bool,
    /// Error codes tell fetches.
    tells_fetch: bool,
}

impl Paging {
    /// For these registers; `pdptes` count in PAE paging only.
    pub fn new(registers: &Registers, pdptes: &[u64; 4], cpu: &GuestCpu) -> Self {
        let mode = registers.mode();
        let role = registers.root_role();
        let format = GpteFormat::new(role, cpu);
        let one = |gfn| [Some(gfn), None, None, None];
        let tables = match mode {
            GuestMode::None => [None; 4],
            GuestMode::TwoLevel => one(Gfn::new((registers.cr3 & 0xffff_f000) >> 12)),
            GuestMode::Pae => pdptes.map(|pdpte| (pdpte & PRESENT != 0).then(|| format.table(pdpte))),
            GuestMode::FourLevel | GuestMode::FiveLevel => one(format.table(registers.cr3)),
        };
        let smep = mode != GuestMode::None && registers.cr4 & CR4_SMEP != 0;
        Self {
            mode,
            role,
            format,
            tables,
            smep,
            smap: mode != GuestMode::None && registers.cr4 & CR4_SMAP != 0,
            tells_fetch: smep || role.nxe(),
        }
    }

    /// The table at which the walk for `gva` starts.
    #[inline]
    pub fn root(&self, gva: u64) -> Option<Gfn> {
        match self.mode {
            GuestMode::Pae => self.tables[(gva >> 30 & 3) as usize],
            GuestMode::None | GuestMode::TwoLevel | GuestMode::FourLevel | GuestMode::FiveLevel => self.tables[0],
        }
    }

    /// The linear address as it is translated: 32 bits outside of long mode.
    #[inline]
    pub const fn linear(&self, address: u64) -> u64 {
        match self.mode {
            GuestMode::None | GuestMode::TwoLevel | GuestMode::Pae => address & 0xffff_ffff,
            GuestMode::FourLevel | GuestMode::FiveLevel => address,
        }
    }

    /// Whether a chain of entries that allows `access` forbids this one (SDM vol. 3, 5.6).
    // REQ: PF-4
    #[inline(always)]
    pub fn forbids(&self, access: PteAccess, code: ErrorCode) -> bool {
        let lacks = |right| !access.contains(right);
        let user_page = access.contains(PteAccess::USER);
        let write = code.contains(ErrorCode::W);
        let fetch = code.contains(ErrorCode::I) && !write;
        if code.contains(ErrorCode::U) {
            !user_page || write && lacks(PteAccess::WRITE) || fetch && lacks(PteAccess::EXEC)
        } else if fetch {
            lacks(PteAccess::EXEC) || self.smep && user_page
        } else {
            let smap = self.smap && user_page && !code.contains(ErrorCode::AC);
            smap || write && lacks(PteAccess::WRITE) && self.role.cr0_wp()
        }
    }

    /// Whether the supervisor may write where the entries say read-only, and SMAP decides by EFLAGS.AC: no spte of a
    /// user page can say both.
    pub const fn writes_depend_on_ac(&self) -> bool {
        self.smap && !self.role.cr0_wp()
    }

    /// cr4.smep and cr4.smap as hardware must have them.
    pub const fn hardware_cr4(&self) -> u64 {
        (if self.smep { CR4_SMEP } else { 0 }) | if self.smap { CR4_SMAP } else { 0 }
    }

    /// Whether the supervisor may not touch user pages unless EFLAGS.AC is set.
    pub const fn smap(&self) -> bool {
        self.smap
    }

    /// The error code for the guest of an access that faulted with `reason` (SDM vol. 3, 5.7).
    // REQ: PF-1 (d), PF-5
    pub fn error_code(&self, code: ErrorCode, reason: ErrorCode) -> ErrorCode {
        let told = if self.tells_fetch && !code.contains(ErrorCode::W) {
            ErrorCode::I
        } else {
            ErrorCode::empty()
        };
        code & (ErrorCode::W | ErrorCode::U | told) | reason
    }
}

/// What a walk that succeeded found.
#[derive(Clone, Copy, Debug)]
pub struct GuestWalk {
    /// The level at which it started; 0 without paging.
    pub top: u8,
    /// The level of the entry that maps the page.
    pub leaf: u8,
    /// The highest level whose entry has no accessed flag yet; 0: all have it.
    unused: u8,
    /// The table at which it started.
    root: Gfn,
    /// Entries by level, with the flags that are set by now; those outside `leaf..=top` are not used.
    pub gptes: [u64; LEVELS],
    /// What sptes for the page may allow ([`GpteFormat::leaf_access`]).
    pub access: PteAccess,
    /// The 4K frame of the address.
    pub gfn: Gfn,
    /// The address.
    pub gpa: Gpa,
}

impl GuestWalk {
    /// Nothing is known yet.
    pub(super) const NEW: Self = Self {
        top: 0,
        leaf: 0,
        unused: 0,
        root: Gfn::new(0),
        gptes: [0; LEVELS],
        access: PteAccess::ALL,
        gfn: Gfn::new(0),
        gpa: Gpa::new(0),
    };

    /// The guest's table of a level between `leaf` and `top`.
    #[inline]
    pub fn table(&self, level: u8, format: &GpteFormat) -> Gfn {
        match level == self.top {
            true => self.root,
            false => format.table(self.gptes[at(level + 1)]),
        }
    }

    /// What the entries above that table allow.
    pub fn above(&self, level: u8, format: &GpteFormat) -> PteAccess {
        (level + 1..=self.top).fold(PteAccess::ALL, |access, above| {
            access & format.access(self.gptes[at(above)])
        })
    }
}

/// Why a walk did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWalk {
    /// A page fault with this error code.
    Fault(ErrorCode),
    /// The tables change faster than they are read: let the guest try again.
    Retry,
}

/// Walks started again before the guest itself has to.
const RESTARTS: u32 = 8;

/// Translates `gva` for an access that `code` tells (W, U, I and AC), and sets the guest's flags.
///
/// # Errors
/// See [`NoWalk`].
// REQ: PF-1 (c), PF-2
pub fn walk(tables: &impl GuestTables, paging: &Paging, gva: u64, code: ErrorCode) -> Result<GuestWalk, NoWalk> {
    let mut walk = GuestWalk::NEW;
    walk_into(&mut walk, tables, paging, gva, code).map(|()| walk)
}

/// [`walk`], with its result in a place that the caller has.
#[inline]
pub(super) fn walk_into(
    walk: &mut GuestWalk,
    tables: &impl GuestTables,
    paging: &Paging,
    gva: u64,
    code: ErrorCode,
) -> Result<(), NoWalk> {
    for _ in 0..RESTARTS {
        read(walk, tables, paging, gva, code)?;
        if mark(walk, tables, paging, gva, code) {
            return Ok(());
        }
    }
    Err(NoWalk::Retry)
}

/// The walk without setting anything.
#[inline(always)]
fn read(
    walk: &mut GuestWalk,
    tables: &impl GuestTables,
    paging: &Paging,
    gva: u64,
    code: ErrorCode,
) -> Result<(), NoWalk> {
    let fault = |reason| Err(NoWalk::Fault(paging.error_code(code, reason)));
    walk.top = paging.mode.top();
    if paging.mode == GuestMode::None {
        walk.gpa = Gpa::new(gva);
        walk.gfn = walk.gpa.gfn();
        return Ok(());
    }
    let Some(mut table) = paging.root(gva) else {
        return fault(ErrorCode::empty());
    };
    (walk.root, walk.unused) = (table, 0);
    let format = &paging.format;
    let (bits, size) = (format.index_bits(), format.size());
    let mut access = PteAccess::ALL;
    let mut level = walk.top;
    let mut shift = format.shift(level);
    loop {
        let index = (gva >> shift & ((1 << bits) - 1)) as u16;
        let Some(gpte) = tables.read(table, format.offset(index), size) else {
            return fault(ErrorCode::P | ErrorCode::RSVD);
        };
        if gpte & PRESENT == 0 {
            return fault(ErrorCode::empty());
        }
        if format.is_reserved(level, gpte) {
            return fault(ErrorCode::P | ErrorCode::RSVD);
        }
        walk.gptes[at(level)] = gpte;
        if gpte & ACCESSED == 0 {
            walk.unused = walk.unused.max(level);
        }
        let above = access;
        access &= format.access(gpte);
        if format.is_leaf(level, gpte) {
            if paging.forbids(access, code) {
                return fault(ErrorCode::P);
            }
            let into = gva & ((1 << shift) - 1);
            walk.leaf = level;
            walk.gpa = Gpa::new((format.page(level, gpte).raw() << 12) | into);
            walk.gfn = walk.gpa.gfn();
            let after = if code.contains(ErrorCode::W) {
                gpte | DIRTY
            } else {
                gpte
            };
            walk.access = format.leaf_access(above, after);
            return Ok(());
        }
        table = format.table(gpte);
        level -= 1;
        shift -= bits;
    }
}

/// Sets A on the way and D at its end; `false`: the tables have changed.
#[inline(always)]
fn mark(walk: &mut GuestWalk, tables: &impl GuestTables, paging: &Paging, gva: u64, code: ErrorCode) -> bool {
    let format = &paging.format;
    let leaf = walk.gptes[at(walk.leaf)];
    let dirty = if code.contains(ErrorCode::W) { DIRTY } else { 0 };
    if walk.top == 0 || walk.unused == 0 && leaf | dirty == leaf {
        return true;
    }
    for level in (walk.leaf..=walk.unused.max(walk.leaf)).rev() {
        let old = walk.gptes[at(level)];
        let new = old | ACCESSED | if level == walk.leaf { dirty } else { 0 };
        if new == old {
            continue;
        }
        let offset = format.offset(format.index(level, gva));
        match tables.mark(walk.table(level, format), offset, format.size(), old, new) {
            Marked::Done => walk.gptes[at(level)] = new,
            Marked::Changed => return false,
            // The write itself is allowed all the same.
            Marked::ReadOnly => {}
        }
    }
    true
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a processor walk paging structures? In every mode, with the accessed and dirty flags it sets.
//!
//! [`walk`] is a function of its arguments and of what it reads and changes through [`Memory`]: the same for guest tables
//! in guest-physical memory (each access of which an EPT may refuse) and for tables in host memory.

use super::paging::{ACCESSED, Access, AccessedFlags, Allowed, DIRTY, GLOBAL, PRESENT, Paging, PagingMode};
use crate::fault::ErrorCode;
use crate::stage2::GpteSize;
use umbra_mmu_abi as abi;

/// Physical memory as the walker accesses it.
pub trait Memory {
    /// Why an access was not possible. [`core::convert::Infallible`] for memory that is all there.
    type Refused;

    /// Reads the entry at a physical address.
    ///
    /// # Errors
    /// There is no memory to read there.
    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Self::Refused>;

    /// Replaces the entry at a physical address by `new` if it still is `old`, in one access; tells whether it was.
    ///
    /// # Errors
    /// There is no memory to write there.
    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Self::Refused>;
}

/// Where a walk goes on below an entry: what a paging-structure cache keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// The address of the next table.
    pub table: u64,
    /// What the entries so far allow.
    pub allowed: Allowed,
}

/// Paging-structure caches (section 4.10.3).
pub trait StructureCaches {
    /// The lowest table for `gva` that is known, and its level.
    fn lookup(&mut self, gva: u64, mode: PagingMode) -> Option<(u8, Below)>;
    /// The entry at `level` for `gva` was used by a walk that translated, with its accessed flag set.
    fn fill(&mut self, gva: u64, mode: PagingMode, level: u8, below: Below);
}

/// A processor without paging-structure caches.
#[derive(Clone, Copy, Debug)]
pub struct NoCaches;

impl StructureCaches for NoCaches {
    fn lookup(&mut self, _: u64, _: PagingMode) -> Option<(u8, Below)> {
        None
    }
    fn fill(&mut self, _: u64, _: PagingMode, _: u8, _: Below) {}
}

/// What a walk found, as a TLB keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub address: u64,
    /// log2 of the page's bytes.
    pub shift: u32,
    /// What all entries allow together.
    pub allowed: Allowed,
    /// The dirty flag of the entry that maps the page is set.
    pub dirty: bool,
    /// The page is a global one (section 4.10.2.4).
    pub global: bool,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<R> {
    /// A page fault with this error code; CR2 is the address.
    PageFault(ErrorCode),
    /// Memory refused an access of the walk itself.
    Refused(R),
}

#[derive(Clone, Copy)]
struct Used {
    at: u64,
    entry: u64,
    below: Below,
}

/// What another agent's change of an entry under a walk leads to: the walk begins again.
enum Step<R> {
    Again,
    Error(WalkError<R>),
}

impl<R> From<R> for Step<R> {
    fn from(refused: R) -> Self {
        Self::Error(WalkError::Refused(refused))
    }
}

/// Translates `gva` for `access`, and sets the flags that an access through the translation sets: accessed flags in
/// every entry used, the dirty flag on a write. `gva` is canonical, and below 4 GiB in modes of 32 bits.
///
/// # Errors
/// The page fault, or the access to the tables that was refused (some accessed flags may then be set).
pub fn walk<M: Memory>(
    memory: &mut M,
    caches: &mut impl StructureCaches,
    paging: &Paging,
    gva: u64,
    access: Access,
) -> Result<Translation, WalkError<M::Refused>> {
    if paging.mode == PagingMode::None {
        return Ok(Translation {
            address: gva,
            shift: 12,
            allowed: Allowed::all(),
            dirty: true,
            global: false,
        });
    }
    loop {
        match attempt(memory, caches, paging, gva, access) {
            Ok(translation) => return Ok(translation),
            Err(Step::Again) => {}
            Err(Step::Error(error)) => return Err(error),
        }
    }
}

/// The table that the walk begins with, and its level.
fn start(paging: &Paging, caches: &mut impl StructureCaches, gva: u64) -> Option<(u8, Below)> {
    if let Some(known) = caches.lookup(gva, paging.mode) {
        return Some(known);
    }
    let table = match paging.mode {
        PagingMode::Pae => {
            let pdpte = paging.pdptes[(gva >> 30) as usize & 3];
            (pdpte & PRESENT != 0).then(|| paging.address(pdpte, 12))?
        }
        PagingMode::None | PagingMode::TwoLevel | PagingMode::FourLevel | PagingMode::FiveLevel => paging.root,
    };
    let allowed = Allowed::all();
    Some((paging.mode.top(), Below { table, allowed }))
}

fn attempt<M: Memory>(
    memory: &mut M,
    caches: &mut impl StructureCaches,
    paging: &Paging,
    gva: u64,
    access: Access,
) -> Result<Translation, Step<M::Refused>> {
    let fault = |code| Err(Step::Error(WalkError::PageFault(paging.access_code(access) | code)));
    let mode = paging.mode;
    let size = match mode {
        PagingMode::TwoLevel => GpteSize::B4,
        PagingMode::None | PagingMode::Pae | PagingMode::FourLevel | PagingMode::FiveLevel => GpteSize::B8,
    };
    let Some((top, mut below)) = start(paging, caches, gva) else {
        return fault(ErrorCode::empty());
    };
    let mut used = [const { None }; 6];
    let mut level = top;
    let (shift, leaf) = loop {
        let shift = mode.shift(level);
        let index = gva >> shift & (4096 / mode.entry() - 1);
        let at = below.table + index * mode.entry();
        let mut entry = memory.read(at, size)?;
        if entry & PRESENT == 0 {
            return fault(ErrorCode::empty());
        }
        if entry & paging.reserved(level, entry) != 0 {
            return fault(ErrorCode::P | ErrorCode::RSVD);
        }
        if paging.model.accessed == AccessedFlags::AsWalked {
            entry = set_flags(memory, size, at, entry, ACCESSED)?;
        }
        below.allowed &= paging.allowed(entry);
        let leaf = paging.is_leaf(level, entry);
        if !leaf {
            below.table = paging.address(entry, 12);
        }
        used[level as usize] = Some(Used { at, entry, below });
        if leaf {
            break (shift, entry);
        }
        level -= 1;
    };
    if !paging.permits(below.allowed, access) {
        return fault(ErrorCode::P);
    }
    let mut last = leaf;
    for upper in (level..=top).rev() {
        let Used { at, entry, .. } = used[upper as usize].expect("the walk came by here");
        let flags = match access.kind {
            abi::Access::Write if upper == level => ACCESSED | DIRTY,
            abi::Access::Write | abi::Access::Read | abi::Access::Fetch => ACCESSED,
        };
        last = set_flags(memory, size, at, entry, flags)?;
    }
    for upper in level + 1..=top {
        let below = used[upper as usize].expect("the walk came by here").below;
        caches.fill(gva, mode, upper, below);
    }
    Ok(Translation {
        address: paging.address(leaf, shift) | gva & ((1 << shift) - 1),
        shift,
        allowed: below.allowed,
        dirty: last & DIRTY != 0,
        global: paging.global && leaf & GLOBAL != 0,
    })
}

/// Sets flags in an entry, atomically against everyone else who changes it.
fn set_flags<M: Memory>(
    memory: &mut M,
    size: GpteSize,
    at: u64,
    entry: u64,
    flags: u64,
) -> Result<u64, Step<M::Refused>> {
    let new = entry | flags;
    if new != entry && !memory.compare_exchange(at, size, entry, new)? {
        return Err(Step::Again);
    }
    Ok(new)
}

/// Reads the four PDPTE registers of PAE paging, as a load of CR3 does (section 4.4.1); none where a present one sets a
/// reserved bit, which is #GP.
///
/// # Errors
/// Memory refused a read.
pub fn load_pdptes<M: Memory>(memory: &mut M, paging: &Paging) -> Result<Option<[u64; 4]>, M::Refused> {
    let mut pdptes = [0; 4];
    for (index, pdpte) in pdptes.iter_mut().enumerate() {
        *pdpte = memory.read(paging.root + index as u64 * 8, GpteSize::B8)?;
        if *pdpte & PRESENT != 0 && *pdpte & paging.pdpte_reserved() != 0 {
            return Ok(None);
        }
    }
    Ok(Some(pdptes))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the vmm may ask of the mmu, and what it answers.

use crate::{Gfn, Gpa};
use core::fmt;

/// What the guest did when it faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write (a read-modify-write counts as one).
    Write,
    /// An instruction fetch.
    Fetch,
}

impl Access {
    /// Every access.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Fetch];
}

/// A memslot's number, chosen by the vmm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u16);

/// A range of frames that the root task gave to the mmu component, by its index in the mmu's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackingId(pub u16);

/// Where a slot's frames come from: `first_page` 4K pages into backing `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backing {
    /// Which range.
    pub id: BackingId,
    /// Offset into it, in 4K pages.
    pub first_page: u32,
}

bitflags::bitflags! {
    /// Memslot flags (KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct SlotFlags: u8 {
        /// Writes are logged page by page.
        const LOG_DIRTY = 1 << 0;
        /// Writes are MMIO exits; reads run at full speed.
        const READONLY = 1 << 1;
    }
}

/// Width of a [`Generation`].
pub const GENERATION_BITS: u32 = 19;

/// The memslot generation as MMIO sptes carry it: [`GENERATION_BITS`] bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

/// A request to the mmu component; at most four words on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The guest accessed `gpa` and the processor reported an EPT violation.
    Fault {
        /// Faulting address.
        gpa: Gpa,
        /// What it tried.
        access: Access,
    },
    /// Creates, moves, re-flags or (with `npages` 0) deletes a memslot.
    SetSlot {
        /// Which slot.
        id: SlotId,
        /// First guest frame.
        base: Gfn,
        /// Length in 4K pages; 0 deletes.
        npages: u32,
        /// Where the frames come from.
        backing: Backing,
        /// Flags.
        flags: SlotFlags,
    },
    /// Invalidates all mappings by generation (ZAP-1).
    ZapAll,
    /// Compares sptes, reverse maps and capabilities.
    Audit,
    /// Reads one counter.
    Stat(Stat),
}

/// Counters of the mmu component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stat {
    /// Faults answered with `Resume`.
    Resumed = 0,
    /// Faults answered with `Emulate`.
    Emulated = 1,
    /// Leaf mappings of 4K now in place.
    Mapped4K = 2,
    /// Leaf mappings of 2M now in place.
    Mapped2M = 3,
    /// How often the MMIO generation wrapped.
    GenerationWraps = 4,
    /// How often everything was zapped.
    ZapAlls = 5,
}

impl Stat {
    /// Every counter.
    pub const ALL: [Self; 6] = [
        Self::Resumed,
        Self::Emulated,
        Self::Mapped4K,
        Self::Mapped2M,
        Self::GenerationWraps,
        Self::ZapAlls,
    ];
}

/// Where the guest must be emulated: the content of an MMIO spte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mmio {
    /// The frame, without a writable slot behind it.
    pub gfn: Gfn,
    /// The generation at which this is known; stale once the table of slots has another.
    pub generation: Generation,
    /// Reads are served by memory (a read-only slot); only writes are MMIO.
    pub readonly_slot: bool,
}

/// What the vmm does after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The mapping is in place: enter the guest again.
    Resume,
    /// No memory there: emulate the instruction.
    Emulate(Mmio),
}

/// Why a slot change was refused; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotError {
    /// EEXIST: it overlaps another slot.
    Overlap = 1,
    /// EINVAL: unaligned, wrapping, beyond the address width or of no valid flags.
    Invalid = 2,
    /// ENOENT: no such slot to delete, or no such backing.
    NoEntry = 3,
    /// ENOSPC: table full, or the backing is shorter than the slot.
    NoSpace = 4,
    /// EBUSY: the backing is already in use under other rights.
    Busy = 5,
}

impl SlotError {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Overlap, Self::Invalid, Self::NoEntry, Self::NoSpace, Self::Busy];
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlap => "overlaps another slot",
            Self::Invalid => "unaligned, wrapping, beyond the address width, or of no valid flags",
            Self::NoEntry => "no such slot or backing",
            Self::NoSpace => "table of slots full, or the backing is shorter than the slot",
            Self::Busy => "the backing is in use under other rights",
        })
    }
}

impl core::error::Error for SlotError {}

/// The answer to a request; at most four words on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To `Fault`.
    Fault(FaultOutcome),
    /// To `SetSlot` and `ZapAll`: done, with the memslot generation from now on.
    Changed(Generation),
    /// To `SetSlot`: refused.
    Refused(SlotError),
    /// To `Audit`: how many leaf mappings were compared, and how many differed (0 is right).
    Audited {
        /// Compared.
        leaves: u32,
        /// Different in any of the three views.
        differences: u32,
    },
    /// To `Stat`.
    Stat(u64),
    /// The mmu ran out of objects or slots, or the request was malformed; the detail is in its log.
    Failed,
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a 64-bit shadow page table entry say? One kind per bit pattern, or it is refused.
//!
//! The kinds are the same for every table; the bits are those of a [`Format`]: the mirror of an EPT ([`ept`]), or an x86
//! page table that hardware walks ([`shadow`]).

pub mod ept;
pub mod shadow;

use crate::generation::GENERATION_MAX;
use crate::stage2::{Frame, GuestAccess};
use crate::table::TableId;
pub use shadow::ShadowLayout;
use umbra_mmu_abi::{GENERATION_BITS, Generation, Gfn, PageLevel};

// What both formats have at the same place.
const LARGE: u64 = 1 << 7;
const ADDRESS_SHIFT: u32 = 12;
const MMIO_WRITE: u64 = 1 << 1;
const MMIO_USER: u64 = 1 << 2;
const MMIO_TAG: u64 = 0b11 << 62;
const GENERATION_LOW_BITS: u32 = 9;
const GENERATION_LOW_SHIFT: u32 = 3;
const GENERATION_HIGH_SHIFT: u32 = 52;
const GENERATION_LOW: u64 = ((1 << GENERATION_LOW_BITS) - 1) << GENERATION_LOW_SHIFT;
const GENERATION_HIGH: u64 = ((1 << (GENERATION_BITS - GENERATION_LOW_BITS)) - 1) << GENERATION_HIGH_SHIFT;

const _: () = assert!(GENERATION_LOW & GENERATION_HIGH == 0);

/// Whose bits a word has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The mirror of an EPT: hardware never sees the words.
    Ept,
    /// x86 page tables, at these addresses.
    Shadow(ShadowLayout),
}

bitflags::bitflags! {
    /// What a leaf allows beside reads and, where [`Writable`] says so, writes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// User mode.
        const USER = 1 << 0;
        /// Instruction fetches.
        const EXEC = 1 << 1;
        /// Both; the only value of an EPT mirror.
        const ALL = Self::USER.bits() | Self::EXEC.bits();
    }
}

/// Whether, and through whom, a present leaf can be written. The order is the implication
/// WRITE ⇒ MMU_WRITABLE ⇒ HOST_WRITABLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writable {
    /// The slot is read-only: a write is an MMIO-style exit.
    HostReadOnly,
    /// Write-protected by the MMU: a write needs the slow path.
    Protected,
    /// W is clear, and a fault may set it again without the lock (DT-2).
    Restorable,
    /// W is set.
    Now,
}

impl Writable {
    /// Every state, in order.
    pub const ALL: [Self; 4] = [Self::HostReadOnly, Self::Protected, Self::Restorable, Self::Now];
}

/// A leaf that maps a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first 4K frame that it maps.
    pub frame: Frame,
    /// Its size.
    pub level: PageLevel,
    /// Its W bit and who may set it.
    pub writable: Writable,
    /// What else it allows.
    pub rights: Rights,
}

impl Leaf {
    /// What hardware lets the guest do.
    pub const fn access(&self) -> GuestAccess {
        match self.writable {
            Writable::HostReadOnly | Writable::Protected | Writable::Restorable => GuestAccess::ReadExec,
            Writable::Now => GuestAccess::All,
        }
    }
}

/// The guest access that an MMIO spte caches beside the gfn (reads are always part of it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioAccess {
    /// Supervisor reads.
    Read,
    /// Supervisor reads and writes.
    Write,
    /// Reads, also of user mode.
    User,
    /// Everything; the only one in EPT mode.
    All,
}

impl MmioAccess {
    /// Every access.
    pub const ALL_KINDS: [Self; 4] = [Self::Read, Self::Write, Self::User, Self::All];

    const fn bits(self) -> u64 {
        match self {
            Self::Read => 0,
            Self::Write => MMIO_WRITE,
            Self::User => MMIO_USER,
            Self::All => MMIO_WRITE | MMIO_USER,
        }
    }
}

/// A cached "there is no memory here" (GEN-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSpte {
    /// The frame that was accessed.
    pub gfn: Gfn,
    /// What the guest may do there.
    pub access: MmioAccess,
    /// The memslot generation at which it was true.
    pub generation: Generation,
}

/// What an spte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpteKind {
    /// Nothing is known.
    Empty,
    /// The next lower table.
    Table(TableId),
    /// A present mapping.
    Leaf(Leaf),
    /// A mapping made not present to see the next access (AT-1).
    AccessTracked(Leaf),
    /// No memory here.
    Mmio(MmioSpte),
}

/// A word that is no spte at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSpte(pub u64);

/// One entry of a table, as the word that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Spte(u64);

impl Spte {
    /// Nothing is known.
    pub const EMPTY: Self = Self(0);

    /// The word; for tables and printing.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// A word out of a table; [`Spte::decode`] says whether it is one.
    pub const fn from_raw(word: u64) -> Self {
        Self(word)
    }

    /// Points at a table.
    #[inline]
    pub const fn table(format: Format, id: TableId) -> Self {
        match format {
            Format::Ept => ept::table(id),
            Format::Shadow(layout) => shadow::table(&layout, id),
        }
    }

    /// Maps a frame.
    #[inline]
    pub const fn leaf(format: Format, leaf: Leaf) -> Self {
        match format {
            Format::Ept => ept::leaf(leaf),
            Format::Shadow(layout) => shadow::leaf(&layout, leaf),
        }
    }

    /// Keeps R and X of an EPT leaf aside so that the next access faults; W is not kept (AT-1). Tables that hardware
    /// walks have accessed bits instead.
    #[inline]
    pub const fn access_tracked(leaf: Leaf) -> Self {
        ept::access_tracked(leaf)
    }

    /// Caches the absence of memory.
    // REQ: GEN-1, GEN-2
    #[inline]
    pub const fn mmio(format: Format, mmio: MmioSpte) -> Self {
        debug_assert!(mmio.generation.0 <= GENERATION_MAX);
        match format {
            Format::Ept => ept::mmio(mmio),
            Format::Shadow(_) => shadow::mmio(mmio),
        }
    }

    /// Whether this is an entry at all; cheap.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it maps a frame, now or after an access; cheap, for words that this crate wrote.
    #[inline]
    pub(crate) const fn is_frame(self, format: Format) -> bool {
        match format {
            Format::Ept => ept::is_frame(self.0),
            Format::Shadow(_) => shadow::is_frame(self.0),
        }
    }

    /// Whether it caches the absence of memory; cheap, for words that this crate wrote.
    #[inline]
    pub(crate) const fn is_mmio(self, format: Format) -> bool {
        match format {
            Format::Ept => self.0 & MMIO_TAG == MMIO_TAG,
            Format::Shadow(_) => shadow::is_mmio(self.0),
        }
    }

    /// The table that a walk goes on to, if any; cheap, for words that this crate wrote.
    #[inline]
    pub(crate) const fn peek_table(self, format: Format) -> Option<TableId> {
        match format {
            Format::Ept => ept::peek_table(self.0),
            Format::Shadow(layout) => shadow::peek_table(&layout, self.0),
        }
    }

    /// What it says in a table of `table_level` (1: lowest).
    ///
    /// # Errors
    /// A word that none of the constructors makes for that level (nor the processor of such a one, by its A and D bits).
    pub fn decode(self, format: Format, table_level: u8) -> Result<SpteKind, BadSpte> {
        let kind = self.peek(format, table_level)?;
        let (canonical, volatile) = match kind {
            SpteKind::Empty => (Self::EMPTY, 0),
            SpteKind::Table(id) => (Self::table(format, id), 0),
            SpteKind::Leaf(leaf) => (Self::leaf(format, leaf), Self::volatile(format)),
            SpteKind::AccessTracked(leaf) => (Self::access_tracked(leaf), 0),
            SpteKind::Mmio(mmio) => (Self::mmio(format, mmio), 0),
        };
        // Any bit that the kind has no place for makes the word foreign.
        if canonical.0 == self.0 & !volatile {
            Ok(kind)
        } else {
            Err(BadSpte(self.0))
        }
    }

    /// The same without a look at the bits that the kind has no place for: for words that this crate wrote.
    #[inline]
    pub(crate) fn peek(self, format: Format, table_level: u8) -> Result<SpteKind, BadSpte> {
        match format {
            Format::Ept => ept::peek(self.0, table_level),
            Format::Shadow(layout) => shadow::peek(&layout, self.0, table_level),
        }
    }

    /// The bits of a leaf that the processor changes by itself: results are taken from the word that an exchange gave
    /// back (DT-3), and a leaf is the same leaf with and without them.
    // REQ: DT-3
    const fn volatile(format: Format) -> u64 {
        match format {
            Format::Ept => 0,
            Format::Shadow(_) => shadow::ACCESSED | shadow::DIRTY,
        }
    }

    /// The bits that a leaf loses when `left` is the most that stays of its W.
    #[inline]
    pub(crate) const fn above(format: Format, left: Writable) -> u64 {
        let (now, left) = match format {
            Format::Ept => (ept::writable_bits(Writable::Now), ept::writable_bits(left)),
            Format::Shadow(_) => (shadow::writable_bits(Writable::Now), shadow::writable_bits(left)),
        };
        now & !left
    }

    /// Whether a word of an EPT mirror is a leaf that is present; cheap.
    #[inline(always)]
    pub(crate) const fn is_leaf(self) -> bool {
        ept::is_leaf(self.0)
    }

    /// What a word of an EPT mirror says that is known to be a leaf, of this size.
    #[inline(always)]
    pub(crate) const fn known_leaf(self, level: PageLevel) -> Leaf {
        ept::known_leaf(self.0, level)
    }

    /// The same leaf with W, if it is one of an EPT mirror whose W may be set again without the lock; cheap.
    // REQ: DT-2
    #[inline(always)]
    pub(crate) const fn with_write_restored(self) -> Option<Self> {
        match ept::may_restore_write(self.0) {
            true => Some(Self(self.0 | Self::WRITE)),
            false => None,
        }
    }

    /// W of a leaf, in both formats.
    pub(crate) const WRITE: u64 = shadow::WRITE;

    /// Whether a leaf has W.
    #[inline]
    pub(crate) const fn has_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// The same leaf without W.
    #[inline]
    pub(crate) const fn without_write(self) -> Self {
        Self(self.0 & !Self::WRITE)
    }

    /// The accessed bit of a leaf of a table that hardware walks.
    pub(crate) const ACCESSED: u64 = shadow::ACCESSED;

    /// Whether the processor has used a leaf of a table that hardware walks since its accessed bit was cleared last; its
    /// dirty bit says nothing of that.
    #[inline]
    pub(crate) const fn is_accessed(self) -> bool {
        self.0 & Self::ACCESSED != 0
    }

    /// What the processor did through a leaf that hardware walks since the leaf was written.
    #[inline]
    pub const fn touched(self) -> Touched {
        match (self.0 & shadow::ACCESSED != 0, self.0 & shadow::DIRTY != 0) {
            (_, true) => Touched::Written,
            (true, false) => Touched::Read,
            (false, false) => Touched::Not,
        }
    }

    /// The same leaf of a table that hardware walks, as if the processor had not used it yet.
    #[inline]
    pub const fn untouched(self) -> Self {
        Self(self.0 & !(shadow::ACCESSED | shadow::DIRTY))
    }

    /// The same leaf of a table that hardware walks, with its accessed and dirty bits as in `old`.
    #[inline]
    pub const fn touched_like(self, old: Self) -> Self {
        Self(self.0 | old.0 & (shadow::ACCESSED | shadow::DIRTY))
    }
}

/// How far the processor has used a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// Never.
    Not,
    /// Its accessed bit is set.
    Read,
    /// Its dirty bit is set.
    Written,
}

const fn large_bit(level: PageLevel) -> u64 {
    match level {
        PageLevel::K4 => 0,
        PageLevel::M2 | PageLevel::G1 => LARGE,
    }
}

fn page_level(word: u64, table_level: u8) -> Result<PageLevel, BadSpte> {
    match (word & LARGE != 0, table_level) {
        (false, 1) => Ok(PageLevel::K4),
        (true, 2) => Ok(PageLevel::M2),
        (true, 3) => Ok(PageLevel::G1),
        _ => Err(BadSpte(word)),
    }
}

/// Access and generation of an MMIO spte.
const fn mmio_fields(mmio: &MmioSpte) -> u64 {
    let generation = mmio.generation.0 as u64;
    let low = generation << GENERATION_LOW_SHIFT & GENERATION_LOW;
    let high = generation >> GENERATION_LOW_BITS << GENERATION_HIGH_SHIFT;
    high | low | mmio.access.bits()
}

fn peek_mmio_fields(word: u64, gfn: Gfn) -> MmioSpte {
    let low = (word & GENERATION_LOW) >> GENERATION_LOW_SHIFT;
    let high = (word & GENERATION_HIGH) >> GENERATION_HIGH_SHIFT;
    let access = match word & (MMIO_WRITE | MMIO_USER) {
        0 => MmioAccess::Read,
        MMIO_WRITE => MmioAccess::Write,
        MMIO_USER => MmioAccess::User,
        _ => MmioAccess::All,
    };
    MmioSpte {
        gfn,
        access,
        generation: Generation((high << GENERATION_LOW_BITS | low) as u32),
    }
}

impl core::fmt::Debug for Spte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Spte({:#018x})", self.0)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a 64-bit shadow page table entry say? One kind per bit pattern, or it is refused.
//!
//! | bits    | table | leaf                        | access-tracked leaf | MMIO                        |
//! |---------|-------|-----------------------------|---------------------|-----------------------------|
//! | 0       | 1     | 1 (R)                       | 0                   | 0                           |
//! | 1       | 1     | W                           | 0                   | access: write               |
//! | 2       | 1     | 1 (X)                       | 0                   | access: user                |
//! | 3..=11  | 0     | bit 7: large (2M), others 0 | as leaf             | generation, low 9 bits      |
//! | 12..=51 | table | frame                       | frame               | gfn                         |
//! | 52..=61 | 0     | 52: no A/D bits             | 52: no A/D bits     | generation, high 10 bits    |
//! |         |       | 57: host-writable           | 54, 56: saved R, X  |                             |
//! |         |       | 58: MMU-writable            | 57, 58 as leaf      |                             |
//! | 62, 63  | 0 0   | 0 0                         | 1 0                 | 1 1                         |
//!
//! Where a table is walked by hardware its MMIO sptes need reserved bits in the places that the paging mode has; in EPT
//! mode hardware never sees these words, and bit 0 clear is enough for the tag.

use crate::generation::GENERATION_MAX;
use crate::stage2::{Frame, GuestAccess};
use crate::table::TableId;
use umbra_mmu_abi::{GENERATION_BITS, Generation, Gfn, PageLevel};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS_SHIFT: u32 = 12;
const ADDRESS: u64 = ((1 << 40) - 1) << ADDRESS_SHIFT;
/// The leaf is of a kind without accessed and dirty bits.
const AD_DISABLED: u64 = 1 << 52;
const SAVED_READ: u64 = 1 << 54;
const SAVED_EXEC: u64 = 1 << 56;
const HOST_WRITABLE: u64 = 1 << 57;
const MMU_WRITABLE: u64 = 1 << 58;
const SPECIAL: u64 = 1 << 62;
const TAG: u64 = 0b11 << 62;

const GENERATION_LOW_BITS: u32 = 9;
const GENERATION_LOW_SHIFT: u32 = 3;
const GENERATION_HIGH_SHIFT: u32 = 52;
const GENERATION_LOW: u64 = ((1 << GENERATION_LOW_BITS) - 1) << GENERATION_LOW_SHIFT;
const GENERATION_HIGH: u64 = ((1 << (GENERATION_BITS - GENERATION_LOW_BITS)) - 1) << GENERATION_HIGH_SHIFT;

// REQ: GEN-2: the four fields of an MMIO spte share no bit.
const _: () = assert!(GENERATION_LOW & GENERATION_HIGH == 0);
const _: () = assert!((GENERATION_LOW | GENERATION_HIGH) & (ADDRESS | TAG | READ | WRITE | EXEC) == 0);
const _: () = assert!(ADDRESS & (TAG | READ | WRITE | EXEC | LARGE | AD_DISABLED) == 0);
const _: () = assert!((SAVED_READ | SAVED_EXEC) & (HOST_WRITABLE | MMU_WRITABLE | AD_DISABLED) == 0);

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

    const fn bits(self) -> u64 {
        match self {
            Self::HostReadOnly => 0,
            Self::Protected => HOST_WRITABLE,
            Self::Restorable => HOST_WRITABLE | MMU_WRITABLE,
            Self::Now => HOST_WRITABLE | MMU_WRITABLE | WRITE,
        }
    }

    fn of(word: u64) -> Result<Self, BadSpte> {
        const PROTECTED: u64 = Writable::Protected.bits();
        const RESTORABLE: u64 = Writable::Restorable.bits();
        const NOW: u64 = Writable::Now.bits();
        match word & NOW {
            0 => Ok(Self::HostReadOnly),
            PROTECTED => Ok(Self::Protected),
            RESTORABLE => Ok(Self::Restorable),
            NOW => Ok(Self::Now),
            _ => Err(BadSpte(word)),
        }
    }
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
            Self::Write => WRITE,
            Self::User => EXEC,
            Self::All => WRITE | EXEC,
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
    pub const fn table(id: TableId) -> Self {
        Self((id.raw() as u64) << ADDRESS_SHIFT | READ | WRITE | EXEC)
    }

    /// Maps a frame.
    pub const fn leaf(leaf: Leaf) -> Self {
        Self(Self::frame_bits(&leaf) | leaf.writable.bits() | READ | EXEC)
    }

    /// Keeps R and X aside so that the next access faults; W is not kept (AT-1).
    pub const fn access_tracked(leaf: Leaf) -> Self {
        let writable = leaf.writable.bits() & !WRITE;
        Self(Self::frame_bits(&leaf) | writable | SAVED_READ | SAVED_EXEC | SPECIAL)
    }

    const fn frame_bits(leaf: &Leaf) -> u64 {
        let large = match leaf.level {
            PageLevel::K4 => 0,
            PageLevel::M2 | PageLevel::G1 => LARGE,
        };
        leaf.frame.raw() << ADDRESS_SHIFT | large | AD_DISABLED
    }

    /// Caches the absence of memory.
    // REQ: GEN-1, GEN-2
    pub const fn mmio(mmio: MmioSpte) -> Self {
        debug_assert!(mmio.gfn.raw() < 1 << 40 && mmio.generation.0 <= GENERATION_MAX);
        let generation = mmio.generation.0 as u64;
        let low = generation << GENERATION_LOW_SHIFT & GENERATION_LOW;
        let high = generation >> GENERATION_LOW_BITS << GENERATION_HIGH_SHIFT;
        Self(TAG | high | mmio.gfn.raw() << ADDRESS_SHIFT | low | mmio.access.bits())
    }

    /// Whether this is an entry at all; cheap.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it maps a frame, now or after an access; cheap, for words that this crate wrote.
    pub(crate) const fn is_frame(self) -> bool {
        // Of the kinds that bit 52 is set in, only the MMIO spte has both tag bits.
        self.0 & AD_DISABLED != 0 && self.0 & TAG != TAG
    }

    /// The table that a walk goes on to, if any; cheap, for words that this crate wrote.
    pub(crate) const fn peek_table(self) -> Option<TableId> {
        match self.0 & (TAG | AD_DISABLED | READ) == READ {
            true => Some(TableId::from_raw((self.0 >> ADDRESS_SHIFT) as u32)),
            false => None,
        }
    }

    /// What it says in a table of `table_level` (1: lowest).
    ///
    /// # Errors
    /// A word that none of the constructors makes for that level.
    pub fn decode(self, table_level: u8) -> Result<SpteKind, BadSpte> {
        let kind = self.peek(table_level)?;
        let canonical = match kind {
            SpteKind::Empty => Self::EMPTY,
            SpteKind::Table(id) => Self::table(id),
            SpteKind::Leaf(leaf) => Self::leaf(leaf),
            SpteKind::AccessTracked(leaf) => Self::access_tracked(leaf),
            SpteKind::Mmio(mmio) => Self::mmio(mmio),
        };
        // Any bit that the kind has no place for makes the word foreign.
        if canonical == self {
            Ok(kind)
        } else {
            Err(BadSpte(self.0))
        }
    }

    /// The same without a look at the bits that the kind has no place for: for words that this crate wrote.
    #[inline]
    pub(crate) fn peek(self, table_level: u8) -> Result<SpteKind, BadSpte> {
        let word = self.0;
        match word & TAG {
            0 if word == 0 => Ok(SpteKind::Empty),
            0 if word & AD_DISABLED != 0 => Ok(SpteKind::Leaf(self.frame(table_level, Writable::of(word)?)?)),
            0 => match u32::try_from((word & ADDRESS) >> ADDRESS_SHIFT) {
                Ok(id) if table_level > 1 => Ok(SpteKind::Table(TableId::from_raw(id))),
                Ok(_) | Err(_) => Err(BadSpte(word)),
            },
            SPECIAL => Ok(SpteKind::AccessTracked(self.frame(table_level, Writable::of(word)?)?)),
            TAG if table_level == 1 => Ok(SpteKind::Mmio(self.peek_mmio())),
            _ => Err(BadSpte(word)),
        }
    }

    fn frame(self, table_level: u8, writable: Writable) -> Result<Leaf, BadSpte> {
        let level = match (self.0 & LARGE != 0, table_level) {
            (false, 1) => PageLevel::K4,
            (true, 2) => PageLevel::M2,
            (true, 3) => PageLevel::G1,
            _ => return Err(BadSpte(self.0)),
        };
        Ok(Leaf {
            frame: Frame::from_raw((self.0 & ADDRESS) >> ADDRESS_SHIFT),
            level,
            writable,
        })
    }

    /// The MMIO fields, of a word whose tag says that it has them.
    fn peek_mmio(self) -> MmioSpte {
        let low = (self.0 & GENERATION_LOW) >> GENERATION_LOW_SHIFT;
        let high = (self.0 & GENERATION_HIGH) >> GENERATION_HIGH_SHIFT;
        let access = match self.0 & (WRITE | EXEC) {
            0 => MmioAccess::Read,
            WRITE => MmioAccess::Write,
            EXEC => MmioAccess::User,
            _ => MmioAccess::All,
        };
        MmioSpte {
            gfn: Gfn::new((self.0 & ADDRESS) >> ADDRESS_SHIFT),
            access,
            generation: Generation((high << GENERATION_LOW_BITS | low) as u32),
        }
    }
}

impl core::fmt::Debug for Spte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Spte({:#018x})", self.0)
    }
}

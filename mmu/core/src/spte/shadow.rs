// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which bits does an spte have that hardware walks? An x86 page table entry of the 8-byte formats.
//!
//! | bits    | table           | leaf                       | MMIO                                        |
//! |---------|-----------------|----------------------------|---------------------------------------------|
//! | 0       | 1 (P)           | 1 (P)                      | 1 (P)                                       |
//! | 1       | 1 (W)           | W                          | access: write                               |
//! | 2       | 1 (U)           | user                       | access: user                                |
//! | 5, 6    | 1 (A), 0        | A, D: the processor's      | generation, low 9 bits, in 3..=11           |
//! | 7       | 0               | PS: large (2M, 1G)         |                                             |
//! | 9, 10   | 0               | host-writable, MMU-writable|                                             |
//! | 11      | 0               | 1: a leaf                  |                                             |
//! | 12..=50 | table's address | frame's address            | gfn, in 12..=47                             |
//! | 51      | 0               | 0                          | 1: reserved for every address width below 52 |
//! | 52..=61 | 0               | 0                          | generation, high 10 bits                    |
//! | 62, 63  | 0 0             | 0, no execution            | 1 1                                         |
//!
//! A present entry with a reserved bit set faults with RSVD, whatever its other bits are: that is how the processor itself
//! says "MMIO, and it is cached". PAE tables have 52..=62 reserved, which changes nothing: leaves and tables keep them 0.

use super::{
    ADDRESS_SHIFT, BadSpte, GENERATION_HIGH, GENERATION_LOW, LARGE, Leaf, MMIO_TAG, MmioSpte, Rights, Spte, SpteKind,
    Writable, page_level,
};
use crate::stage2::Frame;
use crate::table::TableId;
use umbra_mmu_abi::{BackingId, Gfn};

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
const HOST_WRITABLE: u64 = 1 << 9;
const MMU_WRITABLE: u64 = 1 << 10;
const LEAF: u64 = 1 << 11;
const RESERVED: u64 = 1 << 51;
const NO_EXEC: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << 39) - 1) << ADDRESS_SHIFT;
const GFN: u64 = ((1 << 36) - 1) << ADDRESS_SHIFT;
/// A large leaf's address begins above these; bit 12 is PAT there.
const TABLE_FLAGS: u64 = PRESENT | WRITE | USER | ACCESSED;

const _: () = assert!((GENERATION_LOW | GENERATION_HIGH) & (GFN | RESERVED | MMIO_TAG | PRESENT | WRITE | USER) == 0);
const _: () = assert!(ADDRESS & (RESERVED | LEAF | LARGE) == 0 && GFN & !ADDRESS == 0);

/// Where guest memory and tables are for the hardware: fixed and linear, so that an address and a [`Frame`] follow from
/// each other without a look at anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowLayout {
    /// Page `p` of backing `b` is host frame `b << backing_shift | p`.
    pub backing_shift: u8,
    /// Table `id` is host frame `tables_base + id`; all backings are below.
    pub tables_base: u64,
    /// Width of the hardware's physical addresses in bits, at most 51.
    pub maxphyaddr: u8,
}

impl ShadowLayout {
    /// The host frame number of a frame.
    #[inline]
    pub const fn hfn(&self, frame: Frame) -> u64 {
        (frame.backing().0 as u64) << self.backing_shift | frame.page() as u64
    }

    /// The host frame number of a table.
    #[inline]
    pub const fn table_hfn(&self, id: TableId) -> u64 {
        self.tables_base + id.raw() as u64
    }

    /// The address of a table, as cr3 or an upper entry holds it.
    #[inline]
    pub const fn table_address(&self, id: TableId) -> u64 {
        self.table_hfn(id) << ADDRESS_SHIFT
    }

    /// What a host frame is.
    #[inline]
    pub fn frame(&self, hfn: u64) -> Option<Frame> {
        let id = u16::try_from(hfn >> self.backing_shift).ok()?;
        let page = hfn & ((1 << self.backing_shift) - 1);
        (hfn < self.tables_base).then(|| Frame::new(BackingId(id), page as u32))?
    }

    fn table(&self, hfn: u64) -> Option<TableId> {
        let id = hfn.checked_sub(self.tables_base)?;
        u32::try_from(id).ok().map(TableId::from_raw)
    }

    /// Whether tables and frames have addresses that this hardware has, and MMIO sptes a bit that it has not.
    pub const fn is_sound(&self) -> bool {
        self.backing_shift <= 24 && self.maxphyaddr <= 51 && self.tables_base < 1 << (self.maxphyaddr - 12)
    }
}

pub(super) const fn writable_bits(writable: Writable) -> u64 {
    match writable {
        Writable::HostReadOnly => 0,
        Writable::Protected => HOST_WRITABLE,
        Writable::Restorable => HOST_WRITABLE | MMU_WRITABLE,
        Writable::Now => HOST_WRITABLE | MMU_WRITABLE | WRITE,
    }
}

fn writable(word: u64) -> Result<Writable, BadSpte> {
    const PROTECTED: u64 = writable_bits(Writable::Protected);
    const RESTORABLE: u64 = writable_bits(Writable::Restorable);
    const NOW: u64 = writable_bits(Writable::Now);
    match word & NOW {
        0 => Ok(Writable::HostReadOnly),
        PROTECTED => Ok(Writable::Protected),
        RESTORABLE => Ok(Writable::Restorable),
        NOW => Ok(Writable::Now),
        _ => Err(BadSpte(word)),
    }
}

#[inline]
pub(super) const fn table(layout: &ShadowLayout, id: TableId) -> Spte {
    Spte(layout.table_address(id) | TABLE_FLAGS)
}

#[inline(always)]
pub(super) const fn leaf(layout: &ShadowLayout, leaf: Leaf) -> Spte {
    debug_assert!(layout.hfn(leaf.frame).is_multiple_of(leaf.level.frames()));
    let user = if leaf.rights.contains(Rights::USER) { USER } else { 0 };
    let no_exec = if leaf.rights.contains(Rights::EXEC) { 0 } else { NO_EXEC };
    let frame = layout.hfn(leaf.frame) << ADDRESS_SHIFT | super::large_bit(leaf.level);
    Spte(frame | writable_bits(leaf.writable) | PRESENT | user | no_exec | LEAF)
}

#[inline]
pub(super) const fn mmio(mmio: MmioSpte) -> Spte {
    debug_assert!(mmio.gfn.raw() < 1 << 36);
    let fields = super::mmio_fields(&mmio);
    Spte(MMIO_TAG | RESERVED | PRESENT | mmio.gfn.raw() << ADDRESS_SHIFT | fields)
}

#[inline]
pub(super) const fn is_frame(word: u64) -> bool {
    word & LEAF != 0 && word & RESERVED == 0
}

#[inline]
pub(super) const fn is_mmio(word: u64) -> bool {
    word & RESERVED != 0
}

#[inline]
pub(super) const fn peek_table(layout: &ShadowLayout, word: u64) -> Option<TableId> {
    match word & (RESERVED | LEAF | PRESENT) == PRESENT {
        true => Some(TableId::from_raw(
            ((word & ADDRESS) >> ADDRESS_SHIFT).wrapping_sub(layout.tables_base) as u32,
        )),
        false => None,
    }
}

#[inline]
pub(super) fn peek(layout: &ShadowLayout, word: u64, table_level: u8) -> Result<SpteKind, BadSpte> {
    if word == 0 {
        Ok(SpteKind::Empty)
    } else if word & RESERVED != 0 {
        let gfn = Gfn::new((word & GFN) >> ADDRESS_SHIFT);
        match table_level {
            1 => Ok(SpteKind::Mmio(super::peek_mmio_fields(word, gfn))),
            _ => Err(BadSpte(word)),
        }
    } else if word & LEAF != 0 {
        Ok(SpteKind::Leaf(frame(layout, word, table_level)?))
    } else {
        match layout.table((word & ADDRESS) >> ADDRESS_SHIFT) {
            Some(id) if table_level > 1 => Ok(SpteKind::Table(id)),
            Some(_) | None => Err(BadSpte(word)),
        }
    }
}

fn frame(layout: &ShadowLayout, word: u64, table_level: u8) -> Result<Leaf, BadSpte> {
    let level = page_level(word, table_level)?;
    let hfn = (word & ADDRESS) >> ADDRESS_SHIFT;
    let frame = layout.frame(hfn).filter(|_| hfn.is_multiple_of(level.frames()));
    let mut rights = Rights::empty();
    rights.set(Rights::USER, word & USER != 0);
    rights.set(Rights::EXEC, word & NO_EXEC == 0);
    Ok(Leaf {
        frame: frame.ok_or(BadSpte(word))?,
        level,
        writable: writable(word)?,
        rights,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which bits does an spte of an EPT mirror have? Words that no hardware walks: their effects are capabilities.
//!
//! | bits    | table | leaf                               | access-tracked leaf | MMIO                     |
//! |---------|-------|------------------------------------|---------------------|--------------------------|
//! | 0       | 1     | 1 (R)                              | 0                   | 0                        |
//! | 1       | 1     | W                                  | 0                   | access: write            |
//! | 2       | 1     | 1 (X)                              | 0                   | access: user             |
//! | 3..=11  | 0     | bit 7: large (2M, 1G), others 0    | as leaf             | generation, low 9 bits   |
//! | 12..=51 | table | frame                              | frame               | gfn                      |
//! | 52..=61 | 0     | 52: no A/D bits                    | 52: no A/D bits     | generation, high 10 bits |
//! |         |       | 57: host-writable                  | 54, 56: saved R, X  |                          |
//! |         |       | 58: MMU-writable                   | 57, 58 as leaf      |                          |
//! | 62, 63  | 0 0   | 0 0                                | 1 0                 | 1 1                      |

use super::{
    ADDRESS_SHIFT, BadSpte, GENERATION_HIGH, GENERATION_LOW, LARGE, Leaf, MMIO_TAG, MmioSpte, Rights, Spte, SpteKind,
    Writable, page_level,
};
use crate::stage2::Frame;
use crate::table::TableId;
use umbra_mmu_abi::{Gfn, PageLevel};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const _: () = assert!(WRITE == super::shadow::WRITE);
const EXEC: u64 = 1 << 2;
const ADDRESS: u64 = ((1 << 40) - 1) << ADDRESS_SHIFT;
/// The leaf is of a kind without accessed and dirty bits.
const AD_DISABLED: u64 = 1 << 52;
const SAVED_READ: u64 = 1 << 54;
const SAVED_EXEC: u64 = 1 << 56;
const HOST_WRITABLE: u64 = 1 << 57;
const MMU_WRITABLE: u64 = 1 << 58;
const SPECIAL: u64 = 1 << 62;

// REQ: GEN-2: the four fields of an MMIO spte share no bit.
const _: () = assert!((GENERATION_LOW | GENERATION_HIGH) & (ADDRESS | MMIO_TAG | READ | WRITE | EXEC) == 0);
const _: () = assert!(ADDRESS & (MMIO_TAG | READ | WRITE | EXEC | LARGE | AD_DISABLED) == 0);
const _: () = assert!((SAVED_READ | SAVED_EXEC) & (HOST_WRITABLE | MMU_WRITABLE | AD_DISABLED) == 0);

pub(super) const fn writable_bits(writable: Writable) -> u64 {
    match writable {
        Writable::HostReadOnly => 0,
        Writable::Protected => HOST_WRITABLE,
        Writable::Restorable => HOST_WRITABLE | MMU_WRITABLE,
        Writable::Now => HOST_WRITABLE | MMU_WRITABLE | WRITE,
    }
}

#[inline(always)]
pub(super) const fn known_leaf(word: u64, level: PageLevel) -> Leaf {
    let writable = if word & WRITE != 0 {
        Writable::Now
    } else if word & MMU_WRITABLE != 0 {
        Writable::Restorable
    } else if word & HOST_WRITABLE != 0 {
        Writable::Protected
    } else {
        Writable::HostReadOnly
    };
    Leaf {
        frame: Frame::from_raw((word & ADDRESS) >> ADDRESS_SHIFT),
        level,
        writable,
        rights: Rights::ALL,
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
pub(super) const fn table(id: TableId) -> Spte {
    Spte((id.raw() as u64) << ADDRESS_SHIFT | READ | WRITE | EXEC)
}

#[inline]
pub(super) const fn leaf(leaf: Leaf) -> Spte {
    Spte(frame_bits(&leaf) | writable_bits(leaf.writable) | READ | EXEC)
}

#[inline]
pub(super) const fn access_tracked(leaf: Leaf) -> Spte {
    let writable = writable_bits(leaf.writable) & !WRITE;
    Spte(frame_bits(&leaf) | writable | SAVED_READ | SAVED_EXEC | SPECIAL)
}

const fn frame_bits(leaf: &Leaf) -> u64 {
    // Second-stage leaves have no rights of their own beside W.
    debug_assert!(leaf.rights.contains(Rights::ALL));
    leaf.frame.raw() << ADDRESS_SHIFT | super::large_bit(leaf.level) | AD_DISABLED
}

#[inline]
pub(super) const fn mmio(mmio: MmioSpte) -> Spte {
    debug_assert!(mmio.gfn.raw() < 1 << 40);
    Spte(MMIO_TAG | mmio.gfn.raw() << ADDRESS_SHIFT | super::mmio_fields(&mmio))
}

#[inline]
pub(super) const fn is_frame(word: u64) -> bool {
    // Of the kinds that bit 52 is set in, only the MMIO spte has both tag bits.
    word & AD_DISABLED != 0 && word & MMIO_TAG != MMIO_TAG
}

#[inline(always)]
pub(super) const fn is_leaf(word: u64) -> bool {
    // Of the kinds that bit 52 is set in, the leaf alone has R and no tag.
    word & (AD_DISABLED | READ | MMIO_TAG) == AD_DISABLED | READ
}

#[inline(always)]
pub(super) const fn may_restore_write(word: u64) -> bool {
    const RESTORABLE: u64 = AD_DISABLED | READ | MMU_WRITABLE;
    word & (RESTORABLE | WRITE | MMIO_TAG) == RESTORABLE
}

#[inline]
pub(super) const fn peek_table(word: u64) -> Option<TableId> {
    match word & (MMIO_TAG | AD_DISABLED | READ) == READ {
        true => Some(TableId::from_raw((word >> ADDRESS_SHIFT) as u32)),
        false => None,
    }
}

#[inline]
pub(super) fn peek(word: u64, table_level: u8) -> Result<SpteKind, BadSpte> {
    match word & MMIO_TAG {
        0 if word == 0 => Ok(SpteKind::Empty),
        0 if word & AD_DISABLED != 0 => Ok(SpteKind::Leaf(frame(word, table_level)?)),
        0 => match u32::try_from((word & ADDRESS) >> ADDRESS_SHIFT) {
            Ok(id) if table_level > 1 => Ok(SpteKind::Table(TableId::from_raw(id))),
            Ok(_) | Err(_) => Err(BadSpte(word)),
        },
        SPECIAL => Ok(SpteKind::AccessTracked(frame(word, table_level)?)),
        MMIO_TAG if table_level == 1 => {
            let gfn = Gfn::new((word & ADDRESS) >> ADDRESS_SHIFT);
            Ok(SpteKind::Mmio(super::peek_mmio_fields(word, gfn)))
        }
        _ => Err(BadSpte(word)),
    }
}

fn frame(word: u64, table_level: u8) -> Result<Leaf, BadSpte> {
    Ok(Leaf {
        frame: Frame::from_raw((word & ADDRESS) >> ADDRESS_SHIFT),
        level: page_level(word, table_level)?,
        writable: writable(word)?,
        rights: Rights::ALL,
    })
}

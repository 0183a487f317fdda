// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do frames and tables get into address spaces, the machine's and a guest's?

use crate::cap::{
    AsidControl, AsidPool, Cap, CapType, EptPd, EptPdpt, EptPml4, EptPt, PageDirectory, PageTable, Pdpt, Untyped,
    VSpace, cap_type,
};
use crate::{AbsoluteCPtr, CapRights, Result, Word};
use sel4_sys as sys;

/// How a mapping in an address space is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageAttributes {
    /// Ordinary memory.
    WriteBack,
    /// Writes go to memory at once.
    WriteThrough,
    /// Not cached, unless the MTRRs say so.
    CacheDisabled,
    /// Never cached.
    Uncacheable,
    /// Writes may be combined: frame buffers.
    WriteCombining,
}

impl PageAttributes {
    const fn into_inner(self) -> Word {
        match self {
            Self::WriteBack => sys::seL4_X86_WriteBack,
            Self::WriteThrough => sys::seL4_X86_WriteThrough,
            Self::CacheDisabled => sys::seL4_X86_CacheDisabled,
            Self::Uncacheable => sys::seL4_X86_Uncacheable,
            Self::WriteCombining => sys::seL4_X86_WriteCombining,
        }
    }
}

/// The memory type of an EPT mapping. SDM vol. 3, "EPT and memory typing": bits 5:3 of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptAttributes {
    /// Type 6: ordinary memory.
    WriteBack,
    /// Type 4.
    WriteThrough,
    /// Type 1.
    WriteCombining,
    /// Type 0.
    Uncacheable,
}

impl EptAttributes {
    const fn into_inner(self) -> Word {
        match self {
            Self::WriteBack => 6,
            Self::WriteThrough => 4,
            Self::WriteCombining => 1,
            Self::Uncacheable => 0,
        }
    }
}

/// A kind of frame.
pub trait FrameType: CapType {}
impl FrameType for cap_type::SmallPage {}
impl FrameType for cap_type::LargePage {}
impl FrameType for cap_type::UnspecifiedPage {}

impl<T: FrameType> Cap<T> {
    /// Maps the frame at `vaddr`. One capability maps once: copy it to map it again. 770 ticks.
    ///
    /// # Errors
    /// `FailedLookup` if a level is missing, `DeleteFirst` if something is mapped there, `InvalidCapability { cap: 0 }` if
    /// this capability maps already.
    pub fn frame_map(self, vspace: VSpace, vaddr: Word, rights: CapRights, attributes: PageAttributes) -> Result<()> {
        let (rights, attributes) = (rights.into_inner(), attributes.into_inner());
        Ok(sys::seL4_X86_Page_Map(
            self.bits(),
            vspace.bits(),
            vaddr,
            rights,
            attributes,
        )?)
    }

    /// Maps the frame at guest physical address `gpa`, readable and executable, and writable as far as `rights` and this
    /// capability's rights go. 700 ticks.
    ///
    /// # Errors
    /// As [`Self::frame_map`]; `InvalidCapability { cap: 0 }` also if this capability has no read right.
    pub fn frame_map_ept(self, ept: EptPml4, gpa: Word, rights: CapRights, attributes: EptAttributes) -> Result<()> {
        let (rights, attributes) = (rights.into_inner(), attributes.into_inner());
        Ok(sys::seL4_X86_Page_MapEPT(
            self.bits(),
            ept.bits(),
            gpa,
            rights,
            attributes,
        )?)
    }

    /// Ends this capability's mapping, in either kind of address space, and flushes it from the TLB. 630 ticks.
    ///
    /// # Errors
    /// None of a frame capability that exists.
    pub fn frame_unmap(self) -> Result<()> {
        Ok(sys::seL4_X86_Page_Unmap(self.bits())?)
    }

    /// The frame's physical address.
    ///
    /// # Errors
    /// None of a frame capability that exists.
    pub fn frame_get_address(self) -> Result<Word> {
        Ok(sys::seL4_X86_Page_GetAddress(self.bits())?)
    }
}

/// A level of an address space that is mapped as a whole.
pub trait TranslationTable: Copy {
    /// The root below which it is mapped.
    type Root;

    /// Puts this table where the one for `address` belongs.
    ///
    /// # Errors
    /// `FailedLookup` if the level above is missing, `DeleteFirst` if there is a table, `InvalidCapability` if this one is
    /// mapped already or the root has no ASID.
    fn table_map(self, root: Self::Root, address: Word) -> Result<()>;

    /// Takes it out.
    ///
    /// # Errors
    /// `RevokeFirst` if a capability to it was copied.
    fn table_unmap(self) -> Result<()>;
}

macro_rules! tables {
    ($($kind:ident in $root:ident: $map:ident($attributes:expr), $unmap:ident;)*) => { $(
        impl TranslationTable for $kind {
            type Root = $root;
            fn table_map(self, root: $root, address: Word) -> Result<()> {
                Ok(sys::$map(self.bits(), root.bits(), address, $attributes)?)
            }
            fn table_unmap(self) -> Result<()> {
                Ok(sys::$unmap(self.bits())?)
            }
        }
    )* };
}

tables! {
    Pdpt in VSpace: seL4_X86_PDPT_Map(sys::seL4_X86_Default_VMAttributes), seL4_X86_PDPT_Unmap;
    PageDirectory in VSpace: seL4_X86_PageDirectory_Map(sys::seL4_X86_Default_VMAttributes), seL4_X86_PageDirectory_Unmap;
    PageTable in VSpace: seL4_X86_PageTable_Map(sys::seL4_X86_Default_VMAttributes), seL4_X86_PageTable_Unmap;
    EptPdpt in EptPml4: seL4_X86_EPTPDPT_Map(EptAttributes::WriteBack.into_inner()), seL4_X86_EPTPDPT_Unmap;
    EptPd in EptPml4: seL4_X86_EPTPD_Map(EptAttributes::WriteBack.into_inner()), seL4_X86_EPTPD_Unmap;
    EptPt in EptPml4: seL4_X86_EPTPT_Map(EptAttributes::WriteBack.into_inner()), seL4_X86_EPTPT_Unmap;
}

impl AsidControl {
    /// Makes an ASID pool out of 4 KiB of untyped memory and puts its capability at `destination`.
    ///
    /// # Errors
    /// `DeleteFirst` if all pools are made or the slot is occupied, `InvalidCapability` if the memory does not fit.
    pub fn asid_control_make_pool(self, untyped: Untyped, destination: &AbsoluteCPtr) -> Result<()> {
        let AbsoluteCPtr { root, path } = destination;
        Ok(sys::seL4_X86_ASIDControl_MakePool(
            self.bits(),
            untyped.bits(),
            root.bits(),
            path.bits,
            path.depth,
        )?)
    }
}

impl AsidPool {
    /// Gives an address space, or the root of an EPT ([`Self::asid_pool_assign_ept`]), an ASID.
    ///
    /// # Errors
    /// `DeleteFirst` if the pool is empty, `InvalidCapability` if it has an ASID already.
    pub fn asid_pool_assign(self, vspace: VSpace) -> Result<()> {
        Ok(sys::seL4_X86_ASIDPool_Assign(self.bits(), vspace.bits())?)
    }

    /// See [`Self::asid_pool_assign`].
    ///
    /// # Errors
    /// See [`Self::asid_pool_assign`].
    pub fn asid_pool_assign_ept(self, ept: EptPml4) -> Result<()> {
        Ok(sys::seL4_X86_ASIDPool_Assign(self.bits(), ept.bits())?)
    }
}

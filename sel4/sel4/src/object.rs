// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which objects can untyped memory become, and how large are they?

use crate::cap::Untyped;
use crate::{AbsoluteCPtr, Result, Word};
use sel4_sys as sys;

/// The kernel's number for a kind of object. It depends on the kernel's options.
pub type ObjectType = Word;

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectBlueprint {
    /// Untyped memory of 2^`size_bits` bytes.
    Untyped {
        /// See there.
        size_bits: u8,
    },
    /// A CNode of 2^`size_bits` slots.
    CNode {
        /// See there.
        size_bits: u8,
    },
    /// A thread.
    Tcb,
    /// An endpoint.
    Endpoint,
    /// A notification.
    Notification,
    /// The root of an address space.
    VSpace,
    /// Its second level.
    Pdpt,
    /// Its third level.
    PageDirectory,
    /// Its fourth level.
    PageTable,
    /// A 4 KiB frame.
    SmallPage,
    /// A 2 MiB frame.
    LargePage,
    /// A virtual CPU. Refused where there is no VT-x, like the other four below.
    VCpu,
    /// The root of a guest's address space.
    EptPml4,
    /// Its second level.
    EptPdpt,
    /// Its third level.
    EptPd,
    /// Its fourth level.
    EptPt,
}

impl ObjectBlueprint {
    /// The kernel's number.
    pub const fn ty(self) -> ObjectType {
        match self {
            Self::Untyped { .. } => sys::seL4_UntypedObject,
            Self::CNode { .. } => sys::seL4_CapTableObject,
            Self::Tcb => sys::seL4_TCBObject,
            Self::Endpoint => sys::seL4_EndpointObject,
            Self::Notification => sys::seL4_NotificationObject,
            Self::VSpace => sys::seL4_X64_PML4Object,
            Self::Pdpt => sys::seL4_X86_PDPTObject,
            Self::PageDirectory => sys::seL4_X86_PageDirectoryObject,
            Self::PageTable => sys::seL4_X86_PageTableObject,
            Self::SmallPage => sys::seL4_X86_4K,
            Self::LargePage => sys::seL4_X86_LargePageObject,
            Self::VCpu => sys::seL4_X86_VCPUObject,
            Self::EptPml4 => sys::seL4_X86_EPTPML4Object,
            Self::EptPdpt => sys::seL4_X86_EPTPDPTObject,
            Self::EptPd => sys::seL4_X86_EPTPDObject,
            Self::EptPt => sys::seL4_X86_EPTPTObject,
        }
    }

    /// The size argument of the invocation: 0 where the kind says it all.
    pub const fn api_size_bits(self) -> Word {
        match self {
            Self::Untyped { size_bits } | Self::CNode { size_bits } => size_bits as Word,
            _ => 0,
        }
    }

    /// The object takes 2^this bytes and is aligned to its size.
    pub const fn physical_size_bits(self) -> u8 {
        (match self {
            Self::Untyped { size_bits } => return size_bits,
            Self::CNode { size_bits } => return size_bits + sys::seL4_SlotBits as u8,
            Self::Tcb => sys::seL4_TCBBits,
            Self::Endpoint => sys::seL4_EndpointBits,
            Self::Notification => sys::seL4_NotificationBits,
            Self::VSpace => sys::seL4_PML4Bits,
            Self::Pdpt => sys::seL4_PDPTBits,
            Self::PageDirectory => sys::seL4_PageDirBits,
            Self::PageTable => sys::seL4_PageTableBits,
            Self::SmallPage => sys::seL4_PageBits,
            Self::LargePage => sys::seL4_LargePageBits,
            Self::VCpu => sys::seL4_X86_VCPUBits,
            Self::EptPml4 => sys::seL4_X86_EPTPML4Bits,
            Self::EptPdpt => sys::seL4_X86_EPTPDPTBits,
            Self::EptPd => sys::seL4_X86_EPTPDBits,
            Self::EptPt => sys::seL4_X86_EPTPTBits,
        }) as u8
    }
}

impl Untyped {
    /// The most objects that one retype makes.
    pub const MAX_OBJECTS: Word = sys::config::CONFIG_RETYPE_FAN_OUT_LIMIT;

    /// Makes `count` objects and puts their capabilities into the slots from `first_slot` of the CNode at `cnode`. The
    /// kernel clears the memory of objects, except where the untyped memory is a device's.
    ///
    /// # Errors
    /// `NotEnoughMemory`, `DeleteFirst` for an occupied slot, `RangeError` for a count or a slot out of range,
    /// `InvalidArgument { arg: 0 }` for objects that need VT-x where there is none.
    pub fn untyped_retype(
        self,
        blueprint: ObjectBlueprint,
        cnode: &AbsoluteCPtr,
        first_slot: Word,
        count: Word,
    ) -> Result<()> {
        Ok(sys::seL4_Untyped_Retype(
            self.bits(),
            blueprint.ty(),
            blueprint.api_size_bits(),
            cnode.root.bits(),
            cnode.path.bits,
            Word::from(cnode.path.depth),
            first_slot,
            count,
        )?)
    }
}

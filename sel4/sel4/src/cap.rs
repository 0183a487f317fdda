// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which kinds of capabilities are there?

use crate::Word;
use crate::cnode::{AbsoluteCPtr, CPtrWithDepth};
use core::fmt;
use core::marker::PhantomData;

/// A capability's address in the CSpace of this thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CPtr(Word);

impl CPtr {
    /// The null capability: slot 0 of every CSpace is empty by convention.
    pub const NULL: Self = Self(0);

    /// From the address.
    pub const fn from_bits(bits: Word) -> Self {
        Self(bits)
    }

    /// The address.
    pub const fn bits(self) -> Word {
        self.0
    }

    /// As a capability of kind `T`. Nothing is checked: the kernel does, at every invocation.
    pub const fn cast<T: CapType>(self) -> Cap<T> {
        Cap {
            cptr: self,
            kind: PhantomData,
        }
    }
}

impl fmt::Debug for CPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPtr({})", self.0)
    }
}

/// A kind of capability.
pub trait CapType {
    /// Its name.
    const NAME: &'static str;
}

/// A capability that is expected to be of kind `T`.
pub struct Cap<T: CapType> {
    cptr: CPtr,
    kind: PhantomData<T>,
}

impl<T: CapType> Clone for Cap<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: CapType> Copy for Cap<T> {}
impl<T: CapType> PartialEq for Cap<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cptr == other.cptr
    }
}
impl<T: CapType> Eq for Cap<T> {}

impl<T: CapType> fmt::Debug for Cap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", T::NAME, self.cptr.0)
    }
}

impl<T: CapType> Cap<T> {
    /// From an address in this thread's CSpace.
    pub const fn from_bits(bits: Word) -> Self {
        CPtr(bits).cast()
    }

    /// Its address.
    pub const fn bits(self) -> Word {
        self.cptr.0
    }

    /// Its address.
    pub const fn cptr(self) -> CPtr {
        self.cptr
    }

    /// As another kind.
    pub const fn cast<U: CapType>(self) -> Cap<U> {
        self.cptr.cast()
    }
}

/// The null capability of any kind, where the kernel takes "none".
impl<T: CapType> Cap<T> {
    /// See [`CPtr::NULL`].
    pub const NULL: Self = CPtr::NULL.cast();
}

impl Cap<cap_type::CNode> {
    /// The capability at `path` (64 bits deep) below this CNode.
    pub fn absolute_cptr(self, path: impl Into<CPtrWithDepth>) -> AbsoluteCPtr {
        AbsoluteCPtr {
            root: self,
            path: path.into(),
        }
    }

    /// The slot `index` of this CNode itself, `bits` being the size of the CNode. Needed where the CNode is not this
    /// thread's root, with its guard.
    pub fn slot(self, index: Word, bits: u8) -> AbsoluteCPtr {
        AbsoluteCPtr {
            root: self,
            path: CPtrWithDepth {
                bits: index,
                depth: bits,
            },
        }
    }
}

macro_rules! cap_types {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Tags of the kinds.
        pub mod cap_type {
            $($(#[$doc])* #[derive(Clone, Copy, Debug, PartialEq, Eq)] pub struct $name;
            impl crate::CapType for $name { const NAME: &'static str = stringify!($name); })*
        }
        $($(#[$doc])* pub type $name = Cap<cap_type::$name>;)*
    };
}

cap_types! {
    /// Memory that other objects are made from.
    Untyped,
    /// A table of capabilities.
    CNode,
    /// A thread.
    Tcb,
    /// Where threads meet to pass messages.
    Endpoint,
    /// A word of flags that a thread can wait for.
    Notification,
    /// The root of an address space (PML4).
    VSpace,
    /// Second level of an address space.
    Pdpt,
    /// Third level.
    PageDirectory,
    /// Fourth level.
    PageTable,
    /// A 4 KiB frame.
    SmallPage,
    /// A 2 MiB frame.
    LargePage,
    /// A frame of either size.
    UnspecifiedPage,
    /// Makes ASID pools.
    AsidControl,
    /// Gives address spaces (and EPT roots) their number, without which nothing can be mapped.
    AsidPool,
    /// Makes IRQ handlers.
    IrqControl,
    /// One interrupt.
    IrqHandler,
    /// I/O ports.
    IOPort,
    /// Scheduling domains.
    DomainSet,
    /// A virtual CPU.
    VCpu,
    /// The root of a guest's address space (EPT).
    EptPml4,
    /// Second level of a guest's address space.
    EptPdpt,
    /// Third level.
    EptPd,
    /// Fourth level.
    EptPt,
    /// A capability of unknown kind.
    Unspecified,
    /// No capability.
    Null,
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are capabilities copied, moved and removed?

use crate::cap::{CNode, CPtr, Cap, CapType};
use crate::{CapRights, Result, Word};
use sel4_sys as sys;

/// An address below a CNode: bits and how many of them count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CPtrWithDepth {
    /// The address.
    pub bits: Word,
    /// How many bits of it are resolved.
    pub depth: u8,
}

impl From<CPtr> for CPtrWithDepth {
    fn from(cptr: CPtr) -> Self {
        Self {
            bits: cptr.bits(),
            depth: sys::seL4_WordBits as u8,
        }
    }
}

impl<T: CapType> From<Cap<T>> for CPtrWithDepth {
    fn from(cap: Cap<T>) -> Self {
        cap.cptr().into()
    }
}

/// A slot: the subject of CNode invocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsoluteCPtr {
    /// Where the address starts.
    pub root: CNode,
    /// The address.
    pub path: CPtrWithDepth,
}

impl AbsoluteCPtr {
    /// Copies `source` into this slot, with at most `rights`. 770 ticks.
    ///
    /// # Errors
    /// `DeleteFirst` if the slot is occupied, `FailedLookup`, `RevokeFirst` for an untyped object that has children.
    pub fn copy(&self, source: &Self, rights: CapRights) -> Result<()> {
        let (from, to) = (source.path, self.path);
        Ok(sys::seL4_CNode_Copy(
            self.root.bits(),
            to.bits,
            to.depth,
            source.root.bits(),
            from.bits,
            from.depth,
            rights.into_inner(),
        )?)
    }

    /// Copies an endpoint or notification capability and gives the copy a badge (28 bits).
    ///
    /// # Errors
    /// As [`Self::copy`]; `IllegalOperation` if the source has a badge already or cannot have one.
    pub fn mint(&self, source: &Self, rights: CapRights, badge: Word) -> Result<()> {
        self.mint_data(source, rights, sys::seL4_CapData_Badge::new(badge).into())
    }

    /// Copies a CNode capability and gives the copy a guard.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn mint_cnode(&self, source: &Self, rights: CapRights, data: CNodeCapData) -> Result<()> {
        self.mint_data(source, rights, data.0)
    }

    fn mint_data(&self, source: &Self, rights: CapRights, data: sys::seL4_CapData_t) -> Result<()> {
        let (from, to) = (source.path, self.path);
        Ok(sys::seL4_CNode_Mint(
            self.root.bits(),
            to.bits,
            to.depth,
            source.root.bits(),
            from.bits,
            from.depth,
            rights.into_inner(),
            data,
        )?)
    }

    /// Moves `source` into this slot.
    ///
    /// # Errors
    /// `DeleteFirst` if the slot is occupied, `FailedLookup`.
    pub fn move_(&self, source: &Self) -> Result<()> {
        let (from, to) = (source.path, self.path);
        Ok(sys::seL4_CNode_Move(
            self.root.bits(),
            to.bits,
            to.depth,
            source.root.bits(),
            from.bits,
            from.depth,
        )?)
    }

    /// Deletes the capability; the last one takes its object with it. No error if the slot is empty. 720 ticks for a
    /// copy.
    ///
    /// # Errors
    /// `FailedLookup`.
    pub fn delete(&self) -> Result<()> {
        self.invoke(sys::seL4_CNode_Delete)
    }

    /// Deletes all capabilities derived from this one, but not this one.
    ///
    /// # Errors
    /// `FailedLookup`.
    pub fn revoke(&self) -> Result<()> {
        self.invoke(sys::seL4_CNode_Revoke)
    }

    /// Puts the reply capability of the last message into this slot: the answer is then sent by
    /// [`crate::cap::Endpoint::send`].
    ///
    /// # Errors
    /// `DeleteFirst` if the slot is occupied, `FailedLookup`.
    pub fn save_caller(&self) -> Result<()> {
        self.invoke(sys::seL4_CNode_SaveCaller)
    }

    /// Withdraws messages that wait and were sent by this badged endpoint capability.
    ///
    /// # Errors
    /// `IllegalOperation` if it is no such capability.
    pub fn cancel_badged_sends(&self) -> Result<()> {
        self.invoke(sys::seL4_CNode_CancelBadgedSends)
    }

    /// An invocation that needs nothing but the slot.
    fn invoke(&self, call: impl FnOnce(Word, Word, u8) -> core::result::Result<(), sys::Failure>) -> Result<()> {
        Ok(call(self.root.bits(), self.path.bits, self.path.depth)?)
    }
}

/// The guard of a CNode capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CNodeCapData(sys::seL4_CapData_t);

impl CNodeCapData {
    /// A guard of `bits` bits with value `guard`.
    pub fn new(guard: Word, bits: u8) -> Self {
        Self(sys::seL4_CapData_Guard::new(guard, Word::from(bits)).into())
    }

    /// The guard that makes a CNode of 2^`cnode_bits` slots a whole CSpace: slot numbers are capability addresses.
    pub fn whole_cspace(cnode_bits: u8) -> Self {
        Self::new(0, sys::seL4_WordBits as u8 - cnode_bits)
    }

    /// Leaves the guard as it is.
    pub fn unchanged() -> Self {
        Self(sys::seL4_CapData_t { words: [0] })
    }

    pub(crate) const fn into_inner(self) -> sys::seL4_CapData_t {
        self.0
    }
}

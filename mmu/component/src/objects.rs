// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where do capabilities and kernel objects go? Empty slots, and blocks of untyped memory that split and join.

use alloc::vec::Vec;
use sel4::{AbsoluteCPtr, CPtr, ObjectBlueprint, cap};
use umbra_mmu_core::stage2::{Resource, Stage2Error};

/// The smallest block: a CNode of two slots.
const MIN_BITS: u8 = 6;

/// The memory and the slots of one CNode that its owner may fill.
pub struct Objects {
    cnode: cap::CNode,
    slots: Vec<u64>,
    blocks: Vec<BlockState>,
}

/// A block of untyped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block(u32);

struct BlockState {
    slot: u64,
    bits: u8,
    parent: Option<u32>,
    use_: Use,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Free,
    Taken,
    /// In two blocks.
    Split([u32; 2]),
    /// Not a block any more: it was joined with its other half. The entry may be used again.
    Joined,
}

impl Objects {
    /// Untyped capabilities (slot and log2 of the size in bytes), all without children, and empty slots of `cnode`.
    pub fn new(cnode: cap::CNode, untyped: &[(u64, u8)], free: core::ops::Range<u64>) -> Self {
        let block = |&(slot, bits): &(u64, u8)| BlockState {
            slot,
            bits,
            parent: None,
            use_: Use::Free,
        };
        Self {
            cnode,
            slots: free.rev().collect(),
            blocks: untyped.iter().map(block).collect(),
        }
    }

    /// A slot of the CNode as the kernel takes it.
    pub fn slot(&self, slot: u64) -> AbsoluteCPtr {
        self.cnode.absolute_cptr(CPtr::from_bits(slot))
    }

    /// An empty slot.
    ///
    /// # Errors
    /// There is none.
    pub fn take_slot(&mut self) -> Result<u64, Stage2Error> {
        self.slots.pop().ok_or(Stage2Error::Exhausted(Resource::CapSlots))
    }

    /// The slot is empty again.
    pub fn give_slot(&mut self, slot: u64) {
        self.slots.push(slot);
    }

    /// A block of 2^`bits` bytes, without children.
    ///
    /// # Errors
    /// No block is large enough, or there is no slot for a smaller one; nothing has changed.
    pub fn take_block(&mut self, bits: u8) -> Result<Block, Stage2Error> {
        let bits = bits.max(MIN_BITS);
        let fits = |block: &BlockState| block.use_ == Use::Free && block.bits >= bits;
        let smallest = self
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| fits(block))
            .min_by_key(|(_, b)| b.bits);
        let (mut at, _) = smallest.ok_or(Stage2Error::Exhausted(Resource::Untyped))?;
        while self.blocks[at].bits > bits {
            at = match self.split(at) {
                Ok(half) => half,
                Err(error) => {
                    // What was split on the way down joins again: a later request may need all of it.
                    self.give_block(Block(at as u32));
                    return Err(error);
                }
            };
        }
        self.blocks[at].use_ = Use::Taken;
        Ok(Block(at as u32))
    }

    /// The block's capability.
    pub fn untyped(&self, block: Block) -> cap::Untyped {
        cap::Untyped::from_bits(self.blocks[block.0 as usize].slot)
    }

    /// Destroys everything that was made of the block, and takes it back.
    pub fn give_block(&mut self, block: Block) {
        let mut at = block.0 as usize;
        self.revoke(at);
        self.blocks[at].use_ = Use::Free;
        while let Some(parent) = self.blocks[at].parent {
            let Use::Split(halves) = self.blocks[parent as usize].use_ else {
                panic!("the parent of block {at} is not split");
            };
            if halves.iter().any(|half| self.blocks[*half as usize].use_ != Use::Free) {
                return;
            }
            self.revoke(parent as usize);
            for half in halves {
                self.give_slot(self.blocks[half as usize].slot);
                self.blocks[half as usize].use_ = Use::Joined;
            }
            at = parent as usize;
            self.blocks[at].use_ = Use::Free;
        }
    }

    fn revoke(&self, at: usize) {
        let slot = self.slot(self.blocks[at].slot);
        slot.revoke()
            .unwrap_or_else(|error| panic!("own untyped memory cannot be revoked: {error}"));
    }

    /// Splits a free block; the answer is its first half.
    fn split(&mut self, at: usize) -> Result<usize, Stage2Error> {
        let (bits, untyped) = (self.blocks[at].bits - 1, cap::Untyped::from_bits(self.blocks[at].slot));
        if self.slots.len() < 2 {
            return Err(Stage2Error::Exhausted(Resource::CapSlots));
        }
        let slots = [self.take_slot()?, self.take_slot()?];
        let halves = slots.map(|slot| {
            let made = untyped.untyped_retype(
                ObjectBlueprint::Untyped { size_bits: bits },
                &self.cnode.slot(0, 0),
                slot,
                1,
            );
            made.unwrap_or_else(|error| panic!("a free block of 2^{} bytes cannot be split: {error}", bits + 1));
            self.entry(BlockState {
                slot,
                bits,
                parent: Some(at as u32),
                use_: Use::Free,
            })
        });
        self.blocks[at].use_ = Use::Split(halves);
        Ok(halves[0] as usize)
    }

    fn entry(&mut self, block: BlockState) -> u32 {
        match self.blocks.iter().position(|old| old.use_ == Use::Joined) {
            Some(at) => {
                self.blocks[at] = block;
                at as u32
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        }
    }
}

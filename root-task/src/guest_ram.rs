// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where guest memory comes from: frames for each slot, mapped in the vmm's window, copied to the mmu.
//!
//! The root task keeps the capability that maps a frame into the vmm; the mmu gets a copy, which names the same memory but
//! is no parent of it: whatever the mmu deletes or revokes, the vmm's window stays.

use crate::{
    cspace::CSpace,
    failure::Failure,
    kernel::{Kernel, Space},
};
use alloc::vec::Vec;
use sel4::CPtr;
use umbra_description::{MmuBacking, SlotKind, Vm, layout};
use umbra_root_core::{frames::Frames, ledger::Rights};

/// Makes the memory of all slots of `vm`; the mmu's copies go to `mmu` from slot `next` on, which becomes the first free.
pub fn provide(
    kernel: &mut Kernel,
    vm: &Vm,
    vmm: &Space,
    mmu: CSpace,
    next: &mut u64,
) -> Result<Vec<MmuBacking>, Failure> {
    let mut backings = Vec::with_capacity(vm.slots.len());
    for slot in &vm.slots {
        let frames = Frames::of_slot(slot);
        // The mmu cannot make a ROM writable, whatever it believes. The vmm can: it puts the content there.
        let rights = match slot.kind {
            SlotKind::Ram => Rights::READ | Rights::WRITE,
            SlotKind::Rom => Rights::READ,
        };
        backings.push(MmuBacking {
            first_slot: *next,
            small_head: frames.head as u32,
            large: frames.large as u32,
            small_tail: frames.tail as u32,
        });
        let mut vaddr = layout::RAM_WINDOW + slot.gpa;
        for (size, count) in frames.parts() {
            if count == 0 {
                continue;
            }
            for run in kernel.alloc_frames(size, count)? {
                for frame in run.iter() {
                    kernel.copy(CPtr::from_bits(frame.slot), mmu, *next, rights)?;
                    kernel.map(frame, vmm, vaddr, true)?;
                    *next += 1;
                    vaddr += size.bytes();
                }
            }
        }
    }
    Ok(backings)
}

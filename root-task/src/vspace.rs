// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a frame gets into an address space whose tables may be missing, and how a frame is filled.

use crate::{
    cspace::CSpace,
    failure::Failure,
    kernel::{Kernel, Space},
    untyped::Frame,
};
use sel4::{
    CPtr, CapRights, Error, LookupFailure, ObjectBlueprint, PageAttributes, TranslationTable, cap, init_thread,
};
use umbra_root_core::ledger::{Mapping, Object, Rights};

/// Where the root task maps a frame to fill it: above its image, used for nothing else.
const WINDOW: u64 = 0x4000_0000;

/// Maps a frame; where a level is missing, a table from `make` is put there.
pub(crate) fn map(
    frame: cap::UnspecifiedPage,
    vspace: cap::VSpace,
    vaddr: u64,
    writable: bool,
    mut make: impl FnMut(ObjectBlueprint) -> Result<CPtr, Failure>,
) -> Result<(), Failure> {
    let rights = if writable {
        CapRights::READ_WRITE
    } else {
        CapRights::READ
    };
    loop {
        let missing = match frame.frame_map(vspace, vaddr, rights, PageAttributes::WriteBack) {
            Ok(()) => return Ok(()),
            Err(error) => missing_table(error).ok_or(Failure::Kernel {
                what: "map a frame",
                error,
            })?,
        };
        let table = make(missing)?;
        let mapped = match missing {
            ObjectBlueprint::Pdpt => cap::Pdpt::from_bits(table.bits()).table_map(vspace, vaddr),
            ObjectBlueprint::PageDirectory => cap::PageDirectory::from_bits(table.bits()).table_map(vspace, vaddr),
            _ => cap::PageTable::from_bits(table.bits()).table_map(vspace, vaddr),
        };
        mapped.map_err(Failure::kernel("map a page table"))?;
    }
}

/// Which table a failed mapping lacks: the kernel says how many bits of the address were left at the empty entry.
const fn missing_table(error: Error) -> Option<ObjectBlueprint> {
    match error {
        Error::FailedLookup {
            failure: LookupFailure::MissingCapability { bits_left },
            ..
        } => match bits_left {
            39 => Some(ObjectBlueprint::Pdpt),
            30 => Some(ObjectBlueprint::PageDirectory),
            21 => Some(ObjectBlueprint::PageTable),
            _ => None,
        },
        _ => None,
    }
}

/// Maps a 4K frame into the root task, lets `fill` write to it, and unmaps it.
pub fn fill(kernel: &mut Kernel, frame: Frame, fill: impl FnOnce(&mut [u8; 4096])) -> Result<(), Failure> {
    kernel.map_unrecorded(frame, init_thread::slot::VSPACE, WINDOW, true)?;
    // SAFETY: a frame of 4096 bytes was just mapped there for writing; nothing else refers to it until it is unmapped.
    fill(unsafe { &mut *core::ptr::with_exposed_provenance_mut::<[u8; 4096]>(WINDOW as usize) });
    frame.cap().frame_unmap().map_err(Failure::kernel("unmap a frame"))
}

impl Kernel {
    /// Maps a frame of the root task's at `vaddr` and makes the tables that are missing. The capability is used up.
    pub fn map(&mut self, frame: Frame, space: &Space, vaddr: u64, writable: bool) -> Result<(), Failure> {
        self.map_unrecorded(frame, space.vspace, vaddr, writable)?;
        let (paddr, len) = (frame.paddr, frame.size.bytes());
        self.ledger.map(Mapping {
            holder: space.holder,
            vaddr,
            paddr,
            len,
            writable,
        });
        Ok(())
    }

    /// Maps a frame for a while: the caller unmaps it.
    pub(crate) fn map_unrecorded(
        &mut self,
        frame: Frame,
        vspace: cap::VSpace,
        vaddr: u64,
        writable: bool,
    ) -> Result<(), Failure> {
        map(frame.cap(), vspace, vaddr, writable, |blueprint| {
            let slot = self.slots.take()?;
            self.make(blueprint, Object::PageTable, CSpace::ROOT, slot, 1)?;
            Ok(CPtr::from_bits(slot))
        })
    }

    /// A further capability to a frame, to map it once more.
    pub fn duplicate(&mut self, frame: Frame) -> Result<Frame, Failure> {
        let slot = self.slots.take()?;
        self.copy(
            CPtr::from_bits(frame.slot),
            CSpace::ROOT,
            slot,
            Rights::READ | Rights::WRITE,
        )?;
        Ok(Frame { slot, ..frame })
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where do the tests get objects and slots?

use alloc::string::String;
use sel4::cap::{Cap, CapType, SmallPage, Untyped};
use sel4::init_thread::slot;
use sel4::{AbsoluteCPtr, BootInfo, CapRights, Error, ObjectBlueprint, PageAttributes, TranslationTable};
use umbra_test_report::good;

/// Hands out slots in order, and objects from the largest piece of RAM.
pub struct Objects {
    next_slot: u64,
    end_slot: u64,
    untyped: Untyped,
}

impl Objects {
    /// From the boot information.
    pub fn new(bootinfo: &BootInfo) -> Self {
        let memory = bootinfo.untyped_caps().filter(|(_, piece)| !piece.is_device());
        let (untyped, _) = memory.max_by_key(|(_, piece)| piece.size_bits()).expect("there is RAM");
        let slots = bootinfo.empty().range();
        Self {
            next_slot: slots.start,
            end_slot: slots.end,
            untyped,
        }
    }

    /// The CNode of the root task, as the place for new objects.
    pub fn cnode() -> AbsoluteCPtr {
        slot::CNODE.slot(0, 0)
    }

    /// An empty slot.
    pub fn slot<T: CapType>(&mut self) -> Cap<T> {
        assert!(self.next_slot < self.end_slot, "slots are used up");
        self.next_slot += 1;
        Cap::from_bits(self.next_slot - 1)
    }

    /// A new object.
    pub fn object<T: CapType>(&mut self, blueprint: ObjectBlueprint) -> sel4::Result<Cap<T>> {
        let cap: Cap<T> = self.slot();
        self.untyped.untyped_retype(blueprint, &Self::cnode(), cap.bits(), 1)?;
        Ok(cap)
    }

    /// Maps a frame in the root task, with the tables that are missing.
    pub fn map(&mut self, frame: SmallPage, vaddr: u64) -> Result<(), String> {
        let map = || frame.frame_map(slot::VSPACE, vaddr, CapRights::READ_WRITE, PageAttributes::WriteBack);
        for level in ["page table", "page directory", "PDPT"] {
            match map() {
                Err(Error::FailedLookup { .. }) => {}
                result => return good("map", result),
            }
            // The lowest level that has one above it.
            let made = self.table::<sel4::cap::PageTable>(ObjectBlueprint::PageTable, vaddr)
                || self.table::<sel4::cap::PageDirectory>(ObjectBlueprint::PageDirectory, vaddr)
                || self.table::<sel4::cap::Pdpt>(ObjectBlueprint::Pdpt, vaddr);
            if !made {
                return Err(alloc::format!("no table fits for {vaddr:#x} (wanted a {level})"));
            }
        }
        good("map with all tables", map())
    }

    fn table<T>(&mut self, blueprint: ObjectBlueprint, vaddr: u64) -> bool
    where
        T: TranslationTable<Root = sel4::cap::VSpace> + FromBits,
    {
        let slot = self.slot::<sel4::cap::cap_type::Unspecified>();
        self.untyped
            .untyped_retype(blueprint, &Self::cnode(), slot.bits(), 1)
            .is_ok()
            && T::from_bits(slot.bits()).table_map(self::slot::VSPACE, vaddr).is_ok()
    }
}

/// A capability from its address.
pub trait FromBits {
    /// See there.
    fn from_bits(bits: u64) -> Self;
}

impl<T: CapType> FromBits for Cap<T> {
    fn from_bits(bits: u64) -> Self {
        Cap::from_bits(bits)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the MMU work where there is no VT-x? The same tables in an address space, for a thread that plays the guest.

use crate::frame_caps::rights;
use crate::stage2::Space;
use sel4::{ObjectBlueprint, PageAttributes, TranslationTable, cap};
use umbra_mmu_core::stage2::{GuestAccess, TableLevel};

/// A window of 512 GiB in an address space: guest-physical 0 is at `base`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    vspace: cap::VSpace,
    base: u64,
}

impl Window {
    /// Bytes that one entry of the root translates.
    pub const BYTES: u64 = 1 << 39;

    /// The window at `base`, a multiple of [`Window::BYTES`] in the lower half, where nothing is mapped, not even a table.
    ///
    /// # Panics
    /// `base` is not such a multiple.
    pub fn new(vspace: cap::VSpace, base: u64) -> Self {
        assert!(
            base.is_multiple_of(Self::BYTES) && base < 1 << 47,
            "a window is an entry of the root: {base:#x}"
        );
        Self { vspace, base }
    }

    /// Where a guest-physical address is; `None` past the window.
    pub fn vaddr(&self, gpa: u64) -> Option<u64> {
        (gpa < Self::BYTES).then_some(self.base + gpa)
    }

    /// The guest-physical address of an address in the window.
    pub fn gpa(&self, vaddr: u64) -> Option<u64> {
        vaddr.checked_sub(self.base).filter(|gpa| *gpa < Self::BYTES)
    }

    fn address(&self, gpa: u64) -> sel4::Result<u64> {
        self.vaddr(gpa).ok_or(sel4::Error::RangeError {
            min: 0,
            max: Self::BYTES - 1,
        })
    }
}

impl Space for Window {
    fn map_frame(&self, frame: cap::UnspecifiedPage, gpa: u64, access: GuestAccess) -> sel4::Result<()> {
        frame.frame_map(
            self.vspace,
            self.address(gpa)?,
            rights(access),
            PageAttributes::WriteBack,
        )
    }

    fn is_mapped(&self, frame: cap::UnspecifiedPage, not_a_root: cap::CNode) -> bool {
        let no_root = cap::VSpace::from_bits(not_a_root.bits());
        let answer = frame.frame_map(
            no_root,
            self.base,
            rights(GuestAccess::ReadExec),
            PageAttributes::WriteBack,
        );
        matches!(answer, Err(sel4::Error::InvalidCapability { cap: 0 }))
    }

    fn blueprint(&self, level: TableLevel) -> ObjectBlueprint {
        match level {
            TableLevel::Pt => ObjectBlueprint::PageTable,
            TableLevel::Pd => ObjectBlueprint::PageDirectory,
            TableLevel::Pdpt => ObjectBlueprint::Pdpt,
            TableLevel::Pml4 => ObjectBlueprint::VSpace,
            TableLevel::Pml5 => panic!("the kernel has address spaces of four levels"),
        }
    }

    fn map_table(&self, slot: u64, level: TableLevel, gpa: u64) -> sel4::Result<()> {
        let vaddr = self.address(gpa)?;
        match level {
            TableLevel::Pt => cap::PageTable::from_bits(slot).table_map(self.vspace, vaddr),
            TableLevel::Pd => cap::PageDirectory::from_bits(slot).table_map(self.vspace, vaddr),
            TableLevel::Pdpt => cap::Pdpt::from_bits(slot).table_map(self.vspace, vaddr),
            TableLevel::Pml4 | TableLevel::Pml5 => Err(sel4::Error::IllegalOperation),
        }
    }

    fn unmap_table(&self, slot: u64, level: TableLevel) -> sel4::Result<()> {
        match level {
            TableLevel::Pt => cap::PageTable::from_bits(slot).table_unmap(),
            TableLevel::Pd => cap::PageDirectory::from_bits(slot).table_unmap(),
            TableLevel::Pdpt => cap::Pdpt::from_bits(slot).table_unmap(),
            TableLevel::Pml4 | TableLevel::Pml5 => Err(sel4::Error::IllegalOperation),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the kernel map frames for a guest? An EPT and its objects.

use crate::frame_caps::rights;
use crate::stage2::Space;
use sel4::{EptAttributes, ObjectBlueprint, TranslationTable, cap};
use umbra_mmu_core::stage2::{GuestAccess, TableLevel};

/// The EPT of a VM: its root has an ASID and belongs to the VM's thread.
#[derive(Clone, Copy, Debug)]
pub struct Ept(pub cap::EptPml4);

impl Space for Ept {
    fn map_frame(&self, frame: cap::UnspecifiedPage, gpa: u64, access: GuestAccess) -> sel4::Result<()> {
        frame.frame_map_ept(self.0, gpa, rights(access), EptAttributes::WriteBack)
    }

    fn is_mapped(&self, frame: cap::UnspecifiedPage, not_a_root: cap::CNode) -> bool {
        let no_root = cap::EptPml4::from_bits(not_a_root.bits());
        let answer = frame.frame_map_ept(no_root, 0, rights(GuestAccess::ReadExec), EptAttributes::WriteBack);
        matches!(answer, Err(sel4::Error::InvalidCapability { cap: 0 }))
    }

    fn blueprint(&self, level: TableLevel) -> ObjectBlueprint {
        match level {
            TableLevel::Pt => ObjectBlueprint::EptPt,
            TableLevel::Pd => ObjectBlueprint::EptPd,
            TableLevel::Pdpt => ObjectBlueprint::EptPdpt,
            TableLevel::Pml4 => ObjectBlueprint::EptPml4,
            TableLevel::Pml5 => panic!("the kernel has EPTs of four levels"),
        }
    }

    fn map_table(&self, slot: u64, level: TableLevel, gpa: u64) -> sel4::Result<()> {
        match level {
            TableLevel::Pt => cap::EptPt::from_bits(slot).table_map(self.0, gpa),
            TableLevel::Pd => cap::EptPd::from_bits(slot).table_map(self.0, gpa),
            TableLevel::Pdpt => cap::EptPdpt::from_bits(slot).table_map(self.0, gpa),
            TableLevel::Pml4 | TableLevel::Pml5 => Err(sel4::Error::IllegalOperation),
        }
    }

    fn unmap_table(&self, slot: u64, level: TableLevel) -> sel4::Result<()> {
        match level {
            TableLevel::Pt => cap::EptPt::from_bits(slot).table_unmap(),
            TableLevel::Pd => cap::EptPd::from_bits(slot).table_unmap(),
            TableLevel::Pdpt => cap::EptPdpt::from_bits(slot).table_unmap(),
            TableLevel::Pml4 | TableLevel::Pml5 => Err(sel4::Error::IllegalOperation),
        }
    }
}

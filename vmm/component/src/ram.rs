// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's RAM as this component sees it: mapped at a fixed distance from its guest-physical addresses.

use alloc::vec::Vec;
use umbra_description::{SlotKind, VmmRam, layout::RAM_WINDOW};
use umbra_mmu_abi::Gpa;
use umbra_vmm_core::guest_mem::{GuestMemory, RamRegion, Unbacked};

/// The window onto guest RAM.
pub struct RamWindow {
    /// Ascending, not overlapping.
    regions: Vec<RamRegion>,
}

impl RamWindow {
    /// The window over `slots`.
    ///
    /// # Safety
    /// Every slot is mapped readable and writable at `RAM_WINDOW + gpa`, for as long as the program runs, and nothing in
    /// this program has references into it.
    pub unsafe fn new(slots: &[VmmRam]) -> Self {
        let mut regions: Vec<_> = slots
            .iter()
            .map(|slot| RamRegion {
                base: Gpa::new(slot.gpa),
                len: slot.len,
                readonly: match slot.kind {
                    SlotKind::Ram => false,
                    SlotKind::Rom => true,
                },
            })
            .collect();
        regions.sort_by_key(|region| region.base);
        Self { regions }
    }

    /// Where `gpa..gpa + len` is, if one region holds all of it.
    #[inline]
    fn locate(&self, gpa: Gpa, len: u64) -> Result<*mut u8, Unbacked> {
        for region in &self.regions {
            let offset = gpa.raw().wrapping_sub(region.base.raw());
            if offset < region.len && len <= region.len - offset {
                return Ok((RAM_WINDOW + gpa.raw()) as *mut u8);
            }
        }
        Err(Unbacked { gpa, len })
    }
}

impl GuestMemory for RamWindow {
    #[inline]
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Unbacked> {
        let from = self.locate(gpa, buf.len() as u64)?;
        // SAFETY: the window is mapped (see new), `locate` checked the range, and `buf` is not in the window.
        unsafe {
            match buf.len() {
                // Page-table entries and operands, without a call.
                8 => buf
                    .as_mut_ptr()
                    .cast::<u64>()
                    .write_unaligned(from.cast::<u64>().read_unaligned()),
                4 => buf
                    .as_mut_ptr()
                    .cast::<u32>()
                    .write_unaligned(from.cast::<u32>().read_unaligned()),
                len => from.copy_to_nonoverlapping(buf.as_mut_ptr(), len),
            }
        }
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Unbacked> {
        let to = self.locate(gpa, bytes.len() as u64)?;
        // SAFETY: the window is mapped (see new), `locate` checked the range, and `bytes` is not in the window.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn zero(&mut self, gpa: Gpa, len: u64) -> Result<(), Unbacked> {
        let to = self.locate(gpa, len)?;
        // SAFETY: the window is mapped (see new), and `locate` checked the range.
        unsafe { to.write_bytes(0, len as usize) };
        Ok(())
    }

    fn regions(&self) -> &[RamRegion] {
        &self.regions
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do tests get their objects and memory from? Nothing is given back: the machine is switched off soon.

use crate::test::Failure;
use alloc::string::ToString;
use core::ops::Range;
use sel4::cap::{SmallPage, Untyped};
use sel4::init_thread::slot::{CNODE, VSPACE};
use sel4::{BootInfoPtr, CPtr, CapRights, Error, ObjectBlueprint, PageAttributes, Result, TranslationTable, Word};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages for tests are mapped from here on.
const WINDOW: Word = 0x4000_0000;
/// All that the tests make comes from one untyped object of at least this size.
const ENOUGH_BITS: u8 = 22;

/// Objects, slots, addresses.
pub struct World {
    untyped: Untyped,
    slots: Range<Word>,
    window: Word,
}

/// A frame that this program can access.
#[derive(Clone, Copy)]
pub struct Page {
    /// The capability that maps it here.
    pub cap: SmallPage,
    address: Word,
}

impl Page {
    /// Where it is mapped.
    pub const fn address(&self) -> Word {
        self.address
    }

    /// One of its words.
    pub fn read(&self, offset: usize) -> u64 {
        assert!(offset + 8 <= PAGE);
        // SAFETY: the page is mapped, the offset is inside; volatile as guests and threads write there.
        unsafe { core::ptr::with_exposed_provenance::<u64>(self.address as usize + offset).read_volatile() }
    }

    /// One of its 32-bit words.
    pub fn read32(&self, offset: usize) -> u32 {
        self.read(offset & !7).unbounded_shr(8 * (offset as u32 & 4)) as u32
    }

    /// Sets one of its words.
    pub fn write(&self, offset: usize, value: u64) {
        assert!(offset + 8 <= PAGE);
        // SAFETY: as in read.
        unsafe { core::ptr::with_exposed_provenance_mut::<u64>(self.address as usize + offset).write_volatile(value) }
    }

    /// Fills it with a byte.
    pub fn fill(&self, byte: u8) {
        for offset in (0..PAGE).step_by(8) {
            self.write(offset, u64::from_ne_bytes([byte; 8]));
        }
    }

    /// The first word that differs from the byte it was filled with.
    pub fn first_change(&self, byte: u8) -> Option<usize> {
        (0..PAGE)
            .step_by(8)
            .find(|offset| self.read(*offset) != u64::from_ne_bytes([byte; 8]))
    }

    /// Copies code to its start.
    pub fn load(&self, code: &[u8]) {
        assert!(code.len() <= PAGE);
        for (i, byte) in code.iter().enumerate() {
            // SAFETY: as in read.
            unsafe { core::ptr::with_exposed_provenance_mut::<u8>(self.address as usize + i).write_volatile(*byte) }
        }
    }
}

impl World {
    /// Takes the smallest sufficient piece of RAM, which the kernel zeroes when it is used first.
    pub fn new(bootinfo: &BootInfoPtr) -> Self {
        let (untyped, _) = bootinfo
            .untyped_caps()
            .filter(|(_, desc)| !desc.is_device() && desc.size_bits() >= ENOUGH_BITS)
            .min_by_key(|(_, desc)| desc.size_bits())
            .expect("4 MiB of RAM in one piece");
        Self {
            untyped,
            slots: bootinfo.empty().range(),
            window: WINDOW,
        }
    }

    /// Whether the kernel makes VCPUs.
    pub fn has_vtx(&mut self) -> bool {
        self.make(ObjectBlueprint::VCpu).is_ok()
    }

    /// An empty slot.
    pub fn slot(&mut self) -> CPtr {
        CPtr::from_bits(self.slots.next().expect("the root CNode has slots left"))
    }

    /// Makes an object.
    pub fn make(&mut self, blueprint: ObjectBlueprint) -> Result<CPtr> {
        self.make_from(self.untyped, blueprint)
    }

    /// Makes an object from memory of one's own.
    pub fn make_from(&mut self, untyped: Untyped, blueprint: ObjectBlueprint) -> Result<CPtr> {
        let slot = self.slot();
        untyped.untyped_retype(blueprint, &CNODE.absolute_cptr(CNODE_PATH), slot.bits(), 1)?;
        Ok(slot)
    }

    /// Untyped memory of 2^`size_bits` bytes.
    pub fn untyped(&mut self, size_bits: u8) -> Result<Untyped> {
        Ok(self.make(ObjectBlueprint::Untyped { size_bits })?.cast())
    }

    /// Copies a capability.
    pub fn copy(&mut self, source: CPtr, rights: CapRights) -> Result<CPtr> {
        let slot = self.slot();
        CNODE.absolute_cptr(slot).copy(&CNODE.absolute_cptr(source), rights)?;
        Ok(slot)
    }

    /// Deletes a capability.
    pub fn delete(&mut self, cptr: CPtr) -> Result<()> {
        CNODE.absolute_cptr(cptr).delete()
    }

    /// A zeroed page.
    pub fn page(&mut self) -> Result<Page> {
        let cap = self.make(ObjectBlueprint::SmallPage)?.cast();
        self.map(cap)
    }

    /// A page from memory of one's own.
    pub fn page_from(&mut self, untyped: Untyped) -> Result<Page> {
        let cap = self.make_from(untyped, ObjectBlueprint::SmallPage)?.cast();
        self.map(cap)
    }

    /// Maps a frame at an address of its own.
    pub fn map(&mut self, cap: SmallPage) -> Result<Page> {
        let address = self.window;
        self.window += PAGE as Word;
        self.map_at(cap, address)?;
        Ok(Page { cap, address })
    }

    fn map_at(&mut self, cap: SmallPage, address: Word) -> Result<()> {
        loop {
            match cap.frame_map(VSPACE, address, CapRights::READ_WRITE, PageAttributes::WriteBack) {
                Err(Error::FailedLookup { .. }) => self.table_at(address)?,
                result => return result,
            }
        }
    }

    /// Adds the lowest level of tables that can be added at an address.
    pub fn table_at(&mut self, address: Word) -> Result<()> {
        let table: sel4::cap::PageTable = self.make(ObjectBlueprint::PageTable)?.cast();
        if table.table_map(VSPACE, address).is_ok() {
            return Ok(());
        }
        let directory: sel4::cap::PageDirectory = self.make(ObjectBlueprint::PageDirectory)?.cast();
        if directory.table_map(VSPACE, address).is_ok() {
            return Ok(());
        }
        let pdpt: sel4::cap::Pdpt = self.make(ObjectBlueprint::Pdpt)?.cast();
        pdpt.table_map(VSPACE, address)
    }

    /// Reserves `pages` pages of addresses.
    pub fn addresses(&mut self, pages: Word) -> Word {
        let address = self.window;
        self.window += pages * PAGE as Word;
        address
    }
}

/// The root CNode itself, as the destination of a retype.
const CNODE_PATH: sel4::CPtrWithDepth = sel4::CPtrWithDepth { bits: 0, depth: 0 };

/// The error that was expected, or what happened instead.
pub fn refused<T>(result: Result<T>, expected: Error) -> core::result::Result<(), Failure> {
    match result {
        Err(error) if error == expected => Ok(()),
        Err(error) => Err(Failure(alloc::format!("refused, but because {error}"))),
        Ok(_) => Err(Failure("it was not refused".to_string())),
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What if the guest writes to one of its tables, and the table is shadowed? The write is emulated; the sptes made from the
//! entry go, or follow.
//!
//! Memory first, then sptes: a fault on another vCPU that read the old entry meanwhile reads it again under mmu_lock (see
//! [`super::fetch`]), or is seen here.

use super::Shadow;
use super::memory::GuestMemory;
use crate::Mmu;
use crate::fault::HostFault;
use crate::locks::Held;
use crate::stage2::{GpteSize, GuestRam, Stage2};
use crate::table::{ENTRIES, SptePlace, TableId};
use crate::vcpu::Vcpu;
use umbra_mmu_abi::{Gpa, PAGE_SIZE, SlotFlags};

/// Emulated writes to an upper table since it was last used that make it worth nothing.
// REQ: SP-9
const FLOODING: u8 = 3;

/// Why nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotWritten {
    /// There is no memory that can be written: the write is for a device, or lost.
    NoMemory,
    /// The owner of the frame has to do something before.
    Host(HostFault),
}

impl<S: Stage2> Mmu<S> {
    /// An emulated instruction, or a device of the VMM, writes to guest memory: shadow pages follow, and the write is
    /// logged. What lies on two pages is written page by page.
    ///
    /// # Errors
    /// The first page that has no writable memory; nothing on it was written.
    // REQ: SP-8, DT-1, EM-1
    pub fn emulated_write(&self, vcpu: &mut Vcpu, gpa: Gpa, bytes: &[u8]) -> Result<(), NotWritten> {
        let (mut at, mut rest) = (gpa, bytes);
        while !rest.is_empty() {
            let here = rest.len().min((PAGE_SIZE - at.offset()) as usize);
            let (now, later) = rest.split_at(here);
            self.write_in_page(vcpu, at, now.len(), |ram, frame| {
                ram.write(frame, at.offset() as u16, now)
            })?;
            (at, rest) = (Gpa::new(at.raw() + here as u64), later);
        }
        Ok(())
    }

    /// The same for an emulated instruction that exchanges an entry if it is `old`; the answer is what was there instead.
    ///
    /// # Errors
    /// There is no writable memory.
    // REQ: SP-8
    pub fn emulated_compare_exchange(
        &self,
        vcpu: &mut Vcpu,
        gpa: Gpa,
        size: GpteSize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, NotWritten> {
        let offset = gpa.offset() as u16;
        self.write_in_page(vcpu, gpa, size as usize, |ram, frame| {
            ram.compare_exchange(frame, offset, size, old, new)
        })
    }

    fn write_in_page<R>(
        &self,
        vcpu: &mut Vcpu,
        gpa: Gpa,
        len: usize,
        write: impl FnOnce(&S::Ram, crate::stage2::Frame) -> R,
    ) -> Result<R, NotWritten> {
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let memory = GuestMemory::new(self, slots);
        let (slot, frame) = memory.find_writable(gpa.gfn())?;
        let result = write(&self.ram, frame);
        if slot.flags.contains(SlotFlags::LOG_DIRTY) {
            slot.data.dirty.mark(gpa.gfn());
        }
        self.with_shadow(slots, held, &mut vcpu.reserve, |shadow| shadow.written(gpa, len));
        Ok(result)
    }
}

impl<S: Stage2> Shadow<'_, S> {
    /// `len` bytes at `gpa`, on one page, were written to memory.
    // REQ: SP-8, SP-9
    pub(super) fn written(&mut self, gpa: Gpa, len: usize) {
        // Room for the sptes that follow; without it they only go.
        let _: Result<(), _> = self.entries().top_up(self.reserve, super::zap::ENTRIES_PER_FAULT);
        while let Some(id) = self.unlikely_table(gpa, len) {
            self.zap_page(id);
        }
        let mut next = self.pages_of(gpa.gfn()).next();
        let mut done = 0;
        while let Some(id) = next {
            self.entry_written(id, gpa);
            done += 1;
            // Pages of this gfn are not made or zapped meanwhile.
            next = self.pages_of(gpa.gfn()).nth(done);
        }
        self.commit();
    }

    /// A page whose guest table is probably none any more: it is written too often, or not as tables are.
    // REQ: SP-9
    fn unlikely_table(&mut self, gpa: Gpa, len: usize) -> Option<TableId> {
        let mut flooded = None;
        let mut at = 0;
        while let Some(id) = self.pages_of(gpa.gfn()).nth(at) {
            at += 1;
            let role = self.tables().get(id).role();
            if misaligned(self.pages.formats.of(role).size(), gpa.offset(), len) {
                return Some(id);
            }
            if role.level() > 1 && self.pages.get(id).write_flooding_count >= FLOODING {
                flooded = Some(id);
            }
        }
        flooded
    }

    fn entry_written(&mut self, id: TableId, gpa: Gpa) {
        let role = self.tables().get(id).role();
        if role.level() > 1 {
            // A leaf table that is written often becomes unsync.
            let page = self.pages.get_mut(id);
            page.write_flooding_count += 1;
            // Whoever uses the table next shall be seen to use it.
            self.restructured();
        }
        for index in sptes_of(role, gpa.offset()).into_iter().flatten() {
            let place = SptePlace { table: id, index };
            if !self.tables().read(place).is_empty() {
                self.zap_spte(place);
                if role.level() == 1 {
                    self.commit();
                    self.prefetch_one(place);
                }
            }
        }
    }
}

/// Whether a write is none to a table of entries of `size`. A single byte at an entry's beginning changes its flags.
// REQ: SP-9
fn misaligned(size: GpteSize, offset: u64, len: usize) -> bool {
    let size = size as u64;
    if offset.is_multiple_of(size) && len == 1 {
        return false;
    }
    let across = offset / size != (offset + len as u64 - 1) / size;
    across || len < 4
}

/// The sptes of a page that are made from the entry at `offset`: none, one, or, for 4-byte directories, two.
// REQ: SP-2, SP-8
fn sptes_of(role: crate::role::Role, offset: u64) -> [Option<u16>; 2] {
    let entries = ENTRIES as u64;
    if role.cr4_pae() {
        return [Some((offset / 8) as u16), None];
    }
    let (first, count) = match role.level() {
        1 => (offset / 4, 1),
        _ => (offset / 4 * 2, 2),
    };
    if first / entries != role.quadrant() as u64 {
        return [None, None];
    }
    let first = (first % entries) as u16;
    [Some(first), (count == 2).then_some(first + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;

    // REQ: SP-9
    #[test]
    fn writes_across_entries_or_of_few_bytes_are_no_table_writes() {
        let b8 = |offset, len| misaligned(GpteSize::B8, offset, len);
        assert!(!b8(0x18, 8) && !b8(0x18, 4) && !b8(0x1c, 4) && !b8(0x18, 1));
        assert!(b8(0x1c, 8) && b8(0x18, 2) && b8(0x19, 1) && b8(0x10, 16));
        let b4 = |offset, len| misaligned(GpteSize::B4, offset, len);
        assert!(!b4(0x1c, 4) && !b4(0x1c, 1));
        assert!(b4(0x18, 8) && b4(0x1e, 4) && b4(0x1d, 1));
    }

    // REQ: SP-2, SP-8: every entry of a guest's table leads to sptes in the page that shadows its part, and back.
    #[test]
    fn the_sptes_of_an_entry_are_those_that_are_made_from_it() {
        for (pae, level) in [(true, 1), (true, 2), (false, 1), (false, 2)] {
            let role = Role::new().with_level(level).with_cr4_pae(pae);
            let (size, quadrants) = match (pae, level) {
                (true, _) => (8, 1),
                (false, 1) => (4, 2),
                (false, _) => (4, 4),
            };
            let mut sptes = 0;
            for entry in 0..4096 / size {
                for quadrant in 0..quadrants {
                    let role = role.with_quadrant(quadrant);
                    for index in sptes_of(role, entry * size).into_iter().flatten() {
                        assert_eq!(super::super::sync::Source::index(role, index) as u64, entry);
                        sptes += 1;
                    }
                }
            }
            assert_eq!(sptes, 512 * quadrants as u64, "no spte is missed");
        }
    }
}

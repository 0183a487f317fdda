// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does hardware do in shadow mode? Processors walk the MMU's own tables; below, guest memory is where it always is.
//!
//! Nothing is forgiven here: the tables are the MMU's, so a translation that a processor has cached must be what the
//! tables say, or somebody has not flushed; and a processor that is led to anything but a table, or to memory that no slot
//! has, has left its container.

use super::cpu::{HostPage, Physical};
use super::memory::{HostFrame, SimMemory, compare_exchange_entry, read_entry};
use super::mmu_memory::{SimRam, SimWords};
use super::paging::{Access, Paging, Privilege};
use super::walk::{Memory, NoCaches, Translation, walk};
use crate::spte::Leaf;
use crate::stage2::{
    BackingShape, FlushEpoch, GpteSize, GuestAccess, Observed, Stage2, Stage2Error, TableHandle, TableLevel,
    TableNeeds, Unflushed,
};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::convert::Infallible;
use umbra_mmu_abi as abi;
use umbra_mmu_abi::{Backing, Gfn, SlotId};

/// What an old translation in a processor's caches is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// A missing flush: panics with what is cached and what is true. Where one thread does everything.
    Refused,
    /// Used, as hardware does; whoever changed the tables may be about to flush.
    Used,
}

/// Host memory below the MMU's own tables, as one processor uses it.
#[derive(Debug)]
pub struct HostTables<'a> {
    /// The memory.
    pub memory: &'a SimMemory,
    /// What to do about old translations.
    pub staleness: Staleness,
}

/// The words of the table at a host address.
fn table(memory: &SimMemory, address: u64) -> &super::memory::Words {
    match memory.at(address >> 12) {
        HostFrame::Table(id) => memory.table(id),
        other @ (HostFrame::Ram(_) | HostFrame::Nothing) => {
            panic!("the processor walks {other:?} at {address:#x}, which is no table of the MMU")
        }
    }
}

impl Memory for HostTables<'_> {
    type Refused = Infallible;

    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Infallible> {
        Ok(read_entry(table(self.memory, address), (address & 4095) as u16, size))
    }

    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Infallible> {
        let words = table(self.memory, address);
        Ok(compare_exchange_entry(words, (address & 4095) as u16, size, old, new).is_ok())
    }
}

/// The same tables, looked at without setting flags in them.
struct Peek<'a>(&'a SimMemory);

impl Memory for Peek<'_> {
    type Refused = Infallible;
    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Infallible> {
        Ok(read_entry(table(self.0, address), (address & 4095) as u16, size))
    }
    fn compare_exchange(&mut self, _: u64, _: GpteSize, _: u64, _: u64) -> Result<bool, Infallible> {
        Ok(true)
    }
}

/// Whether a cached translation promises no more than the tables do.
fn is_current(used: &Translation, now: &Translation) -> bool {
    let rights = now.allowed.contains(used.allowed) && (now.dirty || !used.dirty);
    used.address == now.address && rights
}

impl Physical for HostTables<'_> {
    fn flushes(&self) -> u64 {
        self.memory.flushes()
    }

    fn host(&mut self, address: u64, kind: abi::Access) -> Result<HostPage, Infallible> {
        let at = self.memory.at(address >> 12);
        let attached = match at {
            HostFrame::Ram(frame) => self.memory.attached(frame),
            HostFrame::Table(_) | HostFrame::Nothing => None,
        };
        match (attached, kind) {
            (Some(GuestAccess::All), _) | (Some(GuestAccess::ReadExec), abi::Access::Read | abi::Access::Fetch) => {}
            (Some(GuestAccess::ReadExec), abi::Access::Write) | (None, _) => {
                panic!("a {kind:?} of the guest reaches {at:?} at {address:#x}, which is attached as {attached:?}")
            }
        }
        Ok(HostPage {
            host: 0,
            shift: 64 - 1,
            writable: true,
        })
    }

    fn verify(&self, paging: &Paging, gva: u64, used: &Translation) {
        if self.staleness == Staleness::Used {
            return;
        }
        if let HostFrame::Ram(frame) = self.memory.at(used.address >> 12) {
            let attached = self.memory.attached(frame);
            assert!(
                attached.is_some(),
                "{gva:#x} is translated to {frame:?}, which no slot has: a flush is missing"
            );
        }
        // Such an access is always allowed: the walk shows what there is.
        let any = Access {
            kind: abi::Access::Read,
            privilege: Privilege::SupervisorAc,
        };
        match walk(&mut Peek(self.memory), &mut NoCaches, paging, gva, any) {
            Ok(now) if is_current(used, &now) => {}
            now => panic!("{gva:#x} is translated by {used:x?}, and the tables say {now:x?}: a flush is missing"),
        }
    }

    fn memory(&self) -> &SimMemory {
        self.memory
    }
}

/// The guest's container in shadow mode: which memory it has.
#[derive(Debug)]
pub struct SimShadow {
    memory: Arc<SimMemory>,
    slots: BTreeMap<SlotId, (Backing, u32, GuestAccess)>,
    /// Frames of slots that are gone, until a flush.
    limbo: Vec<(Backing, u32)>,
}

impl SimShadow {
    /// Without any slot.
    pub fn new(memory: Arc<SimMemory>) -> Self {
        Self {
            memory,
            slots: BTreeMap::new(),
            limbo: Vec::new(),
        }
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<SimMemory> {
        &self.memory
    }
}

const NOT_ASKED: &str = "in shadow mode hardware walks the MMU's own tables, and is told of none";

impl Stage2 for SimShadow {
    type Words = SimWords;
    type Ram = SimRam;

    fn attach_slot(
        &mut self,
        slot: SlotId,
        backing: Backing,
        npages: u32,
        access: GuestAccess,
    ) -> Result<(), Stage2Error> {
        let refused = |operation| Err(Stage2Error::Refused { operation, code: 0 });
        if self.slots.contains_key(&slot) {
            return refused("attach of an attached slot");
        }
        let pages = self.memory.shape(backing.id).and_then(BackingShape::pages).unwrap_or(0);
        if backing.first_page as u64 + npages as u64 > pages as u64 {
            return refused("attach beyond the backing");
        }
        let ends = |backing: &Backing, npages| (backing.first_page, backing.first_page + npages);
        let (start, end) = ends(&backing, npages);
        let again = self.limbo.iter().find(|(gone, npages)| {
            let (gone_start, gone_end) = ends(gone, *npages);
            gone.id == backing.id && gone_start < end && start < gone_end
        });
        assert!(
            again.is_none(),
            "frames of {again:?} are used again before the flush that ends their old use"
        );
        self.memory.attach(backing, npages, access);
        self.slots.insert(slot, (backing, npages, access));
        Ok(())
    }

    fn revoke_slot(&mut self, slot: SlotId) -> Unflushed {
        let (backing, npages, access) = self.slots.remove(&slot).expect("an attached slot");
        self.memory.detach(backing, npages, access);
        self.limbo.push((backing, npages));
        Unflushed::removed(1)
    }

    fn flush(&mut self, removed: Unflushed) -> FlushEpoch {
        if removed.settle() == 0 {
            return FlushEpoch(self.memory.flushes());
        }
        self.limbo.clear();
        FlushEpoch(self.memory.flush())
    }

    fn reserve(&mut self, _: TableNeeds) -> Result<(), Stage2Error> {
        panic!("{NOT_ASKED}")
    }
    fn link(&mut self, _: Gfn, _: TableLevel) -> Result<TableHandle, Stage2Error> {
        panic!("{NOT_ASKED}")
    }
    fn unlink(&mut self, _: TableHandle) -> Unflushed {
        panic!("{NOT_ASKED}")
    }
    fn map(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Result<(), Stage2Error> {
        panic!("{NOT_ASKED}")
    }
    fn unmap(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Unflushed {
        panic!("{NOT_ASKED}")
    }
    fn protect(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Result<Unflushed, Stage2Error> {
        panic!("{NOT_ASKED}")
    }
    fn observe(&mut self, _: SlotId, _: Gfn, _: &Leaf) -> Observed {
        panic!("{NOT_ASKED}")
    }
    fn count_mapped(&mut self, _: SlotId) -> u32 {
        panic!("{NOT_ASKED}")
    }
}

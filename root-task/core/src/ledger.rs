// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who holds which capability and who has which memory mapped: written down at every kernel call, read by the audit.

use crate::frames::Size;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::fmt;

bitflags! {
    /// Rights of a capability or mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Rights: u8 {
        /// Read a frame, receive from an endpoint, wait for a notification.
        const READ = 1 << 0;
        /// Write a frame, send to an endpoint, signal a notification.
        const WRITE = 1 << 1;
        /// Send capabilities, and be replied to.
        const GRANT = 1 << 2;
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (right, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::GRANT, "g")] {
            f.write_str(if self.contains(right) { letter } else { "-" })?;
        }
        Ok(())
    }
}

/// Who holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// The root task.
    Root,
    /// The vmm of the VM with this number.
    Vmm(u16),
    /// The mmu of the VM with this number.
    Mmu(u16),
}

/// Which endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// The root task's: log, verdicts, faults.
    Supervisor,
    /// That of the mmu of this VM.
    Requests(u16),
}

/// What a capability names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// Untyped memory of 2^`bits` bytes.
    Untyped {
        /// log2 of its size in bytes.
        bits: u8,
        /// Outside the kernel's window.
        device: bool,
    },
    /// A page frame.
    Frame {
        /// How large.
        size: Size,
        /// Made of device memory.
        device: bool,
    },
    /// Capability storage of 2^`bits` slots.
    CNode {
        /// log2 of its slots.
        bits: u8,
    },
    /// A thread.
    Tcb,
    /// An address space.
    VSpace,
    /// A page table of any level below the address space.
    PageTable,
    /// The root of a guest's EPT.
    EptRoot,
    /// A virtual CPU.
    Vcpu,
    /// An endpoint.
    Endpoint(Port),
    /// A notification.
    Notification,
    /// I/O ports, both ends included.
    IoPorts {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// The right to handle an interrupt, by its pin.
    IrqHandler(u8),
    /// The right to make interrupt handlers.
    IrqControl,
    /// The right to make ASID pools.
    AsidControl,
    /// Address space identifiers.
    AsidPool,
    /// The right to assign scheduling domains.
    Domain,
}

impl Object {
    /// Bytes of physical memory that its holder reaches or can use up; 0 for kernel objects.
    pub const fn memory(self) -> u64 {
        match self {
            Self::Untyped { bits, .. } => 1 << bits,
            Self::Frame { size, .. } => size.bytes(),
            Self::CNode { .. }
            | Self::Tcb
            | Self::VSpace
            | Self::PageTable
            | Self::EptRoot
            | Self::Vcpu
            | Self::Endpoint(_)
            | Self::Notification
            | Self::IoPorts { .. }
            | Self::IrqHandler(_)
            | Self::IrqControl
            | Self::AsidControl
            | Self::AsidPool
            | Self::Domain => 0,
        }
    }
}

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// What it names.
    pub object: Object,
    /// Its rights.
    pub rights: Rights,
    /// Its badge; 0: none.
    pub badge: u64,
    /// Physical address of the memory that it names; 0 for kernel objects.
    pub paddr: u64,
}

/// Capabilities in consecutive slots that name consecutive memory, or one capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapRun {
    /// Who holds them.
    pub holder: Holder,
    /// First slot.
    pub slot: u64,
    /// How many.
    pub count: u64,
    /// The first one.
    pub cap: Cap,
}

/// A mapping in an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Whose address space.
    pub holder: Holder,
    /// First address.
    pub vaddr: u64,
    /// First physical address.
    pub paddr: u64,
    /// In bytes.
    pub len: u64,
    /// The holder may write.
    pub writable: bool,
}

/// Everything that was handed out and not taken back.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    caps: Vec<CapRun>,
    mappings: Vec<Mapping>,
}

impl Ledger {
    /// Nothing handed out.
    pub const fn new() -> Self {
        Self {
            caps: Vec::new(),
            mappings: Vec::new(),
        }
    }

    /// `count` capabilities like `cap`, naming consecutive memory, are now in the slots from `slot` on.
    pub fn put(&mut self, holder: Holder, slot: u64, count: u64, cap: Cap) {
        if count == 0 {
            return;
        }
        if let Some(last) = self.caps.last_mut()
            && last.holder == holder
            && last.slot + last.count == slot
            && last.cap.object.memory() > 0
            && last.cap
                == (Cap {
                    paddr: last.cap.paddr,
                    ..cap
                })
            && last.cap.paddr + last.count * cap.object.memory() == cap.paddr
        {
            last.count += count;
            return;
        }
        self.caps.push(CapRun {
            holder,
            slot,
            count,
            cap,
        });
    }

    /// What is in a slot.
    pub fn get(&self, holder: Holder, slot: u64) -> Option<Cap> {
        let run = self.caps[self.position(holder, slot)?];
        Some(run.nth(slot - run.slot))
    }

    /// The slot is empty from now on.
    pub fn remove(&mut self, holder: Holder, slot: u64) -> Option<Cap> {
        let at = self.position(holder, slot)?;
        let run = self.caps[at];
        let before = slot - run.slot;
        let after = run.count - before - 1;
        if after > 0 {
            self.caps.insert(
                at + 1,
                CapRun {
                    slot: slot + 1,
                    count: after,
                    cap: run.nth(before + 1),
                    ..run
                },
            );
        }
        if before > 0 {
            self.caps[at].count = before;
        } else {
            self.caps.remove(at);
        }
        Some(run.nth(before))
    }

    /// Memory is now mapped.
    pub fn map(&mut self, mapping: Mapping) {
        if let Some(last) = self.mappings.last_mut()
            && (last.holder, last.writable) == (mapping.holder, mapping.writable)
            && last.vaddr + last.len == mapping.vaddr
            && last.paddr + last.len == mapping.paddr
        {
            last.len += mapping.len;
            return;
        }
        self.mappings.push(mapping);
    }

    /// All capabilities.
    pub fn caps(&self) -> &[CapRun] {
        &self.caps
    }

    /// All mappings.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// How many capabilities all holders but the root task have.
    pub fn handed_out(&self) -> u64 {
        self.caps
            .iter()
            .filter(|run| run.holder != Holder::Root)
            .map(|run| run.count)
            .sum()
    }

    fn position(&self, holder: Holder, slot: u64) -> Option<usize> {
        self.caps
            .iter()
            .position(|run| run.holder == holder && (run.slot..run.slot + run.count).contains(&slot))
    }
}

impl CapRun {
    fn nth(&self, n: u64) -> Cap {
        Cap {
            paddr: self.cap.paddr + n * self.cap.object.memory(),
            ..self.cap
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(paddr: u64) -> Cap {
        let object = Object::Frame {
            size: Size::Small,
            device: false,
        };
        Cap {
            object,
            rights: Rights::READ | Rights::WRITE,
            badge: 0,
            paddr,
        }
    }

    #[test]
    fn consecutive_frames_become_one_run() {
        let mut ledger = Ledger::new();
        ledger.put(Holder::Mmu(0), 16, 1, frame(0x1000));
        ledger.put(Holder::Mmu(0), 17, 2, frame(0x2000));
        assert_eq!(ledger.caps().len(), 1);
        assert_eq!(ledger.get(Holder::Mmu(0), 18), Some(frame(0x3000)));
        // Another address, slot, holder or right begins a new run.
        ledger.put(Holder::Mmu(0), 19, 1, frame(0x8000));
        ledger.put(Holder::Mmu(0), 30, 1, frame(0x9000));
        ledger.put(Holder::Mmu(1), 31, 1, frame(0xa000));
        ledger.put(
            Holder::Mmu(1),
            32,
            1,
            Cap {
                rights: Rights::READ,
                ..frame(0xb000)
            },
        );
        assert_eq!(ledger.caps().len(), 5);
        assert_eq!(ledger.handed_out(), 7);
        assert_eq!(ledger.get(Holder::Vmm(0), 16), None);
        assert_eq!(ledger.get(Holder::Mmu(0), 20), None);
    }

    #[test]
    fn kernel_objects_are_never_one_run() {
        let mut ledger = Ledger::new();
        let tcb = Cap {
            object: Object::Tcb,
            rights: Rights::all(),
            badge: 0,
            paddr: 0,
        };
        ledger.put(Holder::Root, 1, 1, tcb);
        ledger.put(Holder::Root, 2, 1, tcb);
        assert_eq!(ledger.caps().len(), 2);
        assert_eq!(ledger.handed_out(), 0);
    }

    #[test]
    fn removing_splits_a_run() {
        for slot in 16..20 {
            let mut ledger = Ledger::new();
            ledger.put(Holder::Root, 16, 4, frame(0x1000));
            assert_eq!(
                ledger.remove(Holder::Root, slot),
                Some(frame(0x1000 + (slot - 16) * 4096))
            );
            assert_eq!(ledger.remove(Holder::Root, slot), None);
            for other in (16..20).filter(|&s| s != slot) {
                assert_eq!(
                    ledger.get(Holder::Root, other),
                    Some(frame(0x1000 + (other - 16) * 4096))
                );
            }
        }
    }

    #[test]
    fn consecutive_mappings_become_one() {
        let mut ledger = Ledger::new();
        let mapping = Mapping {
            holder: Holder::Vmm(0),
            vaddr: 0x1000,
            paddr: 0x5000,
            len: 0x1000,
            writable: true,
        };
        ledger.map(mapping);
        ledger.map(Mapping {
            vaddr: 0x2000,
            paddr: 0x6000,
            ..mapping
        });
        assert_eq!(ledger.mappings(), [Mapping { len: 0x2000, ..mapping }]);
        ledger.map(Mapping {
            vaddr: 0x3000,
            paddr: 0x7000,
            writable: false,
            ..mapping
        });
        ledger.map(Mapping {
            vaddr: 0x4000,
            paddr: 0x9000,
            writable: false,
            ..mapping
        });
        assert_eq!(ledger.mappings().len(), 3);
    }
}

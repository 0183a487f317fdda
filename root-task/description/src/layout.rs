// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: addresses in a component, capability slots, the bundle behind the root task, the payload in RAM.

/// Virtual address of the root task's bundle, an extra read-only ELF segment that the tool adds: the first page boundary
/// at or after the end of the last segment of the linked program (`image_end` = address of the linker's `_end`).
/// It follows at once because the kernel places the root task in one physically contiguous range from its lowest to its
/// highest address, and clears and maps all of it: a gap would cost memory and start-up time.
pub const fn bundle_vaddr(image_end: u64) -> u64 {
    image_end.next_multiple_of(4096)
}

/// Physical address where the loader places the payload bundle.
pub const PAYLOAD_PADDR: u64 = 0x0200_0000;

/// In a component: its IPC buffer (one page).
pub const IPC_BUFFER: u64 = 0x5000_0000;
/// In a component: its configuration, postcard (read-only).
pub const CONFIG: u64 = 0x5001_0000;
/// In a component: end of its stack (it grows down from here).
pub const STACK_TOP: u64 = 0x6000_0000;
/// In a component: its heap.
pub const HEAP: u64 = 0x7000_0000;
/// In a vmm: guest RAM; gpa 0 would be here.
pub const RAM_WINDOW: u64 = 0x10_0000_0000;
/// In a vmm: the payload bundle (read-only).
pub const PAYLOAD_WINDOW: u64 = 0x20_0000_0000;

/// Capability slots of a vmm component.
pub mod vmm {
    /// Endpoint to its mmu (write and grant: this kernel creates no reply capability for a `Call` without grant; the
    /// mmu names no receive slot, so no capability can travel).
    pub const MMU: u64 = 2;
    /// Endpoint to the root task (write, badged with the VM's number).
    pub const SUPERVISOR: u64 = 3;
    /// Its VCPU.
    pub const VCPU: u64 = 4;
    /// I/O ports of the physical UART, if it has a console.
    pub const CONSOLE_PORT: u64 = 5;
    /// Interrupt handler of that UART.
    pub const CONSOLE_IRQ: u64 = 6;
    /// The notification bound to its thread (read): console interrupts arrive on it.
    pub const NOTIFICATION: u64 = 7;
    /// Where the kernel reports its faults: the root task's endpoint with another badge.
    pub const FAULT: u64 = 8;
}

/// Capability slots of an mmu component.
pub mod mmu {
    /// Its own CNode; this capability's guard makes slot numbers of 64 bits resolve (as a root of CNode operations).
    pub const CNODE: u64 = 1;
    /// Endpoint of its vmm's requests (read).
    pub const REQUESTS: u64 = 2;
    /// Endpoint to the root task (write, badged).
    pub const SUPERVISOR: u64 = 3;
    /// The VM's EPT root.
    pub const EPT: u64 = 4;
    /// The root of its CSpace: a CNode of 2^`TOP_BITS` entries. Entry 0 leads to its own CNode with a guard of zeros, so
    /// that small numbers are that CNode's slots; the others are empty. The mmu puts one CNode per memslot there.
    pub const TOP: u64 = 5;
    /// log2 of the entries of `TOP`.
    pub const TOP_BITS: u32 = 9;
    /// Where the kernel reports its faults: the root task's endpoint with another badge.
    pub const FAULT: u64 = 6;
    /// First of the variable part: untyped capabilities, then frames, then empty slots (see `MmuConfig`).
    pub const FIRST_VARIABLE: u64 = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_slot_has_two_uses() {
        let vmm = [
            vmm::MMU,
            vmm::SUPERVISOR,
            vmm::VCPU,
            vmm::CONSOLE_PORT,
            vmm::CONSOLE_IRQ,
            vmm::NOTIFICATION,
            vmm::FAULT,
        ];
        let mmu = [
            mmu::CNODE,
            mmu::REQUESTS,
            mmu::SUPERVISOR,
            mmu::EPT,
            mmu::TOP,
            mmu::FAULT,
            mmu::FIRST_VARIABLE,
        ];
        for slots in [&vmm[..], &mmu[..]] {
            for (i, slot) in slots.iter().enumerate() {
                assert!(!slots[..i].contains(slot) && *slot != 0, "slot {slot}");
            }
        }
        assert!(mmu.iter().all(|&slot| slot <= mmu::FIRST_VARIABLE));
    }
}

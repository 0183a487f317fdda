// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compiled form of `system.toml`.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// The whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Printed at boot.
    pub name: String,
    /// Where the root task and components log.
    pub log: ComPort,
    /// What happens when the last VM has stopped.
    pub power_off: PowerOff,
    /// Guest images in RAM that the loader placed, if any VM needs one.
    pub payload: Option<Payload>,
    /// Programs that the root task may start, by name.
    pub components: Vec<Component>,
    /// Virtual machines, started in this order.
    pub vms: Vec<Vm>,
}

/// A PC serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ComPort {
    /// Port 0x3f8, IRQ 4.
    Com1,
    /// Port 0x2f8, IRQ 3.
    Com2,
}

/// How the machine is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerOff {
    /// The Bochs port 0x8900.
    Bochs,
    /// The QEMU isa-debug-exit port 0xf4: status (0 -> 0x10, else 0x11).
    Qemu,
    /// Halt and say so.
    Halt,
}

/// A bundle of guest images in physical memory outside the kernel's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// First physical address; 2 MiB aligned.
    pub paddr: u64,
    /// Length in bytes, as placed.
    pub len: u64,
}

/// A program in the root task's bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// How VMs name it.
    pub name: String,
    /// Name of the ELF file in the bundle.
    pub image: String,
    /// Stack in bytes.
    pub stack: u64,
    /// Heap in bytes.
    pub heap: u64,
    /// seL4 priority, 1..=254.
    pub priority: u8,
}

/// How a VM's memory is virtualised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Extended page tables.
    Ept,
}

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its name in logs.
    pub name: String,
    /// EPT or (later) shadow.
    pub mode: Mode,
    /// Index into `System::components`.
    pub vmm: u16,
    /// Index into `System::components`.
    pub mmu: u16,
    /// Memory slots at start.
    pub slots: Vec<Slot>,
    /// What it boots.
    pub boot: GuestBoot,
    /// The serial port behind its UART; `None`: output is dropped.
    pub console: Option<ComPort>,
    /// The test-exit port 0xf4 answers.
    pub test_exit: bool,
    /// First value of the MMIO generation; `None`: the mmu's default (near the wrap).
    pub first_generation: Option<u32>,
    /// Bytes of untyped memory for EPT objects.
    pub table_memory: u64,
}

impl Vm {
    /// Heap that its mmu gets beyond the component's own, in bytes: 16 bytes for each 4K page of guest memory (mirror
    /// tables and reverse maps), in steps of 2 MiB.
    pub fn mmu_heap_extra(&self) -> u64 {
        let pages: u64 = self.slots.iter().map(|slot| slot.len / 4096).sum();
        (pages * 16).next_multiple_of(2 << 20)
    }
}

/// A memory slot at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// First guest-physical address; 4K aligned.
    pub gpa: u64,
    /// Length in bytes; 4K aligned.
    pub len: u64,
    /// RAM or ROM.
    pub kind: SlotKind,
    /// Frame sizes to use.
    pub pages: RamPages,
}

/// What a slot is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotKind {
    /// Reads and writes run at full speed.
    Ram,
    /// Reads run at full speed, writes exit.
    Rom,
}

/// Frame sizes behind a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RamPages {
    /// 2M wherever aligned, 4K at the ends.
    Auto,
    /// 4K only.
    Small,
}

/// What a VM boots. Names are entries of the payload bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestBoot {
    /// The kernel: bzImage, vmlinux (PVH), multiboot 1, found out by its content.
    pub kernel: String,
    /// Initial RAM disk.
    pub initrd: Option<String>,
    /// Multiboot modules.
    pub modules: Vec<Module>,
    /// Kernel command line.
    pub cmdline: String,
}

/// A multiboot module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Entry of the payload bundle.
    pub image: String,
    /// Its command line.
    pub cmdline: String,
}

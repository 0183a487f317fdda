// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a guest kernel get into RAM, and in which state does the processor enter it?

mod error;

pub use error::LoadError;

use crate::guest_mem::GuestMemory;
use umbra_mmu_abi::Gpa;

/// A multiboot module.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its content.
    pub data: &'a [u8],
    /// Its command line.
    pub cmdline: &'a str,
}

/// What to boot. The kernel's format is found out from its content.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// bzImage, vmlinux (with or without a PVH note), or multiboot 1.
    pub kernel: &'a [u8],
    /// Initial RAM disk; for multiboot kernels the first module.
    pub initrd: Option<&'a [u8]>,
    /// Multiboot modules; other formats refuse them.
    pub modules: &'a [Module<'a>],
    /// Kernel command line.
    pub cmdline: &'a str,
    /// The guest finds ACPI tables (needed to power off).
    pub acpi: bool,
}

/// The processor's mode at the first instruction. Paging is off in `Protected32`; interrupts are off; all data segments
/// are flat with selector 0x18, the flat code segment has selector 0x10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// Protected mode, 32-bit code, no paging.
    Protected32,
    /// 64-bit mode over identity page tables of the first 4 GiB.
    Long64 {
        /// The PML4.
        cr3: Gpa,
    },
}

/// How to enter the guest. Registers not named here are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mode and paging.
    pub mode: EntryMode,
    /// First instruction.
    pub rip: u64,
    /// A small stack in reserved memory.
    pub rsp: u64,
    /// Multiboot magic.
    pub rax: u64,
    /// PVH start info or multiboot info.
    pub rbx: u64,
    /// Linux boot_params.
    pub rsi: u64,
    /// GDT with null, null, code (0x10), data (0x18).
    pub gdt_base: Gpa,
    /// Its limit (length - 1).
    pub gdt_limit: u16,
}

/// Loads a kernel and all it needs into guest RAM. On an error, guest RAM may be half-filled.
pub fn load(mem: &mut impl GuestMemory, images: &Images<'_>) -> Result<Entry, LoadError> {
    let _ = mem.regions();
    Err(LoadError::UnknownFormat {
        start: images.kernel.first_chunk().copied().unwrap_or_default(),
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a guest kernel get into RAM, and in which state does the processor enter it?

mod acpi;
mod elf;
mod error;
mod file;
mod firmware;
mod linux;
mod multiboot;
mod pvh;
mod ram;

pub use error::{LoadError, Part};
pub use firmware::{CODE_SELECTOR, DATA_SELECTOR};

use crate::guest_mem::GuestMemory;
use elf::Elf;
use file::File;
use ram::Ram;
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

impl Entry {
    /// With all registers 0 and a GDT and a stack for `mode`.
    fn new(mem: &mut impl GuestMemory, ram: &mut Ram, mode: EntryMode, rip: u64) -> Result<Self, LoadError> {
        let long = match mode {
            EntryMode::Protected32 => false,
            EntryMode::Long64 { .. } => true,
        };
        let cpu = firmware::write_cpu_tables(mem, ram, long)?;
        Ok(Self {
            mode,
            rip,
            rsp: cpu.stack_top,
            rax: 0,
            rbx: 0,
            rsi: 0,
            gdt_base: cpu.gdt_base,
            gdt_limit: cpu.gdt_limit,
        })
    }
}

/// Loads a kernel and all it needs into guest RAM. On an error, guest RAM may be half-filled.
pub fn load(mem: &mut impl GuestMemory, images: &Images<'_>) -> Result<Entry, LoadError> {
    let to_come = images
        .initrd
        .into_iter()
        .chain(images.modules.iter().map(|module| module.data));
    let to_come = to_come.map(|data| (data.len() as u64).next_multiple_of(4096)).sum();
    let mut ram = Ram::new(mem.regions(), to_come);
    let kernel = File::new(images.kernel);
    if kernel.len() == 0 {
        return Err(LoadError::Empty { part: Part::Kernel });
    }
    // Formats that name an entry for loaders come before those that only Linux means.
    if let Some(header) = multiboot::find_header(&kernel) {
        prepare(mem, &ram, images)?;
        return multiboot::load(mem, &mut ram, &kernel, header, images);
    }
    if elf::is_elf(&kernel) {
        let elf = Elf::parse(&kernel)?;
        let rsdp = prepare(mem, &ram, images)?;
        return match elf.pvh_entry() {
            Some(entry) => pvh::load(mem, &mut ram, &elf, entry, images, rsdp),
            None => linux::load_vmlinux(mem, &mut ram, &elf, images, rsdp),
        };
    }
    if linux::is_bzimage(&kernel) {
        let rsdp = prepare(mem, &ram, images)?;
        return linux::load_bzimage(mem, &mut ram, &kernel, images, rsdp);
    }
    Err(unknown_format(images.kernel))
}

/// Leaves what firmware leaves; the address of the ACPI tables, if the guest is to have any.
fn prepare(mem: &mut impl GuestMemory, ram: &Ram, images: &Images<'_>) -> Result<Option<u64>, LoadError> {
    firmware::write_data_areas(mem, ram)?;
    images.acpi.then(|| firmware::write_acpi(mem, ram)).transpose()
}

fn unknown_format(kernel: &[u8]) -> LoadError {
    const OTHERS: [(&[u8], &str); 9] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"MZ", "a PE image without Linux's setup header"),
        (b"070701", "a cpio archive"),
        (b"!<arch>\n", "an archive or Debian package"),
    ];
    let mut start = [0; 4];
    for (to, from) in start.iter_mut().zip(kernel) {
        *to = *from;
    }
    let looks_like = OTHERS
        .iter()
        .find(|(magic, _)| kernel.starts_with(magic))
        .map(|&(_, name)| name);
    LoadError::UnknownFormat { start, looks_like }
}

#[cfg(test)]
mod tests;

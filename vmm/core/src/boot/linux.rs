// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is Linux entered by its own boot protocol? A bzImage, or a vmlinux without a PVH note, with boot_params.
//!
//! Offsets and bits are those of Documentation/arch/x86/boot.rst and zero-page.rst.

use super::{
    Entry, EntryMode, Images, LoadError,
    elf::{Class, Elf},
    error::Part,
    file::{File, Table},
    firmware,
    ram::{MapEntry, Ram},
};
use crate::guest_mem::GuestMemory;
use umbra_mmu_abi::Gpa;

/// Fields of the setup header: the same offsets in a bzImage and in boot_params.
mod hdr {
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const SYSSIZE: u64 = 0x1f4;
    pub const BOOT_FLAG: u64 = 0x1fe;
    /// Length of the header behind 0x202: the displacement of the jump at 0x200.
    pub const JUMP: u64 = 0x201;
    pub const MAGIC: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const LOADFLAGS: u64 = 0x211;
    pub const CODE32_START: u64 = 0x214;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const RELOCATABLE: u64 = 0x234;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// Where boot_params has something else.
    pub const END: u64 = 0x290;
}

/// Fields of boot_params outside the setup header.
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;
const E820_MAX: usize = 128;
const BOOT_PARAMS_LEN: usize = 4096;

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8; 4] = b"HdrS";
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// "A loader without a number."
const UNDEFINED_LOADER: u8 = 0xff;
/// The entry point of 64-bit code in a protected-mode kernel.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
const HIGH_LOAD: u64 = 0x10_0000;

/// Limits of kernels whose header does not tell theirs.
const OLD_INITRD_MAX: u64 = 0x37ff_ffff;
const OLD_CMDLINE_MAX: u64 = 255;
const VMLINUX_64_INITRD_MAX: u64 = 0x7fff_ffff;
/// COMMAND_LINE_SIZE of x86, less its final zero.
const VMLINUX_CMDLINE_MAX: u64 = 2047;

/// Is this a bzImage (or an old zImage)?
pub fn is_bzimage(file: &File<'_>) -> bool {
    let part = Part::SetupHeader;
    file.u16(part, hdr::BOOT_FLAG) == Ok(BOOT_FLAG) && file.range(part, hdr::MAGIC, 4) == Ok(MAGIC)
}

/// What of a kernel's header matters to its loader.
struct Setup<'a> {
    /// The header as the kernel wants it back in boot_params, from `hdr::SETUP_SECTS` on.
    header: &'a [u8],
    /// Content of the protected-mode part.
    kernel: &'a [u8],
    /// Where that goes.
    load: u64,
    /// Memory that it needs, from `load` on (or from `unpacked` on).
    unpacked: u64,
    init_size: u64,
    entry_64: bool,
    cmdline_max: u64,
    initrd_max: u64,
}

impl<'a> Setup<'a> {
    fn parse(file: &File<'a>) -> Result<Self, LoadError> {
        let part = Part::SetupHeader;
        let bad = |offset, what, value| {
            Err(LoadError::BadField {
                part,
                offset,
                what,
                value,
            })
        };
        let version = file.u16(part, hdr::VERSION)?;
        if version < 0x202 {
            return bad(hdr::VERSION, "boot protocol older than 2.02", version.into());
        }
        let loadflags = file.u8(part, hdr::LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            return bad(hdr::LOADFLAGS, "a zImage (not loaded high)", loadflags.into());
        }
        let header_end = (hdr::MAGIC + u64::from(file.u8(part, hdr::JUMP)?)).min(hdr::END);
        let header = file.range(part, hdr::SETUP_SECTS, header_end - hdr::SETUP_SECTS)?;
        // Fields that are newer than the kernel's protocol read as 0.
        let since = |protocol, offset, len: u64| version >= protocol && offset + len <= header_end;
        let u8_since = |protocol, at| {
            if since(protocol, at, 1) {
                file.u8(part, at)
            } else {
                Ok(0)
            }
        };
        let u16_since = |protocol, at| {
            if since(protocol, at, 2) {
                file.u16(part, at)
            } else {
                Ok(0)
            }
        };
        let u32_since = |protocol, at| {
            if since(protocol, at, 4) {
                file.u32(part, at)
            } else {
                Ok(0)
            }
        };

        let sectors = match file.u8(part, hdr::SETUP_SECTS)? {
            0 => 4,
            sectors => sectors,
        };
        let kernel_at = (u64::from(sectors) + 1) * SECTOR;
        // Before protocol 2.04 only the low half of the size is valid; the file's end has to do.
        let syssize = u64::from(u32_since(0x204, hdr::SYSSIZE)?) * 16;
        let kernel_len = if syssize == 0 {
            file.len().saturating_sub(kernel_at)
        } else {
            syssize
        };
        if kernel_len == 0 {
            let end = LoadError::Truncated {
                part: Part::ProtectedModeKernel,
                offset: kernel_at,
                len: 1,
                file_len: file.len(),
            };
            return Err(end);
        }
        let kernel = file.range(Part::ProtectedModeKernel, kernel_at, kernel_len)?;

        let relocatable = u8_since(0x205, hdr::RELOCATABLE)? != 0;
        let init_size = u64::from(u32_since(0x20a, hdr::INIT_SIZE)?);
        let pref_address = if since(0x20a, hdr::PREF_ADDRESS, 8) {
            file.u64(part, hdr::PREF_ADDRESS)?
        } else {
            HIGH_LOAD
        };
        if init_size != 0 && init_size < kernel_len {
            return bad(
                hdr::INIT_SIZE,
                "the kernel unpacks into less than its own size",
                init_size,
            );
        }
        let code32_start = u64::from(file.u32(part, hdr::CODE32_START)?);
        let xloadflags = u16_since(0x20c, hdr::XLOADFLAGS)?;
        Ok(Self {
            header,
            kernel,
            load: if relocatable && init_size != 0 {
                pref_address
            } else {
                code32_start
            },
            unpacked: pref_address,
            init_size,
            entry_64: xloadflags & XLF_KERNEL_64 != 0,
            cmdline_max: match u32_since(0x206, hdr::CMDLINE_SIZE)? {
                0 => OLD_CMDLINE_MAX,
                size => size.into(),
            },
            initrd_max: match u32_since(0x203, hdr::INITRD_ADDR_MAX)? {
                0 => OLD_INITRD_MAX,
                max => max.into(),
            },
        })
    }

    /// Takes what the kernel is loaded to and what it unpacks itself into, which may overlap.
    fn claim(&self, ram: &mut Ram) -> Result<(), LoadError> {
        let len = self.kernel.len() as u64;
        let end = |part, base: u64, len| base.checked_add(len).ok_or(LoadError::OutsideRam { part, base, len });
        let unpacked_end = end(Part::UnpackedKernel, self.unpacked, self.init_size)?;
        let load_end = end(Part::ProtectedModeKernel, self.load, len)?;
        let apart = load_end <= self.unpacked || unpacked_end <= self.load;
        if self.init_size == 0 {
            ram.claim(Part::ProtectedModeKernel, self.load, len)
        } else if apart {
            ram.claim(Part::UnpackedKernel, self.unpacked, self.init_size)?;
            ram.claim(Part::ProtectedModeKernel, self.load, len)
        } else {
            let base = self.load.min(self.unpacked);
            ram.claim(Part::UnpackedKernel, base, load_end.max(unpacked_end) - base)
        }
    }
}

/// Loads a bzImage.
pub fn load_bzimage(
    mem: &mut impl GuestMemory,
    ram: &mut Ram,
    file: &File<'_>,
    images: &Images<'_>,
    rsdp: Option<u64>,
) -> Result<Entry, LoadError> {
    let setup = Setup::parse(file)?;
    setup.claim(ram)?;
    mem.write(Gpa::new(setup.load), setup.kernel)?;
    let mut params = Table::new(BOOT_PARAMS_LEN);
    params.put(hdr::SETUP_SECTS as usize, setup.header);
    params.put_u32(hdr::CODE32_START as usize, setup.load as u32);
    let limits = Limits {
        cmdline: setup.cmdline_max,
        initrd_last: setup.initrd_max,
    };
    let start = if setup.entry_64 {
        Start::Long(setup.load + ENTRY_64)
    } else {
        Start::Protected(setup.load)
    };
    enter(mem, ram, images, rsdp, params, limits, start)
}

/// Loads a vmlinux: there is no setup header, so that the loader makes one.
pub fn load_vmlinux(
    mem: &mut impl GuestMemory,
    ram: &mut Ram,
    elf: &Elf<'_>,
    images: &Images<'_>,
    rsdp: Option<u64>,
) -> Result<Entry, LoadError> {
    let entry = elf.entry()?;
    elf.load(mem, ram)?;
    let mut params = Table::new(BOOT_PARAMS_LEN);
    params.put_u16(hdr::BOOT_FLAG as usize, BOOT_FLAG);
    params.put(hdr::MAGIC as usize, MAGIC);
    params.put_u16(hdr::VERSION as usize, 0x20f);
    params.put_u8(hdr::LOADFLAGS as usize, LOADED_HIGH);
    let (start, initrd_last) = match elf.class() {
        Class::Bits32 => (Start::Protected(entry), OLD_INITRD_MAX),
        Class::Bits64 => (Start::Long(entry), VMLINUX_64_INITRD_MAX),
    };
    enter(
        mem,
        ram,
        images,
        rsdp,
        params,
        Limits {
            cmdline: VMLINUX_CMDLINE_MAX,
            initrd_last,
        },
        start,
    )
}

/// What a kernel bears.
struct Limits {
    cmdline: u64,
    /// The last address that the initrd may occupy.
    initrd_last: u64,
}

/// First instruction and mode.
enum Start {
    Protected(u64),
    Long(u64),
}

/// Places the initrd and completes boot_params.
fn enter(
    mem: &mut impl GuestMemory,
    ram: &mut Ram,
    images: &Images<'_>,
    rsdp: Option<u64>,
    mut params: Table,
    limits: Limits,
    start: Start,
) -> Result<Entry, LoadError> {
    if !images.modules.is_empty() {
        return Err(LoadError::NoModules);
    }
    params.put_u8(hdr::TYPE_OF_LOADER as usize, UNDEFINED_LOADER);
    if let Some(initrd) = images.initrd {
        let base = place_initrd(mem, ram, initrd, limits.initrd_last)?;
        params.put_u32(hdr::RAMDISK_IMAGE as usize, base as u32);
        params.put_u32(hdr::RAMDISK_SIZE as usize, initrd.len() as u32);
    }
    let cmdline = firmware::write_cmdline(mem, ram, images.cmdline, limits.cmdline)?;
    params.put_u32(hdr::CMD_LINE_PTR as usize, cmdline as u32);
    params.put_u64(ACPI_RSDP_ADDR, rsdp.unwrap_or(0));
    put_e820(&mut params, &ram.map());
    let boot_params = firmware::write_table(mem, ram, &params)?;
    let (mode, rip) = match start {
        Start::Protected(rip) => (EntryMode::Protected32, rip),
        Start::Long(rip) => (
            EntryMode::Long64 {
                cr3: firmware::write_identity_map(mem, ram)?,
            },
            rip,
        ),
    };
    Entry::new(mem, ram, mode, rip).map(|entry| Entry {
        rsi: boot_params,
        ..entry
    })
}

/// Places an initrd as high as the kernel allows.
pub fn place_initrd(mem: &mut impl GuestMemory, ram: &mut Ram, initrd: &[u8], last: u64) -> Result<u64, LoadError> {
    if initrd.is_empty() {
        return Err(LoadError::Empty { part: Part::Initrd });
    }
    let base = ram.place_top(Part::Initrd, initrd.len() as u64, last.saturating_add(1))?;
    mem.write(Gpa::new(base), initrd)?;
    Ok(base)
}

fn put_e820(params: &mut Table, map: &[MapEntry]) {
    let map = &map[..map.len().min(E820_MAX)];
    params.put_u8(E820_ENTRIES, map.len() as u8);
    for (i, entry) in map.iter().enumerate() {
        let at = E820_TABLE + i * E820_ENTRY_LEN;
        params.put_u64(at, entry.base);
        params.put_u64(at + 8, entry.len);
        params.put_u32(at + 16, entry.kind as u32);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a kernel find that firmware and a boot loader would have left: data areas, ACPI, GDT, page tables, stack?

use super::{
    LoadError, acpi,
    error::Part,
    file::Table,
    ram::{EBDA, EXPANSION_ROM, FIRMWARE_DATA_END, ROM, Ram, VGA_HOLE},
};
use crate::guest_mem::GuestMemory;
use umbra_mmu_abi::Gpa;

/// Selector of the flat code segment.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the flat data segment.
pub const DATA_SELECTOR: u16 = 0x18;

/// The BIOS data area, and fields in it: COM1's port, the EBDA's segment, equipment, KiB of conventional memory.
const BDA: u64 = 0x400;
const BDA_LEN: usize = 0x100;
const BDA_COM1: usize = 0x00;
const BDA_EBDA: usize = 0x0e;
const BDA_EQUIPMENT: usize = 0x10;
const BDA_MEMORY: usize = 0x13;
/// A math coprocessor and one serial port.
const EQUIPMENT: u16 = 1 << 1 | 1 << 9;
const COM1: u16 = 0x3f8;
/// ACPI tables in the EBDA, behind its size byte; 64-byte aligned.
const ACPI_IN_EBDA: u64 = EBDA + 0x40;

const STACK_LEN: u64 = 0x1000;

/// A page-table entry of an identity map: present, writable; and a 2 MiB page.
const PTE_TABLE: u64 = 0x03;
const PTE_LARGE: u64 = 0x83;
const PAGE: usize = 4096;
/// GiB mapped: all that a 32-bit loader can name.
const MAPPED_GIB: usize = 4;

/// What the CPU starts with.
#[derive(Clone, Copy, Debug)]
pub struct CpuTables {
    /// The GDT's address.
    pub gdt_base: Gpa,
    /// Its limit.
    pub gdt_limit: u16,
    /// End of the stack.
    pub stack_top: u64,
}

/// Fills in the BIOS data area, the EBDA's size, and an expansion ROM area without ROMs.
pub fn write_data_areas(mem: &mut impl GuestMemory, ram: &Ram) -> Result<(), LoadError> {
    if !ram.has_firmware_data() {
        return Err(LoadError::OutsideRam {
            part: Part::FirmwareData,
            base: 0,
            len: FIRMWARE_DATA_END,
        });
    }
    let mut bda = Table::new(BDA_LEN);
    bda.put_u16(BDA_COM1, COM1);
    bda.put_u16(BDA_EBDA, (EBDA >> 4) as u16);
    bda.put_u16(BDA_EQUIPMENT, EQUIPMENT);
    bda.put_u16(BDA_MEMORY, (EBDA >> 10) as u16);
    mem.write(Gpa::new(BDA), bda.bytes())?;
    if ram.has_ebda() {
        mem.write(Gpa::new(EBDA), &[((VGA_HOLE - EBDA) >> 10) as u8])?;
    }
    if ram.has_expansion_rom() {
        // Kernels scan this area for ROMs. Memory that reads as an empty bus spares an exit for every read.
        for page in (EXPANSION_ROM..ROM).step_by(PAGE) {
            mem.write(Gpa::new(page), &[0xff; PAGE])?;
        }
    }
    Ok(())
}

/// Places the ACPI tables in the ROM, or in the EBDA of a machine without one; the address of the RSDP.
pub fn write_acpi(mem: &mut impl GuestMemory, ram: &Ram) -> Result<u64, LoadError> {
    let base = if ram.has_rom() {
        ROM
    } else if ram.has_ebda() {
        ACPI_IN_EBDA
    } else {
        return Err(LoadError::OutsideRam {
            part: Part::FirmwareData,
            base: EBDA,
            len: VGA_HOLE - EBDA,
        });
    };
    mem.write(Gpa::new(base), &acpi::tables(base))?;
    Ok(base)
}

/// Places a flat GDT for 32-bit or 64-bit code, and a stack.
pub fn write_cpu_tables(mem: &mut impl GuestMemory, ram: &mut Ram, long: bool) -> Result<CpuTables, LoadError> {
    const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
    const CODE_64: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let mut gdt = Table::new(usize::from(DATA_SELECTOR) + 8);
    gdt.put_u64(CODE_SELECTOR.into(), if long { CODE_64 } else { CODE_32 });
    gdt.put_u64(DATA_SELECTOR.into(), DATA);
    let gdt_base = ram.place_low(Part::BootData, gdt.bytes().len() as u64)?;
    mem.write(Gpa::new(gdt_base), gdt.bytes())?;
    let stack = ram.place_low(Part::BootData, STACK_LEN)?;
    Ok(CpuTables {
        gdt_base: Gpa::new(gdt_base),
        gdt_limit: gdt.bytes().len() as u16 - 1,
        stack_top: stack + STACK_LEN - 16,
    })
}

/// Places page tables that map the first 4 GiB one to one; the address of the PML4.
pub fn write_identity_map(mem: &mut impl GuestMemory, ram: &mut Ram) -> Result<Gpa, LoadError> {
    let mut tables = Table::new(PAGE * (2 + MAPPED_GIB));
    let base = ram.place_low(Part::BootData, tables.bytes().len() as u64)?;
    let page = |n: usize| base + (n * PAGE) as u64;
    tables.put_u64(0, page(1) | PTE_TABLE);
    for gib in 0..MAPPED_GIB {
        tables.put_u64(PAGE + 8 * gib, page(2 + gib) | PTE_TABLE);
    }
    for large in 0..MAPPED_GIB * 512 {
        tables.put_u64(2 * PAGE + 8 * large, (large as u64) << 21 | PTE_LARGE);
    }
    mem.write(Gpa::new(base), tables.bytes())?;
    Ok(Gpa::new(base))
}

/// Places a table.
pub fn write_table(mem: &mut impl GuestMemory, ram: &mut Ram, table: &Table) -> Result<u64, LoadError> {
    let base = ram.place_low(Part::BootData, table.bytes().len() as u64)?;
    mem.write(Gpa::new(base), table.bytes())?;
    Ok(base)
}

/// Places a command line with its final zero; kernels take `max` bytes without that.
pub fn write_cmdline(mem: &mut impl GuestMemory, ram: &mut Ram, text: &str, max: u64) -> Result<u64, LoadError> {
    let len = text.len() as u64;
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(LoadError::CommandLineHasNul { at: at as u64 });
    }
    if len > max {
        return Err(LoadError::CommandLineTooLong { len, max });
    }
    let base = ram.place_low(Part::CommandLine, len + 1)?;
    mem.write(Gpa::new(base), text.as_bytes())?;
    mem.zero(Gpa::new(base + len), 1)?;
    Ok(base)
}

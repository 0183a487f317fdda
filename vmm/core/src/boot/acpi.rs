// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which ACPI tables does a guest need to switch itself off, and to reset? No more than these.
//!
//! Offsets are those of ACPI 6.5: 5.2.5 (RSDP), 5.2.7/8 (RSDT, XSDT), 5.2.9 (FADT, revision 3), 5.2.10 (FACS).

use super::file::Table;
use crate::device::pm::{PM1A_CONTROL, PM1A_EVENT, SLEEP_TYPE_S5};
use alloc::vec::Vec;

const OEM_ID: &[u8; 6] = b"UMBRA ";
const OEM_TABLE_ID: &[u8; 8] = b"UMBRAVMM";
const HEADER_LEN: usize = 36;
const FADT_LEN: usize = 244;
const FACS_LEN: usize = 64;

/// Offsets of the tables from the RSDP. The FACS is to be aligned to 64 bytes, and the RSDP to 16.
const RSDT: u64 = 0x30;
const XSDT: u64 = 0x60;
const FACS: u64 = 0xc0;
const FADT: u64 = 0x100;
const DSDT: u64 = 0x200;

const SCI_IRQ: u16 = 9;
/// CMOS index of the century.
const CENTURY: u8 = 0x32;
/// Worst-case latencies above 100 and 1000 µs: no C2, no C3.
const NO_C_STATE: u16 = 0xfff;
/// IAPC_BOOT_ARCH: devices on the ISA bus; no VGA, no MSI. Bit 1 clear: no keyboard controller.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// WBINVD works; no power or sleep button; the clock cannot wake; RESET_REG is there.
const FLAGS: u32 = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10;
/// The reset register and what resets.
const RESET_PORT: u16 = 0xcf9;
const RESET_VALUE: u8 = 0x06;

/// The tables as one block to be placed at `base`, which is the RSDP's address and 64-byte aligned.
pub fn tables(base: u64) -> Vec<u8> {
    let dsdt = dsdt();
    let mut block = Table::new(DSDT as usize + dsdt.len());
    block.put(0, &rsdp(base));
    block.put(RSDT as usize, &pointers(b"RSDT", 1, &(base + FADT).to_le_bytes()[..4]));
    block.put(XSDT as usize, &pointers(b"XSDT", 1, &(base + FADT).to_le_bytes()));
    block.put(FACS as usize, &facs());
    block.put(FADT as usize, &fadt(base));
    block.put(DSDT as usize, &dsdt);
    block.bytes().to_vec()
}

fn rsdp(base: u64) -> Vec<u8> {
    let mut table = Table::new(36);
    table.put(0, b"RSD PTR ");
    table.put(9, OEM_ID);
    table.put_u8(15, 2); // revision: there is an XSDT
    table.put_u32(16, (base + RSDT) as u32);
    table.put_u32(20, 36);
    table.put_u64(24, base + XSDT);
    table.put_u8(8, checksum(&table.bytes()[..20]));
    table.put_u8(32, checksum(table.bytes()));
    table.bytes().to_vec()
}

fn facs() -> Vec<u8> {
    let mut table = Table::new(FACS_LEN);
    table.put(0, b"FACS");
    table.put_u32(4, FACS_LEN as u32);
    table.put_u8(32, 1); // version
    table.bytes().to_vec()
}

fn fadt(base: u64) -> Vec<u8> {
    let mut table = Table::new(FADT_LEN);
    table.put_u32(36, (base + FACS) as u32);
    table.put_u32(40, (base + DSDT) as u32);
    table.put_u16(46, SCI_IRQ);
    // SMI_CMD (48) is 0: the hardware is in ACPI mode.
    table.put_u32(56, PM1A_EVENT.into());
    table.put_u32(64, PM1A_CONTROL.into());
    table.put_u8(88, 4); // PM1_EVT_LEN
    table.put_u8(89, 2); // PM1_CNT_LEN
    table.put_u16(96, NO_C_STATE);
    table.put_u16(98, NO_C_STATE);
    table.put_u8(108, CENTURY);
    table.put_u16(109, BOOT_ARCH);
    table.put_u32(112, FLAGS);
    table.put(116, &io_address(RESET_PORT, 1));
    table.put_u8(128, RESET_VALUE);
    table.put_u64(140, base + DSDT);
    table.put(148, &io_address(PM1A_EVENT, 4));
    table.put(172, &io_address(PM1A_CONTROL, 2));
    finish(table, b"FACP", 3)
}

/// `Name (\_S5, Package (4) { SLP_TYPa, SLP_TYPb, 0, 0 })` and nothing else.
fn dsdt() -> Vec<u8> {
    const NAME_OP: u8 = 0x08;
    const PACKAGE_OP: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    let elements = [BYTE_PREFIX, SLEEP_TYPE_S5, 0, 0, 0];
    let mut aml = alloc::vec![NAME_OP];
    aml.extend(b"_S5_");
    // The package's length counts itself and the number of elements.
    aml.extend([PACKAGE_OP, 2 + elements.len() as u8, 4]);
    aml.extend(elements);
    let mut table = Table::new(HEADER_LEN + aml.len());
    table.put(HEADER_LEN, &aml);
    finish(table, b"DSDT", 2)
}

fn pointers(signature: &[u8; 4], revision: u8, address: &[u8]) -> Vec<u8> {
    let mut table = Table::new(HEADER_LEN + address.len());
    table.put(HEADER_LEN, address);
    finish(table, signature, revision)
}

/// A generic address: `bytes` bytes of I/O space.
fn io_address(port: u16, bytes: u8) -> [u8; 12] {
    let mut gas = [0; 12];
    gas[0] = 1; // system I/O
    gas[1] = 8 * bytes;
    gas[3] = match bytes {
        1 => 1,
        2 => 2,
        _ => 3,
    };
    gas[4..6].copy_from_slice(&port.to_le_bytes());
    gas
}

/// Fills in the common header.
fn finish(mut table: Table, signature: &[u8; 4], revision: u8) -> Vec<u8> {
    table.put(0, signature);
    table.put_u32(4, table.bytes().len() as u32);
    table.put_u8(8, revision);
    table.put(10, OEM_ID);
    table.put(16, OEM_TABLE_ID);
    table.put_u32(24, 1);
    table.put(28, b"UMBR");
    table.put_u32(32, 1);
    table.put_u8(9, checksum(table.bytes()));
    table.bytes().to_vec()
}

/// What makes the sum of all bytes 0; the checksum's own byte is still 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xe_0000;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The table that a 32-bit pointer at `at` leads to, checked.
    fn follow<'a>(block: &'a [u8], pointer: u32, signature: &[u8; 4]) -> &'a [u8] {
        let at = (u64::from(pointer) - BASE) as usize;
        let table = &block[at..at + u32_at(block, at + 4) as usize];
        assert_eq!(&table[..4], signature);
        if signature != b"FACS" {
            assert_eq!(sum(table), 0, "checksum of {signature:?}");
        }
        table
    }

    #[test]
    fn pointers_lead_from_the_rsdp_to_s5() {
        let block = tables(BASE);
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let rsdt = follow(&block, u32_at(&block, 16), b"RSDT");
        let xsdt = follow(&block, u32_at(&block, 24), b"XSDT");
        assert_eq!(u32_at(rsdt, 36), u32_at(xsdt, 36));
        let fadt = follow(&block, u32_at(xsdt, 36), b"FACP");
        assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64)), (0x600, 0x604));
        follow(&block, u32_at(fadt, 36), b"FACS");
        let dsdt = follow(&block, u32_at(fadt, 40), b"DSDT");
        assert_eq!(&dsdt[36..], [8, b'_', b'S', b'5', b'_', 0x12, 7, 4, 0x0a, 0, 0, 0, 0]);
        assert_eq!(
            dsdt.len() - 36,
            1 + 4 + 1 + 7,
            "the package length covers itself to the end"
        );
    }

    #[test]
    fn all_tables_fit_into_the_extended_bios_data_area() {
        assert!(tables(BASE).len() <= 1024 - 64);
    }
}

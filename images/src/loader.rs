// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where does the boot loader come from? Its sources in `loader/`, assembled when an image is made.

use crate::{
    disk::{LOADED_BYTES, TABLE},
    nasm::assemble,
};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// The loader, ready for [`crate::disk::BootImage::build`].
#[derive(Clone)]
pub struct Loader {
    /// Boot sector, second stage, and the table that an image fills in.
    pub(crate) stages: Vec<u8>,
    /// A 512-byte option ROM for Bochs (`optromimage1: file=…, address=0xd0000`): it boots the first hard disk at
    /// once, without the wait for the BIOS's boot key, and tells the loader that it may read with few instructions.
    pub option_rom: Vec<u8>,
}

impl Loader {
    /// Assembles the loader. Intermediate files go to `work`, which is created.
    ///
    /// # Errors
    /// nasm is missing or `work` cannot be written.
    pub fn assemble(work: &Path) -> Result<Loader> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("loader");
        std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
        let stages = assemble(&sources.join("boot.asm"), &work.join("loader.bin"))?;
        ensure!(
            stages.len() == LOADED_BYTES,
            "the loader has {} bytes, not {LOADED_BYTES}",
            stages.len()
        );
        ensure!(
            stages[TABLE..].starts_with(b"UMBTABLE\x01"),
            "the loader and src/disk.rs disagree about the table"
        );
        let mut option_rom = assemble(&sources.join("option-rom.asm"), &work.join("option-rom.bin"))?;
        close_checksum(&mut option_rom);
        Ok(Loader { stages, option_rom })
    }
}

/// Sets the last byte so that all bytes sum to zero, as a BIOS demands of an option ROM.
fn close_checksum(rom: &mut [u8]) {
    if let Some((last, rest)) = rom.split_last_mut() {
        *last = rest.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    }
}

#[cfg(test)]
mod tests {
    use super::close_checksum;

    #[test]
    fn option_rom_sums_to_zero() {
        let mut rom = vec![0x55, 0xaa, 1, 200, 99, 7];
        close_checksum(&mut rom);
        assert_eq!(rom.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(rom[..5], [0x55, 0xaa, 1, 200, 99]);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is where on the disk image? Loader, table, kernel, root task, payload; and where the loader puts them in RAM.

use crate::loader::Loader;
use object::{
    elf::{EM_386, EM_X86_64, ET_EXEC, FileHeader32, FileHeader64, Machine, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};
use std::ops::Range;
use thiserror::Error;

const SECTOR: usize = 512;
/// Where the table is (loader/table.inc), in bytes.
pub(crate) const TABLE: usize = 9 * SECTOR;
/// Where the command line is.
const CMDLINE: usize = 10 * SECTOR;
/// Sectors of boot sector, second stage, table and command line.
pub(crate) const LOADED_BYTES: usize = 11 * SECTOR;
/// Where data and the partition begin: 1 MiB, as partitioning tools like it.
const DATA_SECTOR: usize = 2048;
/// Heads × sectors of the geometry that simulators are told.
const CYLINDER_SECTORS: usize = 16 * 63;
const TABLE_MAGIC: &[u8; 8] = b"UMBTABLE";
const TABLE_VERSION: u32 = 1;
const TABLE_HEADER: usize = 40;
const PART_BYTES: usize = 24;
/// The table holds these, the root task, and the payload.
const MAX_KERNEL_SEGMENTS: usize = (SECTOR - TABLE_HEADER) / PART_BYTES - 2;
const PART_IN_HOLE: u32 = 1;

/// Lowest address of kernel segments.
const LOWEST: u64 = 1 << 20;
/// The root task (multiboot module) starts at a multiple of this.
const MODULE_ALIGN: u64 = 1 << 12;
/// The payload and the hole in the memory map are multiples of this, so that 2M pages can map them.
const PAYLOAD_ALIGN: u64 = 2 << 20;

/// What a disk image is made of.
#[derive(Clone, Copy, Debug)]
pub struct BootImage<'a> {
    /// The seL4 kernel, ELF32 or ELF64; its physical addresses count.
    pub kernel: &'a [u8],
    /// The root task, given to the kernel as multiboot module 1.
    pub root_task: &'a [u8],
    /// Data for [`BootImage::payload_paddr`]; empty: none.
    pub payload: &'a [u8],
    /// Physical address of the payload, 2 MiB aligned. The kernel does not see that range as RAM.
    pub payload_paddr: u64,
    /// Kernel command line.
    pub cmdline: &'a str,
}

/// A raw disk image and what a simulator needs to know about it.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image, a whole number of cylinders.
    pub bytes: Vec<u8>,
    /// Cylinders of 16 heads and 63 sectors.
    pub cylinders: usize,
    /// Where the root task's ELF file is in RAM when the kernel starts.
    pub module: Range<u64>,
    /// What is cut out of the memory map; empty without a payload.
    pub hole: Range<u64>,
}

/// Why no disk image can be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DiskError {
    /// The kernel is not an executable for x86.
    #[error("the kernel is not an x86 ELF executable: {0}")]
    NotExecutable(String),
    /// A segment's bytes are not in the file.
    #[error("the kernel file is truncated: segment {segment} is not in it")]
    Truncated {
        /// Index among the program headers.
        segment: usize,
    },
    /// A segment would lie in low memory, above 4 GiB, or on its neighbour.
    #[error("kernel segment {segment} cannot be at {start:#x}..{end:#x}: {why}")]
    BadSegment {
        /// Index among the program headers.
        segment: usize,
        /// First physical address.
        start: u64,
        /// End.
        end: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More segments than the table holds.
    #[error("the kernel has {0} segments, more than {MAX_KERNEL_SEGMENTS}")]
    TooManySegments(usize),
    /// The entry point is in no segment.
    #[error("the kernel's entry point {0:#x} is in none of its segments")]
    BadEntry(u64),
    /// The root task is not an ELF file.
    #[error("the root task is not an ELF file")]
    BadRootTask,
    /// Kernel and root task reach into the payload.
    #[error("kernel and root task end at {end:#x}, behind the payload's start {payload:#x}")]
    RootTaskTooLarge {
        /// End of the module.
        end: u64,
        /// Where the payload must be.
        payload: u64,
    },
    /// The payload's address is not 2 MiB aligned or its end is above 4 GiB.
    #[error("the payload cannot be at {start:#x}, length {len:#x}: it must be 2 MiB aligned and end below 4 GiB")]
    BadPayload {
        /// Its address.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The command line is too long or holds a zero byte.
    #[error("the kernel command line is longer than {} bytes or holds a zero byte", SECTOR - 1)]
    BadCmdline,
}

/// Something that the loader copies to RAM.
struct Part<'a> {
    dest: u64,
    data: &'a [u8],
    mem_len: u64,
    flags: u32,
}

impl BootImage<'_> {
    /// Lays out the disk.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn build(&self, loader: &Loader) -> Result<Disk, DiskError> {
        let (entry, mut parts) = kernel_parts(self.kernel)?;
        if !self.root_task.starts_with(b"\x7fELF") {
            return Err(DiskError::BadRootTask);
        }
        if self.cmdline.len() >= SECTOR || self.cmdline.contains('\0') {
            return Err(DiskError::BadCmdline);
        }
        let kernel_end = parts
            .iter()
            .map(|part| part.dest + part.mem_len)
            .max()
            .unwrap_or(LOWEST);
        let module_start = kernel_end.next_multiple_of(MODULE_ALIGN);
        let module = module_start..module_start + self.root_task.len() as u64;
        parts.push(Part {
            dest: module.start,
            data: self.root_task,
            mem_len: self.root_task.len() as u64,
            flags: 0,
        });
        let hole = self.hole()?;
        if !hole.is_empty() {
            if module.end > hole.start {
                return Err(DiskError::RootTaskTooLarge {
                    end: module.end,
                    payload: hole.start,
                });
            }
            let mem_len = self.payload.len() as u64;
            parts.push(Part {
                dest: hole.start,
                data: self.payload,
                mem_len,
                flags: PART_IN_HOLE,
            });
        }
        let mut bytes = loader.stages.clone();
        let mut table = Vec::with_capacity(SECTOR);
        table.extend(TABLE_MAGIC);
        for value in [TABLE_VERSION, parts.len() as u32] {
            table.extend(value.to_le_bytes());
        }
        for address in [entry, module.start, module.end, hole.start, hole.end, 0] {
            table.extend((address as u32).to_le_bytes());
        }
        debug_assert_eq!(table.len(), TABLE_HEADER);
        bytes.resize(DATA_SECTOR * SECTOR, 0);
        for part in &parts {
            let lba = bytes.len() / SECTOR;
            bytes.extend(part.data);
            bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
            let sectors = bytes.len() / SECTOR - lba;
            for value in [
                lba as u64,
                sectors as u64,
                part.dest,
                part.data.len() as u64,
                part.mem_len,
                u64::from(part.flags),
            ] {
                table.extend((value as u32).to_le_bytes());
            }
        }
        bytes.resize(bytes.len().next_multiple_of(CYLINDER_SECTORS * SECTOR), 0);
        bytes[TABLE..][..table.len()].copy_from_slice(&table);
        bytes[CMDLINE..][..self.cmdline.len()].copy_from_slice(self.cmdline.as_bytes());
        write_partition_table(&mut bytes);
        let cylinders = bytes.len() / (CYLINDER_SECTORS * SECTOR);
        Ok(Disk {
            bytes,
            cylinders,
            module,
            hole,
        })
    }

    fn hole(&self) -> Result<Range<u64>, DiskError> {
        if self.payload.is_empty() {
            return Ok(0..0);
        }
        let start = self.payload_paddr;
        let len = self.payload.len() as u64;
        let end = start
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(PAYLOAD_ALIGN));
        match end {
            Some(end) if start.is_multiple_of(PAYLOAD_ALIGN) && end < 1 << 32 => Ok(start..end),
            Some(_) | None => Err(DiskError::BadPayload { start, len }),
        }
    }
}

/// One active partition over all data: many BIOSes boot a USB drive as a hard disk only if they see one.
fn write_partition_table(bytes: &mut [u8]) {
    let sectors = (bytes.len() / SECTOR - DATA_SECTOR) as u32;
    bytes[0x1b8..0x1bc].copy_from_slice(b"UMBR"); // disk signature
    let entry = &mut bytes[0x1be..0x1ce];
    entry[0] = 0x80; // active
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]); // start: beyond CHS, see the LBA
    entry[4] = 0xda; // "non-file-system data"
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&(DATA_SECTOR as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
}

/// Entry point and loadable segments in the order of addresses.
fn kernel_parts(kernel: &[u8]) -> Result<(u64, Vec<Part<'_>>), DiskError> {
    let class = kernel.get(4).copied();
    if !kernel.starts_with(b"\x7fELF") {
        return Err(DiskError::NotExecutable("no ELF header".into()));
    }
    if class == Some(1) {
        parts_of::<FileHeader32<object::LittleEndian>>(kernel, EM_386)
    } else {
        parts_of::<FileHeader64<object::LittleEndian>>(kernel, EM_X86_64)
    }
}

fn parts_of<H: FileHeader<Endian = object::LittleEndian>>(
    kernel: &[u8],
    machine: Machine,
) -> Result<(u64, Vec<Part<'_>>), DiskError> {
    let not = |why: String| DiskError::NotExecutable(why);
    let header = H::parse(kernel).map_err(|error| not(error.to_string()))?;
    let endian = header.endian().map_err(|error| not(error.to_string()))?;
    // `objcopy -O elf32-i386` says 386, some builds of x32 say x86-64: the loader enters in 32-bit mode either way.
    if header.e_type(endian) != ET_EXEC || ![machine, EM_X86_64].contains(&header.e_machine(endian)) {
        return Err(not(format!(
            "type {:?}, machine {:?}",
            header.e_type(endian),
            header.e_machine(endian)
        )));
    }
    let headers = header
        .program_headers(endian, kernel)
        .map_err(|error| not(error.to_string()))?;
    let mut parts: Vec<(usize, Part)> = Vec::new();
    for (segment, program) in headers.iter().enumerate() {
        let mem_len: u64 = program.p_memsz(endian).into();
        if program.p_type(endian) != PT_LOAD || mem_len == 0 {
            continue;
        }
        let data = program
            .data(endian, kernel)
            .map_err(|()| DiskError::Truncated { segment })?;
        let start: u64 = program.p_paddr(endian).into();
        let end = start.saturating_add(mem_len);
        let bad = |why| {
            Err(DiskError::BadSegment {
                segment,
                start,
                end,
                why,
            })
        };
        if start < LOWEST {
            return bad("it is below 1 MiB");
        }
        if end >= 1 << 32 {
            return bad("it ends above 4 GiB");
        }
        if data.len() as u64 > mem_len {
            return bad("it has more bytes in the file than in memory");
        }
        parts.push((
            segment,
            Part {
                dest: start,
                data,
                mem_len,
                flags: 0,
            },
        ));
    }
    // The loader writes whole sectors; in this order a segment's last sector never spoils the next segment.
    parts.sort_by_key(|(_, part)| part.dest);
    for pair in parts.windows(2) {
        let (segment, next) = (pair[1].0, &pair[1].1);
        if pair[0].1.dest + pair[0].1.mem_len > next.dest {
            let (start, end) = (next.dest, next.dest + next.mem_len);
            return Err(DiskError::BadSegment {
                segment,
                start,
                end,
                why: "it overlaps another",
            });
        }
    }
    if parts.len() > MAX_KERNEL_SEGMENTS {
        return Err(DiskError::TooManySegments(parts.len()));
    }
    let entry: u64 = header.e_entry(endian).into();
    if !parts
        .iter()
        .any(|(_, part)| (part.dest..part.dest + part.mem_len).contains(&entry))
    {
        return Err(DiskError::BadEntry(entry));
    }
    Ok((entry, parts.into_iter().map(|(_, part)| part).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PADDR: u64 = 0x200_0000;

    fn loader() -> Loader {
        Loader {
            stages: vec![0; LOADED_BYTES],
            option_rom: Vec::new(),
        }
    }

    /// An ELF32 file with these (address, bytes in the file, bytes in memory) and its entry at the first address.
    fn elf32(segments: &[(u32, usize, u32)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2u16, 3] {
            file.extend(half.to_le_bytes());
        }
        for word in [1, segments.first().map_or(0, |segment| segment.0), 52, 0, 0] {
            file.extend(word.to_le_bytes());
        }
        for half in [52, 32, segments.len() as u16, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 52 + 32 * segments.len();
        for (address, len, mem_len) in segments {
            for word in [1, offset as u32, *address, *address, *len as u32, *mem_len, 7, 4096] {
                file.extend(word.to_le_bytes());
            }
            offset += len;
        }
        for (index, (_, len, _)) in segments.iter().enumerate() {
            file.extend(vec![index as u8 + 1; *len]);
        }
        file
    }

    fn build(kernel: &[u8], payload: &[u8]) -> Result<Disk, DiskError> {
        let root_task = [b"\x7fELF".as_slice(), &[9; 5000]].concat();
        let image = BootImage {
            kernel,
            root_task: &root_task,
            payload,
            payload_paddr: PADDR,
            cmdline: "a=1",
        };
        image.build(&loader())
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn table_tells_where_everything_is() {
        let kernel = elf32(&[(0x20_0000, 700, 9000), (0x10_0000, 100, 100)]);
        let disk = build(&kernel, &[7; 3_000_000]).unwrap();
        assert_eq!(&disk.bytes[TABLE..][..8], TABLE_MAGIC);
        assert_eq!(disk.module, 0x20_3000..0x20_3000 + 5004);
        assert_eq!(disk.hole, PADDR..PADDR + (4 << 20));
        let table = words(&disk.bytes[TABLE..][..TABLE_HEADER + 4 * PART_BYTES]);
        assert_eq!(
            table[2..10],
            [1, 4, 0x20_0000, 0x20_3000, 0x20_3000 + 5004, 0x200_0000, 0x240_0000, 0]
        );
        let parts: Vec<&[u32]> = table[10..].chunks(6).collect();
        // In the order of addresses, each from a sector of its own.
        assert_eq!(parts[0], [2048, 1, 0x10_0000, 100, 100, 0]);
        assert_eq!(parts[1], [2049, 2, 0x20_0000, 700, 9000, 0]);
        assert_eq!(parts[2], [2051, 10, 0x20_3000, 5004, 5004, 0]);
        assert_eq!(parts[3], [2061, 5860, 0x200_0000, 3_000_000, 3_000_000, PART_IN_HOLE]);
        assert_eq!(disk.bytes[2048 * SECTOR..][..101], [[2; 100].as_slice(), &[0]].concat());
        assert_eq!(disk.bytes[2049 * SECTOR..][..701], [[1; 700].as_slice(), &[0]].concat());
        assert_eq!(disk.bytes[2061 * SECTOR + 2_999_999], 7);
        assert_eq!(&disk.bytes[CMDLINE..][..4], b"a=1\0");
        assert_eq!(disk.bytes.len(), disk.cylinders * 16 * 63 * SECTOR);
    }

    #[test]
    fn one_active_partition_covers_the_data() {
        let disk = build(&elf32(&[(0x10_0000, 100, 100)]), &[]).unwrap();
        assert_eq!(disk.hole, 0..0);
        let entry = &disk.bytes[0x1be..0x1ce];
        assert_eq!((entry[0], entry[4]), (0x80, 0xda));
        assert_eq!(words(&entry[8..]), [2048, (disk.bytes.len() / SECTOR - 2048) as u32]);
    }

    #[test]
    fn wrong_kernels_are_refused_with_the_segment() {
        let refused = |kernel: &[u8]| build(kernel, &[]).unwrap_err();
        assert!(matches!(refused(b"hello"), DiskError::NotExecutable(_)));
        assert!(matches!(refused(&elf32(&[])), DiskError::BadEntry(0)));
        let low = refused(&elf32(&[(0x10_0000, 1, 1), (0x7000, 1, 1)]));
        assert_eq!(
            low.to_string(),
            "kernel segment 1 cannot be at 0x7000..0x7001: it is below 1 MiB"
        );
        let overlap = refused(&elf32(&[(0x10_0000, 100, 0x1001), (0x10_1000, 1, 1)]));
        assert_eq!(
            overlap.to_string(),
            "kernel segment 1 cannot be at 0x101000..0x101001: it overlaps another"
        );
        let mut cut = elf32(&[(0x10_0000, 100, 100)]);
        cut.truncate(150);
        assert_eq!(refused(&cut), DiskError::Truncated { segment: 0 });
        let many: Vec<_> = (0..40).map(|i| (0x10_0000 + i * 0x1000, 1, 1)).collect();
        assert_eq!(refused(&elf32(&many)), DiskError::TooManySegments(40));
    }

    #[test]
    fn kernel_and_root_task_must_end_before_the_payload() {
        let kernel = elf32(&[(0x10_0000, 1, 0x1f0_0000)]);
        let end = 0x200_0000 + 5004;
        assert_eq!(
            build(&kernel, &[1]).unwrap_err(),
            DiskError::RootTaskTooLarge { end, payload: PADDR }
        );
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How named files travel in one block of memory: the bundle's format, its reader and its checks.
//!
//! ```text
//! 0        header (64 bytes): magic, version, number of entries, total length, CRC-32C of header and table
//! 64       table: one 72-byte entry per file: name (48 bytes, NUL-padded), offset, length, CRC-32C
//! page n   contents, each page-aligned
//! ```
//! All numbers are little-endian. The CRC of the header covers the table, which covers the contents.

use core::fmt;

/// The first eight bytes of a bundle.
pub const MAGIC: [u8; 8] = *b"UMBRABND";
/// The version of the format that this code reads and writes.
pub const VERSION: u32 = 1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// Length of one entry of the table in bytes.
pub const ENTRY_LEN: usize = 72;
/// Longest name in bytes.
pub const MAX_NAME: usize = 47;
/// Contents start at multiples of this many bytes.
pub const ALIGN: u64 = 4096;

// Offsets in the header; bytes 28..64 are zero.
pub(crate) const AT_VERSION: usize = 8;
pub(crate) const AT_COUNT: usize = 12;
pub(crate) const AT_TOTAL: usize = 16;
pub(crate) const AT_CRC: usize = 24;
// Offsets in an entry; bytes 68..72 are zero.
pub(crate) const AT_OFFSET: usize = 48;
pub(crate) const AT_LEN: usize = 56;
pub(crate) const AT_ENTRY_CRC: usize = 64;

/// What is wrong with a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError<'a> {
    /// Fewer bytes than the header says: `need` of which `have` are there.
    Truncated {
        /// Bytes that the header promises (or its own length).
        need: u64,
        /// Bytes that are there.
        have: u64,
    },
    /// It does not start with [`MAGIC`].
    Magic([u8; 8]),
    /// Another version of the format.
    Version(u32),
    /// The CRC of header and table is wrong.
    HeaderCrc {
        /// As written in the header.
        written: u32,
        /// As computed.
        computed: u32,
    },
    /// The name of entry number `0` is empty, not terminated or not UTF-8.
    Name(u32),
    /// The entry lies outside the bundle or is not page-aligned.
    Bounds {
        /// Its name.
        name: &'a str,
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Two entries have this name.
    Duplicate(&'a str),
    /// No entry has this name.
    Missing(&'a str),
    /// The CRC of an entry's content is wrong.
    ContentCrc {
        /// Its name.
        name: &'a str,
        /// As written in the table.
        written: u32,
        /// As computed.
        computed: u32,
    },
}

impl fmt::Display for BundleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(f, "bundle is truncated: {have} of {need} bytes"),
            Self::Magic(found) => write!(f, "not a bundle: it starts with {found:02x?}"),
            Self::Version(v) => write!(f, "bundle version {v}, expected {VERSION}"),
            Self::HeaderCrc { written, computed } => {
                write!(
                    f,
                    "bundle table is corrupt: CRC {computed:#010x}, expected {written:#010x}"
                )
            }
            Self::Name(i) => write!(f, "bundle entry {i} has no valid name"),
            Self::Bounds { name, offset, len } => {
                write!(
                    f,
                    "bundle entry '{name}' lies outside the bundle: offset {offset:#x}, length {len:#x}"
                )
            }
            Self::Duplicate(name) => write!(f, "two bundle entries are named '{name}'"),
            Self::Missing(name) => write!(f, "the bundle has no entry '{name}'"),
            Self::ContentCrc {
                name,
                written,
                computed,
            } => {
                write!(
                    f,
                    "bundle entry '{name}' is corrupt: CRC {computed:#010x}, expected {written:#010x}"
                )
            }
        }
    }
}

impl core::error::Error for BundleError<'_> {}

/// A bundle whose header and table were checked.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// Exactly the bundle's bytes.
    bytes: &'a [u8],
    count: u32,
}

/// One file of a bundle.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its content, of which the CRC was not yet compared; see [`Entry::verify`].
    pub content: &'a [u8],
    crc: u32,
}

impl<'a> Bundle<'a> {
    /// Checks header, table, bounds and names. `bytes` may go on after the end of the bundle.
    pub fn new(bytes: &'a [u8]) -> Result<Self, BundleError<'a>> {
        let have = bytes.len() as u64;
        if bytes.len() < HEADER_LEN {
            return Err(BundleError::Truncated {
                need: HEADER_LEN as u64,
                have,
            });
        }
        let mut magic = [0; 8];
        magic.copy_from_slice(&bytes[..8]);
        if magic != MAGIC {
            return Err(BundleError::Magic(magic));
        }
        let version = u32_at(bytes, AT_VERSION);
        if version != VERSION {
            return Err(BundleError::Version(version));
        }
        let count = u32_at(bytes, AT_COUNT);
        let total = u64_at(bytes, AT_TOTAL);
        let table_end = HEADER_LEN as u64 + u64::from(count) * ENTRY_LEN as u64;
        let need = total.max(table_end);
        if need > have {
            return Err(BundleError::Truncated { need, have });
        }
        let written = u32_at(bytes, AT_CRC);
        let computed = header_crc(&bytes[..table_end as usize]);
        if written != computed {
            return Err(BundleError::HeaderCrc { written, computed });
        }
        let bundle = Self {
            bytes: &bytes[..total as usize],
            count,
        };
        for i in 0..count {
            let entry = bundle.entry(i)?;
            for j in 0..i {
                if bundle.entry(j)?.name == entry.name {
                    return Err(BundleError::Duplicate(entry.name));
                }
            }
        }
        Ok(bundle)
    }

    /// Length of the whole bundle in bytes, as its header says; for a reader that has to map it first.
    /// `None` where `header` is too short or no bundle starts here.
    pub fn total_len(header: &[u8]) -> Option<u64> {
        (header.len() >= HEADER_LEN && header[..8] == MAGIC).then(|| u64_at(header, AT_TOTAL))
    }

    /// All entries, in the order of the table.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let bundle = *self;
        // `new` has read every entry once without an error.
        (0..self.count).filter_map(move |i| bundle.entry(i).ok())
    }

    /// The entry called `name`; its content is not yet verified, which suits large images that are checked elsewhere.
    pub fn find<'n>(&self, name: &'n str) -> Result<Entry<'a>, BundleError<'n>> {
        self.entries()
            .find(|e| e.name == name)
            .ok_or(BundleError::Missing(name))
    }

    fn entry(&self, index: u32) -> Result<Entry<'a>, BundleError<'a>> {
        let at = HEADER_LEN + index as usize * ENTRY_LEN;
        let raw = &self.bytes[at..at + ENTRY_LEN];
        let (name, rest) = raw.split_at(MAX_NAME + 1);
        let end = name.iter().position(|&b| b == 0).ok_or(BundleError::Name(index))?;
        let name = core::str::from_utf8(&name[..end]).map_err(|_| BundleError::Name(index))?;
        if name.is_empty() {
            return Err(BundleError::Name(index));
        }
        let (offset, len) = (u64_at(rest, AT_OFFSET - 48), u64_at(rest, AT_LEN - 48));
        let bounds = BundleError::Bounds { name, offset, len };
        if !offset.is_multiple_of(ALIGN) || offset < HEADER_LEN as u64 {
            return Err(bounds);
        }
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.bytes.len() as u64)
            .ok_or(bounds)?;
        let content = &self.bytes[offset as usize..end as usize];
        Ok(Entry {
            name,
            content,
            crc: u32_at(rest, AT_ENTRY_CRC - 48),
        })
    }
}

impl<'a> Entry<'a> {
    /// The content, after comparing its CRC (about three instructions per byte).
    pub fn verify(&self) -> Result<&'a [u8], BundleError<'a>> {
        self.verify_with(crc32c)
    }

    /// The same with the caller's own CRC-32C, for large files on a processor that computes it.
    pub fn verify_with(&self, crc32c: impl FnOnce(&[u8]) -> u32) -> Result<&'a [u8], BundleError<'a>> {
        let computed = crc32c(self.content);
        if computed != self.crc {
            return Err(BundleError::ContentCrc {
                name: self.name,
                written: self.crc,
                computed,
            });
        }
        Ok(self.content)
    }
}

/// CRC of header and table, with the CRC field itself taken as zero.
pub(crate) fn header_crc(header_and_table: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&header_and_table[..AT_CRC]);
    crc.update(&[0; 4]);
    crc.update(&header_and_table[AT_CRC + 4..]);
    crc.finish()
}

/// CRC-32C (Castagnoli), which processors with SSE4.2 have an instruction for. Starts and ends inverted.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.finish()
}

struct Crc(u32);

impl Crc {
    fn new() -> Self {
        Self(!0)
    }

    /// Eight bytes at a time by eight tables.
    fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let (chunks, tail) = bytes.as_chunks::<8>();
        for chunk in chunks {
            let word = u64::from_le_bytes(*chunk) ^ u64::from(crc);
            let mut next = 0;
            for (i, table) in TABLES.iter().rev().enumerate() {
                next ^= table[(word >> (8 * i)) as usize & 0xff];
            }
            crc = next;
        }
        for &byte in tail {
            crc = TABLES[0][(crc as u8 ^ byte) as usize] ^ (crc >> 8);
        }
        self.0 = crc;
    }

    fn finish(self) -> u32 {
        !self.0
    }
}

/// `TABLES[n][b]`: the CRC of byte `b` followed by `n` zero bytes.
static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
};

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle_write::write;
    use std::{format, vec, vec::Vec};

    fn sample() -> Vec<u8> {
        write(&[("system", &[1, 2, 3][..]), ("vmm.elf", &vec![7; 5000]), ("empty", &[])]).unwrap()
    }

    /// Recomputes the header's CRC after a deliberate change, so that later checks are reached.
    fn reseal(bytes: &mut [u8]) {
        let end = HEADER_LEN + u32_at(bytes, AT_COUNT) as usize * ENTRY_LEN;
        let crc = header_crc(&bytes[..end]);
        bytes[AT_CRC..AT_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn crc_has_the_standard_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = sample();
        let bundle = Bundle::new(&bytes).unwrap();
        let names: Vec<_> = bundle.entries().map(|e| e.name).collect();
        assert_eq!(names, ["system", "vmm.elf", "empty"]);
        assert_eq!(bundle.find("system").unwrap().verify(), Ok(&[1, 2, 3][..]));
        assert_eq!(bundle.find("vmm.elf").unwrap().verify(), Ok(&vec![7; 5000][..]));
        assert_eq!(bundle.find("empty").unwrap().verify(), Ok(&[][..]));
        assert_eq!(bundle.find("mmu.elf").err(), Some(BundleError::Missing("mmu.elf")));
        assert_eq!(Bundle::total_len(&bytes), Some(bytes.len() as u64));
    }

    #[test]
    fn contents_are_page_aligned_and_may_be_followed_by_anything() {
        let mut bytes = sample();
        let start = bytes.as_ptr() as usize;
        for e in Bundle::new(&bytes).unwrap().entries() {
            assert_eq!((e.content.as_ptr() as usize - start) % ALIGN as usize, 0, "{}", e.name);
        }
        bytes.extend([0xaa; 100]);
        assert_eq!(Bundle::new(&bytes).unwrap().entries().count(), 3);
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = sample();
        for len in 0..bytes.len() {
            let error = Bundle::new(&bytes[..len]).unwrap_err();
            assert!(
                matches!(error, BundleError::Truncated { have, .. } if have == len as u64),
                "{len}: {error}"
            );
        }
    }

    #[test]
    fn every_flipped_bit_of_header_and_table_is_refused() {
        let bytes = sample();
        for at in 0..HEADER_LEN + 3 * ENTRY_LEN {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(Bundle::new(&bad).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_of_content_is_found_with_the_entry_named() {
        let mut bytes = sample();
        let at = bytes.len() - 5000;
        bytes[at] ^= 0x10;
        let bundle = Bundle::new(&bytes).unwrap();
        let error = bundle.find("vmm.elf").unwrap().verify().unwrap_err();
        assert!(matches!(error, BundleError::ContentCrc { name: "vmm.elf", .. }));
        assert!(format!("{error}").contains("'vmm.elf' is corrupt"));
        assert!(bundle.find("system").unwrap().verify().is_ok());
    }

    #[test]
    fn wrong_magic_and_version_are_named() {
        let mut bytes = sample();
        bytes[AT_VERSION] = 9;
        assert_eq!(Bundle::new(&bytes).err(), Some(BundleError::Version(9)));
        bytes[0] = b'X';
        assert!(matches!(Bundle::new(&bytes), Err(BundleError::Magic(_))));
    }

    #[test]
    fn hostile_tables_are_refused_even_with_a_right_crc() {
        let second = HEADER_LEN + ENTRY_LEN;
        let cases: [(&str, usize, &[u8]); 6] = [
            ("'vmm.elf' lies outside", second + AT_OFFSET, &u64::MAX.to_le_bytes()),
            ("'vmm.elf' lies outside", second + AT_OFFSET, &4097u64.to_le_bytes()),
            ("'vmm.elf' lies outside", second + AT_OFFSET, &0u64.to_le_bytes()),
            ("'vmm.elf' lies outside", second + AT_LEN, &u64::MAX.to_le_bytes()),
            ("entry 1 has no valid name", second, &[0xff]),
            ("two bundle entries are named 'system'", second, b"system\0"),
        ];
        for (want, at, patch) in cases {
            let mut bytes = sample();
            bytes[at..at + patch.len()].copy_from_slice(patch);
            reseal(&mut bytes);
            let error = format!("{}", Bundle::new(&bytes).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
        let mut bytes = sample();
        bytes[second..second + 48].fill(b'x');
        reseal(&mut bytes);
        assert_eq!(Bundle::new(&bytes).err(), Some(BundleError::Name(1)));
    }

    #[test]
    fn an_absurd_count_is_truncation_not_overflow() {
        let mut bytes = sample();
        bytes[AT_COUNT..AT_COUNT + 4].fill(0xff);
        assert!(matches!(Bundle::new(&bytes), Err(BundleError::Truncated { .. })));
    }
}

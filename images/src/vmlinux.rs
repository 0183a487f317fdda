// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where is the ELF kernel inside a bzImage? Behind the setup code, compressed; here it is taken out at build time,
//! because in a simulator each instruction of the kernel's own decompressor counts.
//
// The header's fields: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

use std::io::Read;
use thiserror::Error;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// The version that brought the payload's fields.
const PROTOCOL_2_08: u16 = 0x208;
/// Blocks of lz4's legacy format hold this much.
const LZ4_BLOCK: usize = 8 << 20;
/// No kernel is larger: a damaged length must not take all memory.
const LARGEST: usize = 512 << 20;

/// Why no ELF kernel comes out.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VmlinuxError {
    /// There is no "HdrS".
    #[error("this is no bzImage: no Linux setup header")]
    NotBzImage,
    /// Boot protocol before 2.08.
    #[error("the kernel's boot protocol {0:#x} is too old: 0x208 and newer tell where the compressed kernel is")]
    TooOld(u16),
    /// The header's numbers point outside of the file.
    #[error("the bzImage is truncated: the compressed kernel ends at byte {end}, the file at {len}")]
    Truncated {
        /// Where it should end.
        end: usize,
        /// Length of the file.
        len: usize,
    },
    /// A compression that is not handled (bzip2, lzma, lzo).
    #[error("the kernel is compressed in a way not handled here: it starts with {0:02x?}")]
    UnknownCompression([u8; 4]),
    /// The compressed data is damaged.
    #[error("the compressed kernel ({format}) is damaged: {why}")]
    Damaged {
        /// gzip, lz4, xz, zstd.
        format: &'static str,
        /// What the decoder says.
        why: String,
    },
    /// Fewer or more bytes than announced.
    #[error("the kernel has {found} bytes after decompression, not {announced}")]
    WrongLength {
        /// What came out.
        found: usize,
        /// What the last 4 bytes of the payload say.
        announced: usize,
    },
    /// Something else was compressed.
    #[error("the decompressed kernel is not an ELF file")]
    NotElf,
}

/// The ELF kernel in `bzimage`, followed by the relocations that some configurations append.
///
/// # Errors
/// See [`VmlinuxError`].
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    if bzimage.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(VmlinuxError::NotBzImage);
    }
    let version = u16_at(bzimage, VERSION).ok_or(VmlinuxError::NotBzImage)?;
    if version < PROTOCOL_2_08 {
        return Err(VmlinuxError::TooOld(version));
    }
    let setup_sectors = match bzimage[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = u32_at(bzimage, PAYLOAD_OFFSET).ok_or(VmlinuxError::NotBzImage)?;
    let length = u32_at(bzimage, PAYLOAD_LENGTH).ok_or(VmlinuxError::NotBzImage)?;
    let start = (setup_sectors + 1) * SECTOR + offset;
    let end = start + length;
    let truncated = VmlinuxError::Truncated {
        end,
        len: bzimage.len(),
    };
    let payload = bzimage.get(start..end).ok_or(truncated)?;
    let announced = payload.len().checked_sub(4).and_then(|at| u32_at(payload, at));
    let Some(announced) = announced.filter(|announced| *announced <= LARGEST) else {
        return Err(VmlinuxError::WrongLength {
            found: 0,
            announced: announced.unwrap_or(0),
        });
    };
    let kernel = decompress(payload, announced)?;
    if kernel.len() != announced {
        return Err(VmlinuxError::WrongLength {
            found: kernel.len(),
            announced,
        });
    }
    if !kernel.starts_with(b"\x7fELF") {
        return Err(VmlinuxError::NotElf);
    }
    Ok(kernel)
}

/// Decompresses `payload`, whose last four bytes are not part of the stream (except for gzip, which ends like that).
fn decompress(payload: &[u8], announced: usize) -> Result<Vec<u8>, VmlinuxError> {
    let stream = &payload[..payload.len() - 4];
    match payload {
        [0x1f, 0x8b, ..] => read_all("gzip", flate2::read::GzDecoder::new(payload), announced),
        [0xfd, b'7', b'z', b'X', ..] => read_all("xz", lzma_rust2::XzReader::new(stream, false), announced),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => match ruzstd::decoding::StreamingDecoder::new(stream) {
            Ok(decoder) => read_all("zstd", decoder, announced),
            Err(error) => Err(VmlinuxError::Damaged {
                format: "zstd",
                why: error.to_string(),
            }),
        },
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4_legacy(&blocks[..blocks.len() - 4], announced),
        [a, b, c, d, ..] => Err(VmlinuxError::UnknownCompression([*a, *b, *c, *d])),
        _ => Err(VmlinuxError::UnknownCompression([0; 4])),
    }
}

fn read_all(format: &'static str, decoder: impl Read, announced: usize) -> Result<Vec<u8>, VmlinuxError> {
    let mut kernel = Vec::with_capacity(announced);
    // One more than announced, so that a longer one is noticed.
    match decoder.take(announced as u64 + 1).read_to_end(&mut kernel) {
        Ok(_) => Ok(kernel),
        Err(error) => Err(VmlinuxError::Damaged {
            format,
            why: error.to_string(),
        }),
    }
}

/// Blocks, each with its compressed length before it.
fn lz4_legacy(mut blocks: &[u8], announced: usize) -> Result<Vec<u8>, VmlinuxError> {
    let damaged = |why: String| VmlinuxError::Damaged { format: "lz4", why };
    let mut kernel = vec![0; announced];
    let mut filled = 0;
    while filled < announced {
        let length = u32_at(blocks, 0).ok_or_else(|| damaged("a block is missing".into()))?;
        let block = blocks
            .get(4..4 + length)
            .ok_or_else(|| damaged("a block is cut off".into()))?;
        let room = &mut kernel[filled..announced.min(filled + LZ4_BLOCK)];
        let wanted = room.len();
        let got = lz4_flex::block::decompress_into(block, room).map_err(|error| damaged(error.to_string()))?;
        if got != wanted {
            return Err(damaged(format!("a block gives {got} bytes, not {wanted}")));
        }
        filled += got;
        blocks = &blocks[4 + length..];
    }
    Ok(kernel)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(|word| u32::from_le_bytes(word) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn kernel() -> Vec<u8> {
        let mut kernel = b"\x7fELF".to_vec();
        kernel.extend((0..LZ4_BLOCK + 100_000).map(|i| (i / 7) as u8));
        kernel
    }

    /// A bzImage around this payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * SECTOR + 100];
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&100u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0; 20]);
        image
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut payload = 0x184c_2102u32.to_le_bytes().to_vec();
        for block in data.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(block);
            payload.extend((block.len() as u32).to_le_bytes());
            payload.extend(block);
        }
        payload.extend((data.len() as u32).to_le_bytes());
        payload
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        let mut payload = ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Uncompressed);
        payload.extend((data.len() as u32).to_le_bytes());
        payload
    }

    #[test]
    fn each_compression_gives_the_kernel_back() {
        let kernel = kernel();
        for payload in [gzip(&kernel), lz4(&kernel), zstd(&kernel)] {
            assert!(extract(&bzimage(&payload)).unwrap() == kernel);
        }
    }

    #[test]
    fn damage_is_named() {
        let kernel = kernel();
        let good = bzimage(&lz4(&kernel));
        assert_eq!(extract(b"hello"), Err(VmlinuxError::NotBzImage));
        assert_eq!(
            extract(&good[..700]),
            Err(VmlinuxError::Truncated {
                end: good.len() - 20,
                len: 700
            })
        );
        let mut old = good.clone();
        old[VERSION] = 7;
        assert_eq!(extract(&old), Err(VmlinuxError::TooOld(0x207)));
        assert_eq!(
            extract(&bzimage(b"BZh91\0\0\0")),
            Err(VmlinuxError::UnknownCompression(*b"BZh9"))
        );
        assert_eq!(extract(&bzimage(&gzip(b"hello"))), Err(VmlinuxError::NotElf));
        let mut flipped = good;
        flipped[5 * SECTOR + 105] ^= 0x40; // length of the first block
        assert!(matches!(
            extract(&flipped),
            Err(VmlinuxError::Damaged { format: "lz4", .. })
        ));
        let mut short = lz4(&kernel);
        let end = short.len() - 4;
        short[end..].copy_from_slice(&(LZ4_BLOCK as u32).to_le_bytes());
        assert!(
            extract(&bzimage(&short)).is_ok_and(|short| short.len() == LZ4_BLOCK),
            "trailing blocks are ignored"
        );
        short[end..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            extract(&bzimage(&short)),
            Err(VmlinuxError::WrongLength { .. })
        ));
    }
}

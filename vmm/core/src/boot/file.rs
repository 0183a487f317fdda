// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading numbers and ranges from an image file, of which no offset and no length is to be trusted.

use super::{LoadError, error::Part};

/// An image file.
#[derive(Clone, Copy)]
pub struct File<'a> {
    bytes: &'a [u8],
}

impl<'a> File<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// `len` bytes at `offset`, which belong to `part`.
    pub fn range(&self, part: Part, offset: u64, len: u64) -> Result<&'a [u8], LoadError> {
        let truncated = LoadError::Truncated {
            part,
            offset,
            len,
            file_len: self.len(),
        };
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.len())
            .ok_or(truncated)?;
        Ok(&self.bytes[offset as usize..end as usize])
    }

    fn array<const N: usize>(&self, part: Part, offset: u64) -> Result<[u8; N], LoadError> {
        let mut array = [0; N];
        array.copy_from_slice(self.range(part, offset, N as u64)?);
        Ok(array)
    }

    pub fn u8(&self, part: Part, offset: u64) -> Result<u8, LoadError> {
        Ok(u8::from_le_bytes(self.array(part, offset)?))
    }

    pub fn u16(&self, part: Part, offset: u64) -> Result<u16, LoadError> {
        Ok(u16::from_le_bytes(self.array(part, offset)?))
    }

    pub fn u32(&self, part: Part, offset: u64) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array(part, offset)?))
    }

    pub fn u64(&self, part: Part, offset: u64) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array(part, offset)?))
    }
}

/// A table under construction: little-endian fields at their offsets.
pub struct Table {
    bytes: alloc::vec::Vec<u8>,
}

impl Table {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> Self {
        Self {
            bytes: alloc::vec![0; len],
        }
    }

    pub fn put(&mut self, offset: usize, field: &[u8]) {
        self.bytes[offset..offset + field.len()].copy_from_slice(field);
    }

    pub fn put_u8(&mut self, offset: usize, value: u8) {
        self.bytes[offset] = value;
    }

    pub fn put_u16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    pub fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    pub fn put_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

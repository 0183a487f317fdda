// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a bundle is made on the host; the format is in `bundle`.

use crate::bundle::{
    ALIGN, AT_COUNT, AT_CRC, AT_ENTRY_CRC, AT_LEN, AT_OFFSET, AT_TOTAL, AT_VERSION, ENTRY_LEN, HEADER_LEN, MAGIC,
    MAX_NAME, VERSION, crc32c, header_crc,
};
use std::{fmt, string::String, vec, vec::Vec};

/// Why a bundle cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Empty, longer than [`MAX_NAME`] bytes, or with a NUL.
    Name(String),
    /// Two files have this name.
    Duplicate(String),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                f,
                "'{name}' cannot name a bundle entry: 1 to {MAX_NAME} bytes without NUL"
            ),
            Self::Duplicate(name) => write!(f, "two files for the bundle are named '{name}'"),
        }
    }
}

impl std::error::Error for WriteError {}

/// Packs `files` (name, content) into a bundle. The result ends with the last content's last byte.
pub fn write(files: &[(&str, &[u8])]) -> Result<Vec<u8>, WriteError> {
    for (i, (name, _)) in files.iter().enumerate() {
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(WriteError::Name((*name).into()));
        }
        if files[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(WriteError::Duplicate((*name).into()));
        }
    }
    let table_end = HEADER_LEN + files.len() * ENTRY_LEN;
    let mut out = vec![0; table_end];
    for (i, (name, content)) in files.iter().enumerate() {
        out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
        let offset = out.len() as u64;
        out.extend_from_slice(content);
        let entry = &mut out[HEADER_LEN + i * ENTRY_LEN..][..ENTRY_LEN];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[AT_OFFSET..AT_OFFSET + 8].copy_from_slice(&offset.to_le_bytes());
        entry[AT_LEN..AT_LEN + 8].copy_from_slice(&(content.len() as u64).to_le_bytes());
        entry[AT_ENTRY_CRC..AT_ENTRY_CRC + 4].copy_from_slice(&crc32c(content).to_le_bytes());
    }
    let total = out.len() as u64;
    out[..8].copy_from_slice(&MAGIC);
    out[AT_VERSION..AT_VERSION + 4].copy_from_slice(&VERSION.to_le_bytes());
    out[AT_COUNT..AT_COUNT + 4].copy_from_slice(&(files.len() as u32).to_le_bytes());
    out[AT_TOTAL..AT_TOTAL + 8].copy_from_slice(&total.to_le_bytes());
    let crc = header_crc(&out[..table_end]);
    out[AT_CRC..AT_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;

    #[test]
    fn bad_names_are_refused() {
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["", "a\0b", &long] {
            assert_eq!(write(&[(name, &[])]), Err(WriteError::Name(name.into())));
        }
        let most = "x".repeat(MAX_NAME);
        assert!(
            Bundle::new(&write(&[(&most, &[])]).unwrap())
                .unwrap()
                .find(&most)
                .is_ok()
        );
        assert_eq!(
            write(&[("a", &[]), ("a", &[1])]),
            Err(WriteError::Duplicate("a".into()))
        );
    }

    #[test]
    fn an_empty_bundle_is_a_bundle() {
        assert_eq!(Bundle::new(&write(&[]).unwrap()).unwrap().entries().count(), 0);
    }

    #[test]
    fn a_table_of_many_entries_reaches_over_the_first_page() {
        let names: Vec<String> = (0..200).map(|i| std::format!("file-{i}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
        let bytes = write(&files).unwrap();
        let bundle = Bundle::new(&bytes).unwrap();
        for name in &names {
            assert_eq!(bundle.find(name).unwrap().verify().unwrap(), name.as_bytes());
        }
    }
}

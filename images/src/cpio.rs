// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is an initial RAM disk made of? A "newc" cpio archive; the same entries give the same bytes.

use thiserror::Error;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o04_0000;
const CHARACTER_DEVICE: u32 = 0o02_0000;
const REGULAR: u32 = 0o10_0000;
const LINK: u32 = 0o12_0000;
const ALIGN: usize = 4;
/// Archives end at a multiple of this.
const BLOCK: usize = 512;

/// An archive being written. Paths have no leading slash; a directory comes before what is in it.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Number of the last inode.
    inode: u32,
}

/// Why an entry cannot be written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CpioError {
    /// The path is empty, absolute, or holds a zero byte.
    #[error("{0:?} is no path for an archive")]
    BadPath(String),
    /// The format has 32 bits for lengths.
    #[error("{0} is longer than 4 GiB")]
    TooLong(String),
}

impl Archive {
    /// Adds a directory. `mode` is the permission bits, here and below; the owner is root.
    ///
    /// # Errors
    /// The path is not usable, here and below.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), CpioError> {
        self.entry(path, DIRECTORY | mode, 2, (0, 0), &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The file has more than 4 GiB.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), CpioError> {
        self.entry(path, REGULAR | mode, 1, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// See [`Archive::directory`].
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        self.entry(path, LINK | 0o777, 1, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// See [`Archive::directory`].
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<(), CpioError> {
        self.entry(path, CHARACTER_DEVICE | mode, 1, (major, minor), &[])
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.write(TRAILER, 0, 0, 1, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self.bytes
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<(), CpioError> {
        if path.is_empty() || path.starts_with('/') || path.contains('\0') || path == TRAILER {
            return Err(CpioError::BadPath(path.into()));
        }
        if u32::try_from(content.len()).is_err() {
            return Err(CpioError::TooLong(path.into()));
        }
        self.inode += 1;
        self.write(path, self.inode, mode, links, device, content);
        Ok(())
    }

    fn write(&mut self, path: &str, inode: u32, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        self.bytes.extend(MAGIC.as_bytes());
        let (major, minor) = device;
        // inode, mode, uid, gid, links, time, length, device (2), device that this is (2), name length, checksum
        let fields = [
            inode,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            major,
            minor,
            path.len() as u32 + 1,
            0,
        ];
        for field in fields {
            self.bytes.extend(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.link("sh", "init").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        archive.finish()
    }

    #[test]
    fn header_is_as_the_kernel_reads_it() {
        let bytes = sample();
        let expected = "07070100000001000041ED000000000000000000000002000000000000000000000000000000000000000000000000\
                        0000000400000000dev\0";
        assert_eq!(&bytes[..114], expected.as_bytes());
        assert_eq!(&bytes[116..122], b"070701", "entries are 4-byte aligned");
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn same_entries_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in ["", "/init", "a\0b", "TRAILER!!!"] {
            assert_eq!(
                Archive::default().file(path, 0, b""),
                Err(CpioError::BadPath(path.into()))
            );
        }
    }

    /// Another implementation reads it, where there is one.
    #[test]
    fn cpio_lists_it() {
        let child = Command::new("cpio")
            .arg("-tv")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else { return };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let starts: Vec<&str> = text.lines().map(|line| &line[..10]).collect();
        assert_eq!(
            starts,
            ["drwxr-xr-x", "crw-------", "-rwxr-xr-x", "lrwxrwxrwx", "-rw-r--r--"],
            "{text}"
        );
        assert!(text.contains("sh -> init") && text.contains("5,   1"), "{text}");
    }
}

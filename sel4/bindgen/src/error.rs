// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be wrong with a kernel build folder, and where?

use std::fmt;
use std::path::{Path, PathBuf};

/// A file of the tree that is missing or not understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    file: PathBuf,
    line: Option<u32>,
    reason: String,
}

impl Error {
    /// An error about a whole file.
    pub fn file(file: &Path, reason: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            reason: reason.into(),
        }
    }

    /// An error at a line (from 1) of a file.
    pub fn line(file: &Path, line: u32, reason: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Error {}

/// The outcome of reading a part of the tree.
pub type Result<T> = std::result::Result<T, Error>;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guests are there, and how are their files obtained?

use crate::build::Builder;
use crate::build::spec::Guest;
use anyhow::{Result, bail};

/// The guest of `umbra run`.
pub const DEFAULT: &str = "debian-amd64";

/// Gets the files of the guest `name`: from the cache, a package, or by building it.
pub fn load(_builder: &Builder, name: &str, _plain: bool) -> Result<Guest> {
    bail!("there is no guest {name}")
}

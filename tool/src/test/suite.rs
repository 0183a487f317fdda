// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a test root task run?

use crate::build::Builder;
use crate::sim::Sim;
use anyhow::{Result, bail};

/// `umbra run` in a simulator without VT-x.
pub fn without_vtx(_builder: &Builder, sim: Sim) -> Result<i32> {
    bail!("{}: not yet", sim.name())
}

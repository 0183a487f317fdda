// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `umbra` command.
fn main() {}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does a guest run, where there is VT-x?
use crate::objects::Objects;
use crate::report::Report;
/// All tests of this file.
pub fn run(_report: &mut Report, _objects: &mut Objects) {}

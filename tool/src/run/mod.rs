// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the commands that start a machine do?

pub mod boot;
pub mod guest;
pub mod outcome;
pub mod prompt;
pub mod queries;
pub mod session;
pub mod syslog;
pub mod terminal;

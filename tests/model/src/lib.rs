// SPDX-License-Identifier: MIT OR Apache-2.0
//! Can a guest tell this MMU from a processor? Random guests and hosts against the manual.
//!
//! | question                                     | file       |
//! |----------------------------------------------|------------|
//! | what does a processor make of an address?    | [`oracle`] |
#![forbid(unsafe_code)]

pub mod oracle;

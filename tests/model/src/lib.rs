// SPDX-License-Identifier: MIT OR Apache-2.0
//! Can a guest tell this MMU from a processor? Random guests and hosts against the manual.
//!
//! | question                                     | file         |
//! |----------------------------------------------|--------------|
//! | what does a processor make of an address?    | [`oracle`]   |
//! | which tables can it meet?                    | [`cases`]    |
//! | what was in memory, and when?                | [`memory`]   |
//! | was that access right?                       | [`judge`]    |
//! | what can happen?                             | [`script`]   |
//! | what does happen?                            | [`generate`] |
//! | where does it start?                         | [`layout`]   |
//! | to what does it happen?                      | [`world`]    |
//! | how are many steps run?                      | [`run`]      |
//! | which machines are tested?                   | [`machine`]  |
//! | on which of them?                            | [`modes`]    |
//! | which steps does a failure need?             | [`shrink`]   |
#![forbid(unsafe_code)]

pub mod cases;
pub mod generate;
pub mod judge;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod modes;
pub mod oracle;
pub mod run;
pub mod script;
pub mod shrink;
pub mod world;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does the MMU work on seL4? Its second stage out of capabilities, and the server around it.
//!
//! | question                                       | file           |
//! |------------------------------------------------|----------------|
//! | where do capabilities and objects go?          | [`objects`]    |
//! | which capability maps a page of a slot?        | [`frame_caps`] |
//! | what differs between an EPT and a VSpace?      | [`ept`], [`vspace`] |
//! | how do these make a second stage?              | [`stage2`]     |
//! | what is answered to the vmm?                   | [`serve`]      |
//! | where does the log go?                         | [`supervisor`] |
#![no_std]

extern crate alloc;

pub mod ept;
pub mod frame_caps;
pub mod objects;
pub mod serve;
pub mod stage2;
pub mod supervisor;
pub mod vspace;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a guest run whose own tables hardware cannot walk? Shadow paging: tables made from the guest's, kept in step.
//!
//! | question                                        | file          |
//! |-------------------------------------------------|---------------|
//! | how does the guest translate just now?          | [`registers`] |
//! | what does a guest entry say?                    | [`gpte`]      |
//! | what do the guest's tables say to an access?    | [`walk`]      |

pub mod gpte;
pub mod registers;
#[cfg(test)]
mod tests;
pub mod walk;

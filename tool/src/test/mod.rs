// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra test`: what is checked, in which order, and what is the verdict?

pub mod case;
pub mod suite;
pub mod verdict;

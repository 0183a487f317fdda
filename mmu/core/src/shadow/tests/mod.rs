// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does shadow paging do what it says? One mechanism at a time, on a few pages of memory.

mod engine;
mod host;
mod machine;
mod random;
mod steps;
mod walk;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is finite is enumerated: see `tests/`.
#![forbid(unsafe_code)]

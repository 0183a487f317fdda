// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emulated instructions against hand-written expectations.

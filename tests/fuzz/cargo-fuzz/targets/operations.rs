// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fuzzer's program for `operations`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::target("operations", input));

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why is this empty? Cargo needs a target beside the manifest that pins the kernel's source; it is never compiled.

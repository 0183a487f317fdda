// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the numbers agree with those that the kernel itself was compiled with?
//!
//! The kernel's own tools have written them into headers of its build folder, which `SEL4_BUILD_DIR` names. Needs that
//! build, and so the feature `built-tree`.

use sel4_bindgen::expr::Names;
use sel4_bindgen::header::{self, Declarations, Want};
use std::path::{Path, PathBuf};

/// The build that `umbra test` names. Without one there is nothing to compare with, which is no success.
fn build() -> PathBuf {
    std::env::var_os("SEL4_BUILD_DIR")
        .expect("SEL4_BUILD_DIR names a kernel build (./umbra kernel makes one in target/kernel/vtx)")
        .into()
}

/// Constants of the kernel's generated headers, in the order in which they use each other.
fn of_the_kernel(build: &Path) -> Vec<(String, i128)> {
    let (mut names, mut found) = (Names::default(), Declarations::default());
    for file in [
        "autoconf.h",
        "arch/api/syscall.h",
        "api/invocation.h",
        "arch/api/sel4_invocation.h",
        "arch/api/invocation.h",
    ] {
        let path = build.join("include").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        header::read(&path, &text, Want::Constants, &mut names, &mut found).unwrap();
    }
    found.constants
}

#[test]
fn syscalls_and_labels_are_those_of_the_kernel() {
    let build = build();
    let source = sel4_bindgen::generate(&build).unwrap().source;
    let kernel = of_the_kernel(&build);
    let (mut syscalls, mut labels) = (0, 0);
    for (name, value) in &kernel {
        if let Some(name) = name.strip_prefix("Sys") {
            syscalls += 1;
            let line = format!("pub const seL4_Sys{name}: i64 = {value};");
            assert!(source.contains(&line), "{}: {line}", build.display());
        } else if !name.starts_with("CONFIG_") && !name.starts_with('n') && name.contains(char::is_lowercase) {
            labels += usize::from(*value != 0);
            let line = format!("    pub const {name}: u64 = {value};");
            assert!(*value == 0 || source.contains(&line), "{}: {line}", build.display());
        }
    }
    assert_eq!(
        source.matches("pub const seL4_Sys").count(),
        syscalls,
        "{}",
        build.display()
    );
    assert!(labels > 50, "{}: only {labels} labels", build.display());
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the numbers agree with those that the kernel itself was compiled with?
//!
//! The kernel's own tools have written them into headers of its build folder. Uses `SEL4_BUILD_DIR`, else every build in
//! `target/kernel`; where there is none, the booted tests are the ones that see the real kernel.

use sel4_bindgen::expr::Names;
use sel4_bindgen::header::{self, Declarations, Want};
use std::path::{Path, PathBuf};

fn builds() -> Vec<PathBuf> {
    if let Some(build) = std::env::var_os("SEL4_BUILD_DIR") {
        return vec![build.into()];
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernel");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("kernel.elf").is_file())
        .collect()
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
    for build in builds() {
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
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which kernel build are the bindings for? The one in SEL4_BUILD_DIR.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=SEL4_BUILD_DIR");
    let build = std::env::var_os("SEL4_BUILD_DIR").map(PathBuf::from).ok_or(
        "SEL4_BUILD_DIR is not set: it must be the absolute path of a kernel build folder, as target/kernel/vtx \
         (made by `cmake --preset vtx`; the umbra command does both)",
    )?;
    if !build.is_absolute() {
        return Err(format!(
            "SEL4_BUILD_DIR is {}, which is not an absolute path",
            build.display()
        ));
    }
    let bindings = sel4_bindgen::generate(&build).map_err(|error| format!("kernel build folder: {error}"))?;
    for file in &bindings.files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; run this by cargo")?;
    let out = Path::new(&out).join("bindings.rs");
    std::fs::write(&out, bindings.source).map_err(|error| format!("{}: {error}", out.display()))
}

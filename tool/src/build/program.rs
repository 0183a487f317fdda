// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are programs for seL4 built? By cargo, with the settings of `sel4/component.toml`.

use super::{Builder, Kernel, write_if_changed};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Cargo as it is used for programs that run on seL4.
pub fn cargo(builder: &Builder, kernel: &Kernel, subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg("--config")
        .arg(builder.paths.root().join("sel4/component.toml"))
        .arg(subcommand)
        .env("SEL4_BUILD_DIR", kernel.folder())
        .current_dir(builder.paths.root());
    // What the tool's own build left in the environment must not reach another one.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// Builds the packages (release), and returns the stripped programs in the same order.
pub fn build(builder: &Builder, kernel: &Kernel, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = cargo(builder, kernel, "build");
    command.args(["--release", "--locked"]);
    for package in packages {
        command.args(["-p", package]);
    }
    builder
        .steps
        .run(&format!("building {}", packages.join(", ")), &mut command)?;
    packages.iter().map(|package| strip(builder, package)).collect()
}

/// A copy without symbols and debug information; the original stays for the debugger.
fn strip(builder: &Builder, package: &str) -> Result<PathBuf> {
    let linked = builder
        .paths
        .target()
        .join("sel4/x86_64-unknown-linux-gnu/release")
        .join(package);
    ensure!(
        linked.is_file(),
        "the build of {package} did not make {}",
        linked.display()
    );
    let draft = builder.paths.images().join(format!("{package}.draft"));
    let stripped = builder.paths.images().join(package);
    std::fs::create_dir_all(builder.paths.images()).context("the folder for images")?;
    let mut command = Command::new("strip");
    command.args(["--strip-all", "-o"]).arg(&draft).arg(&linked);
    builder.steps.run(&format!("stripping {package}"), &mut command)?;
    let bytes = read(&draft)?;
    write_if_changed(&stripped, &bytes)?;
    let _ = std::fs::remove_file(draft);
    Ok(stripped)
}

/// A whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are programs for seL4 built? By cargo, with the settings of `sel4/component.toml`.

use super::{Builder, Kernel};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs that were built, without symbols, by package name. The linked originals stay for the debugger.
#[derive(Clone, Debug, Default)]
pub struct Programs(BTreeMap<String, Vec<u8>>);

impl Programs {
    /// Builds the packages (release), as far as they are not up to date.
    pub fn build(builder: &Builder, kernel: &Kernel, packages: &[&str]) -> Result<Self> {
        let _turn = builder.turn()?;
        let mut command = cargo(builder, kernel, "build");
        command.args(["--release", "--locked"]);
        for package in packages {
            command.args(["-p", package]);
        }
        builder
            .steps
            .run(&format!("building {}", packages.join(", ")), &mut command)?;
        let stripped = packages
            .iter()
            .map(|package| Ok(((*package).to_owned(), stripped(builder, package)?)));
        stripped.collect::<Result<_>>().map(Self)
    }

    /// Adds other programs.
    pub fn join(&mut self, others: Programs) {
        self.0.extend(others.0);
    }

    /// Whether `package` was built.
    pub fn has(&self, package: &str) -> bool {
        self.0.contains_key(package)
    }

    /// The program of `package`.
    pub fn get(&self, package: &str) -> Result<&[u8]> {
        let program = self.0.get(package).map(Vec::as_slice);
        program.with_context(|| format!("the program {package} was not built: is it a package of the workspace?"))
    }
}

/// Cargo as it is used for programs that run on seL4.
pub fn cargo(builder: &Builder, kernel: &Kernel, subcommand: &str) -> Command {
    let mut command = host_cargo(builder.paths.root());
    command
        .arg("--config")
        .arg(builder.paths.root().join("sel4/component.toml"))
        .arg(subcommand)
        .env("SEL4_BUILD_DIR", kernel.folder());
    command
}

/// Cargo in the project, without what the tool's own build left in the environment.
pub fn host_cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
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

fn stripped(builder: &Builder, package: &str) -> Result<Vec<u8>> {
    let linked: PathBuf = builder
        .paths
        .target()
        .join("sel4/x86_64-unknown-linux-gnu/release")
        .join(package);
    ensure!(
        linked.is_file(),
        "the build of {package} did not make {}",
        linked.display()
    );
    let small = linked.with_extension("stripped");
    // strip is slow enough to be worth skipping.
    let newer = |a: &Path, b: &Path| Some(a.metadata().ok()?.modified().ok()? > b.metadata().ok()?.modified().ok()?);
    if newer(&small, &linked) != Some(true) {
        let mut command = Command::new("strip");
        command.args(["--strip-all", "-o"]).arg(&small).arg(&linked);
        builder.steps.run(&format!("stripping {package}"), &mut command)?;
    }
    read(&small)
}

/// A whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

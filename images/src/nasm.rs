// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a file of ours assembled? By nasm, whose complaints become the error.

use anyhow::{Context, Result, bail};
use std::{io::ErrorKind, path::Path, process::Command};

/// Assembles `source` to the flat file `out` and returns its content. Included files are looked for beside `source`.
///
/// # Errors
/// nasm is missing, or refuses the source.
pub fn assemble(source: &Path, out: &Path) -> Result<Vec<u8>> {
    let folder = source.parent().unwrap_or(Path::new("."));
    assemble_with(source, &[folder], &[], out)
}

/// The same with folders for included files, and with options.
///
/// # Errors
/// As above.
pub fn assemble_with(source: &Path, folders: &[&Path], options: &[&str], out: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("nasm");
    // nasm 2.16 takes the fields of a `struc` for uninitialised data: -w-zeroing.
    command.args(["-f", "bin", "-w-zeroing", "-Werror"]).args(options);
    for folder in folders {
        command.arg("-I").arg(folder.join(""));
    }
    let run = match command.arg("-o").arg(out).arg(source).output() {
        Ok(run) => run,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("nasm is not installed (apt-get install nasm)"),
        Err(error) => return Err(error).context("nasm cannot be started"),
    };
    if !run.status.success() {
        bail!(
            "nasm refuses {}:\n{}",
            source.display(),
            String::from_utf8_lossy(&run.stderr)
        );
    }
    std::fs::read(out).with_context(|| format!("cannot read {}", out.display()))
}

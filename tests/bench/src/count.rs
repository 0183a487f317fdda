// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many instructions does a piece of this program take? Valgrind counts what runs inside [`measured`].

use std::process::Command;

/// What valgrind counts. Everything before and after is set-up.
#[inline(never)]
pub fn measured<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Whether valgrind can be started; otherwise what to do about it.
///
/// # Errors
/// The text to print.
pub fn available() -> Result<(), String> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) | Err(_) => Err("valgrind is not installed: apt-get install valgrind".to_owned()),
    }
}

/// Runs this program again with `arguments`, and tells the instructions inside [`measured`].
///
/// # Errors
/// What valgrind or the program said when it did not end well.
pub fn instructions(arguments: &[String]) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*umbra_bench*count*measured*"])
        .arg(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{arguments:?} ended with {}: {text}", output.status));
    }
    let count = text.lines().find_map(|line| line.split_once("Collected : "));
    let count = count.and_then(|(_, count)| count.trim().parse().ok());
    match count {
        Some(0) | None => Err(format!("valgrind counted nothing: {text}")),
        Some(count) => Ok(count),
    }
}

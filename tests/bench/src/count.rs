// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many instructions does a piece of this program take? Valgrind counts what runs inside [`measured`].

use std::hint::black_box;
use std::process::Command;
use umbra_mmu_core::Mmu;
use umbra_mmu_core::fault::{Fault, FaultError, Outcome};
use umbra_mmu_core::stage2::Stage2;
use umbra_mmu_core::vcpu::Vcpu;

/// The name of [`measured`], for valgrind.
pub const MEASURED: &str = "count*measured";

/// What valgrind counts. Everything before and after is set-up.
#[inline(never)]
pub fn measured<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// The name of [`answered`], for valgrind.
pub const ANSWERED: &str = "count*answered";

/// One fault as a component has it answered, from the call to the return.
///
/// # Errors
/// As [`Mmu::fault`].
#[inline(never)]
pub fn answered<S: Stage2>(mmu: &Mmu<S>, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
    mmu.fault(vcpu, fault)
}

/// The same, not counted: what comes before.
///
/// # Errors
/// As [`Mmu::fault`].
#[inline(never)]
pub fn prepared<S: Stage2>(mmu: &Mmu<S>, vcpu: &mut Vcpu, fault: &Fault) -> Result<Outcome, FaultError> {
    // With this it is another function to the compiler.
    mmu.fault(vcpu, black_box(fault))
}

/// Whether valgrind can be started; otherwise what to do about it.
///
/// # Errors
/// The text to print.
pub fn available() -> Result<(), String> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) | Err(_) => Err("valgrind is not installed: apt-get install --no-install-recommends valgrind".to_owned()),
    }
}

/// Runs this program again with `arguments`, and tells the instructions inside the functions that `counted` names.
///
/// # Errors
/// What valgrind or the program said when it did not end well.
pub fn instructions(counted: &str, arguments: &[String]) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--collect-atstart=no")
        .arg(format!("--toggle-collect=*umbra_bench*{counted}*"))
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

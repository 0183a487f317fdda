// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does this machine need, what is missing, and how does one get it?

use crate::process::find_program;
use crate::step::Steps;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// How it is seen that something is there.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// A program on `PATH`.
    Program(&'static str),
    /// A file.
    File(&'static str),
    /// A module that Debian's own Python finds (not another Python that may come first on `PATH`).
    PythonModule(&'static str),
}

/// A system package.
#[derive(Clone, Copy, Debug)]
struct Need {
    package: &'static str,
    sign: Sign,
    why: &'static str,
}

const fn need(package: &'static str, sign: Sign, why: &'static str) -> Need {
    Need { package, sign, why }
}

/// All system packages, of Debian 12 and newer.
const NEEDS: &[Need] = &[
    need("cmake", Sign::Program("cmake"), "builds the kernel"),
    need("patch", Sign::Program("patch"), "applies the kernel patches"),
    need("ninja-build", Sign::Program("ninja"), "builds the kernel"),
    need("gcc", Sign::Program("gcc"), "compiles the kernel; links the tool"),
    need("libc6-dev", Sign::File("/usr/include/stdlib.h"), "links the tool"),
    need(
        "binutils",
        Sign::Program("objcopy"),
        "turns the kernel into the form that multiboot loaders take",
    ),
    need("cpio", Sign::Program("cpio"), "checks initial RAM disks in tests"),
    need(
        "python3",
        Sign::File("/usr/bin/python3"),
        "runs the kernel's code generators",
    ),
    need(
        "python3-ply",
        Sign::PythonModule("ply"),
        "the kernel's bitfield generator",
    ),
    need(
        "python3-six",
        Sign::PythonModule("six"),
        "the kernel's bitfield generator",
    ),
    need(
        "nasm",
        Sign::Program("nasm"),
        "assembles the boot loader and the small test guests",
    ),
    need("bochs", Sign::Program("bochs-bin"), "the simulator with VT-x"),
    need(
        "bochs-term",
        Sign::File("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so"),
        "Bochs' display on a terminal, which nobody sees",
    ),
    need(
        "bochsbios",
        Sign::File("/usr/share/bochs/BIOS-bochs-latest"),
        "Bochs' BIOS",
    ),
    need(
        "vgabios",
        Sign::File("/usr/share/bochs/VGABIOS-lgpl-latest"),
        "Bochs' VGA BIOS",
    ),
    need(
        "qemu-system-x86",
        Sign::Program("qemu-system-x86_64"),
        "the simulator without VT-x",
    ),
    need(
        "valgrind",
        Sign::Program("valgrind"),
        "counts the instructions of the MMU's core in umbra test",
    ),
];

impl Need {
    fn is_met(&self) -> bool {
        match self.sign {
            Sign::Program(name) => find_program(name).is_some(),
            Sign::File(path) => Path::new(path).exists(),
            Sign::PythonModule(name) => Command::new("/usr/bin/python3")
                .args(["-c", &format!("import {name}")])
                .output()
                .is_ok_and(|output| output.status.success()),
        }
    }
}

/// What `umbra fuzz` needs besides.
const FOR_FUZZING: &[Need] = &[need(
    "g++",
    Sign::Program("c++"),
    "compiles libFuzzer, for umbra fuzz only",
)];

fn missing(needs: &'static [Need]) -> Vec<&'static Need> {
    needs.iter().filter(|need| !need.is_met()).collect()
}

fn install_command(needs: &[&Need]) -> String {
    let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Something is missing that the tool cannot get by itself.
#[derive(Debug)]
pub struct Missing(pub String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Prints what is needed and what is missing. Returns whether all is there.
pub fn report() -> bool {
    let width = NEEDS.iter().map(|need| need.package.len()).max().unwrap_or(0);
    println!("needed from the system:");
    for need in NEEDS {
        let mark = if need.is_met() { "ok     " } else { "MISSING" };
        println!("  {mark}  {:width$}  {}", need.package, need.why);
    }
    println!("optional:");
    let optional = |present: bool, name: &str, text: &str| {
        println!(
            "  {}  {name:width$}  {text}",
            if present { "ok     " } else { "none   " }
        );
    };
    for (name, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        let text = format!("for umbra test; rustup component add {component}");
        optional(find_program(name).is_some(), component, &text);
    }
    match crate::sim::Sim::QemuKvm.unusable() {
        None => optional(true, "nested VT-x", "--sim qemu-kvm can be used"),
        Some(why) => optional(false, "nested VT-x", &format!("--sim qemu-kvm cannot be used: {why}")),
    }
    for need in FOR_FUZZING {
        optional(need.is_met(), need.package, need.why);
    }
    let missing = missing(NEEDS);
    if missing.is_empty() {
        println!("nothing is missing");
        return true;
    }
    println!(
        "to get what is missing:\n  {}{}",
        if is_root() { "" } else { "sudo " },
        install_command(&missing)
    );
    false
}

/// Installs what is missing when root, else says with which command to get it.
pub fn ensure(steps: &Steps) -> Result<()> {
    ensure_all(steps, NEEDS)
}

/// As [`ensure`], for the compiler of libFuzzer.
pub fn ensure_cpp_compiler(steps: &Steps) -> Result<()> {
    ensure_all(steps, FOR_FUZZING)
}

fn ensure_all(steps: &Steps, needs: &'static [Need]) -> Result<()> {
    let needed = missing(needs);
    if needed.is_empty() {
        return Ok(());
    }
    let command = install_command(&needed);
    if !is_root() {
        bail!(Missing(format!(
            "system packages are missing. Get them with:\n  sudo {command}"
        )));
    }
    if find_program("apt-get").is_none() {
        let names: Vec<&str> = needed.iter().map(|need| need.package).collect();
        bail!(Missing(format!(
            "these are missing, and there is no apt-get to install them: {}",
            names.join(" ")
        )));
    }
    let install = || {
        let mut apt = apt();
        apt.args(["install", "-y", "--no-install-recommends"])
            .args(needed.iter().map(|need| need.package));
        apt
    };
    // Lists may be missing or old: fetch them first when they are missing, and again when packages are not found.
    let have_lists = std::fs::read_dir("/var/lib/apt/lists").is_ok_and(|folder| {
        folder.flatten().any(|file| {
            file.file_name().to_string_lossy().ends_with("Packages")
                || file.file_name().to_string_lossy().ends_with("Packages.lz4")
        })
    });
    let quick = have_lists
        && install()
            .arg("--simulate")
            .output()
            .is_ok_and(|output| output.status.success());
    if !quick {
        steps.run("fetching package lists", apt().arg("update"))?;
    }
    if steps.run("installing system packages", &mut install()).is_err() {
        // A list from before a point release names packages that are gone.
        steps.run("fetching package lists again", apt().arg("update"))?;
        steps.run("installing system packages again", &mut install())?;
    }
    let still = missing(needs);
    if !still.is_empty() {
        let names: Vec<&str> = still.iter().map(|need| need.package).collect();
        bail!(Missing(format!(
            "installed, but not found afterwards: {}",
            names.join(" ")
        )));
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=120"]);
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_listed_once_with_a_reason() {
        for (i, need) in NEEDS.iter().enumerate() {
            assert!(!need.why.is_empty());
            assert!(
                NEEDS[..i].iter().all(|other| other.package != need.package),
                "{}",
                need.package
            );
        }
    }

    /// Without a C compiler the tool cannot be built, so the script that builds it names all packages itself.
    #[test]
    fn the_script_names_the_same_packages() {
        let script = include_str!("../../umbra");
        let list = script
            .split_once("packages=\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let list = list.expect("packages=\"...\" in the script").0.replace('\\', "");
        let packages: Vec<&str> = NEEDS.iter().map(|need| need.package).collect();
        assert_eq!(list.split_whitespace().collect::<Vec<_>>(), packages);
    }

    #[test]
    fn signs_tell_present_from_absent() {
        let met = |sign| need("x", sign, "y").is_met();
        assert!(met(Sign::Program("sh")) && !met(Sign::Program("umbra-no-such-program")));
        assert!(met(Sign::File("/")) && !met(Sign::File("/umbra/no/such/file")));
        assert!(!met(Sign::PythonModule("umbra_no_such_module")));
    }

    #[test]
    fn the_command_names_all_missing_packages() {
        let one = need("one", Sign::File("/umbra/one"), "x");
        let two = need("two", Sign::File("/umbra/two"), "y");
        assert_eq!(
            install_command(&[&one, &two]),
            "apt-get install --no-install-recommends one two"
        );
    }
}

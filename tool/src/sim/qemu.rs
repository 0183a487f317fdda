// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is QEMU started, with its own emulator or on KVM?

use super::{Boot, Machine, Sim};
use crate::process::{Group, dies_with_us};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;

/// Starts QEMU in `folder` with its two serial ports connected to the TCP ports `console` and `log`.
pub fn start(sim: Sim, machine: &Machine, folder: &Path, console: u16, log: u16) -> Result<Group> {
    if let Some(why) = sim.unusable() {
        bail!("{}: {why}", sim.name());
    }
    let output = File::create(folder.join("simulator.txt")).context("QEMU's output")?;
    let args = arguments(sim, machine, console, log)?;
    std::fs::write(
        folder.join("command"),
        format!("qemu-system-x86_64 {}\n", args.join(" ")),
    )
    .context("writing the run's folder")?;
    Group::start(
        dies_with_us("qemu-system-x86_64")
            .args(args)
            .current_dir(folder)
            .stdout(output.try_clone().context("QEMU's output")?)
            .stderr(output),
    )
}

fn arguments(sim: Sim, machine: &Machine, console: u16, log: u16) -> Result<Vec<String>> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-m",
        &machine.memory_mib.to_string(),
    ]);
    match sim {
        Sim::Qemu => add(&["-machine", "pc,accel=tcg", "-cpu", "qemu64,+fsgsbase,+pdpe1gb,+rdrand"]),
        Sim::QemuKvm => add(&["-machine", "pc,accel=kvm", "-cpu", "host"]),
        Sim::Bochs => bail!("Bochs is not QEMU"),
    }
    add(&["-serial", &format!("tcp:127.0.0.1:{console},nodelay")]);
    add(&["-serial", &format!("tcp:127.0.0.1:{log},nodelay")]);
    add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    match &machine.boot {
        Boot::Multiboot { kernel, root_task } => {
            add(&["-kernel", option_value(kernel)?, "-initrd", option_value(root_task)?]);
            // The same ports as in the disk image's kernel command line.
            add(&["-append", "console_port=0x2f8 debug_port=0x2f8"]);
        }
        Boot::Disk(disk) => {
            let file = option_value(&disk.image)?;
            add(&["-drive", &format!("format=raw,if=ide,snapshot=on,file={file}")]);
        }
    }
    Ok(args)
}

/// QEMU splits some option values at commas.
fn option_value(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) if !text.contains(',') => Ok(text),
        Some(_) | None => bail!(
            "QEMU cannot use the path {}: it has a comma in it or is not text",
            path.display()
        ),
    }
}

/// Why KVM cannot run a hypervisor here, if it cannot. `root` is the root of the file system.
pub fn no_nested_vtx(root: &Path) -> Option<String> {
    if !root.join("dev/kvm").exists() {
        return Some("this machine has no /dev/kvm".to_owned());
    }
    let flags = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let vmx = flags
        .lines()
        .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "vmx"));
    if !vmx {
        return Some("this machine's processor does not offer VT-x (no vmx in /proc/cpuinfo)".to_owned());
    }
    let nested = std::fs::read_to_string(root.join("sys/module/kvm_intel/parameters/nested")).unwrap_or_default();
    if !matches!(nested.trim(), "Y" | "1") {
        return Some("kvm_intel does not nest: /sys/module/kvm_intel/parameters/nested is not Y".to_owned());
    }
    if std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(root.join("dev/kvm"))
        .is_err()
    {
        return Some("/dev/kvm cannot be opened: join its group (usually kvm)".to_owned());
    }
    None
}

/// What QEMU printed.
pub fn complaints(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("simulator.txt")).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.lines().take(6).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::{Disk, Pace};
    use super::*;
    use std::path::PathBuf;

    fn machine(boot: Boot) -> Machine {
        Machine {
            boot,
            memory_mib: 256,
            pace: Pace::Batch,
        }
    }

    #[test]
    fn multiboot_passes_kernel_root_task_and_both_ports() {
        let boot = Boot::Multiboot {
            kernel: "/k".into(),
            root_task: "/r".into(),
        };
        let args = arguments(Sim::Qemu, &machine(boot), 4001, 4002).unwrap().join(" ");
        assert!(args.contains("-kernel /k -initrd /r"), "{args}");
        let first = args.find("tcp:127.0.0.1:4001").unwrap();
        assert!(
            first < args.find("tcp:127.0.0.1:4002").unwrap(),
            "COM1 comes first: {args}"
        );
        assert!(args.contains("accel=tcg") && !args.contains("kvm"), "{args}");
    }

    #[test]
    fn a_disk_is_never_written() {
        let disk = Disk {
            image: PathBuf::from("/d"),
            option_rom: None,
        };
        let args = arguments(Sim::QemuKvm, &machine(Boot::Disk(disk)), 1, 2)
            .unwrap()
            .join(" ");
        assert!(args.contains("format=raw,if=ide,snapshot=on,file=/d"), "{args}");
        assert!(args.contains("accel=kvm") && args.contains("-cpu host"), "{args}");
    }

    #[test]
    fn commas_in_paths_are_refused() {
        let boot = Boot::Multiboot {
            kernel: "/k,x".into(),
            root_task: "/r".into(),
        };
        assert!(arguments(Sim::Qemu, &machine(boot), 1, 2).is_err());
    }

    #[test]
    fn the_reason_against_kvm_is_named() {
        let root = std::env::temp_dir().join(format!("umbra-kvm-{}", std::process::id()));
        let put = |file: &str, text: &str| {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(no_nested_vtx(&root).unwrap().contains("no /dev/kvm"));
        put("dev/kvm", "");
        put("proc/cpuinfo", "flags : fpu svm\n");
        assert!(no_nested_vtx(&root).unwrap().contains("VT-x"));
        put("proc/cpuinfo", "flags : fpu vmx\n");
        put("sys/module/kvm_intel/parameters/nested", "N\n");
        assert!(no_nested_vtx(&root).unwrap().contains("nest"));
        put("sys/module/kvm_intel/parameters/nested", "Y\n");
        assert_eq!(no_nested_vtx(&root), None);
        std::fs::remove_dir_all(root).unwrap();
    }
}

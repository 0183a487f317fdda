// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which simulators are there, and how is a machine started in one?

mod bochs;
mod qemu;
mod serial;

use crate::paths::Paths;
use crate::process::Group;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

/// A simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sim {
    /// Bochs: emulates VT-x with EPT in software; runs everywhere.
    Bochs,
    /// QEMU's own emulator: fast, but without VT-x, so without guests.
    Qemu,
    /// QEMU on KVM: needs an Intel host with nested VT-x.
    QemuKvm,
}

impl Sim {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Sim::Bochs => "bochs",
            Sim::Qemu => "qemu",
            Sim::QemuKvm => "qemu-kvm",
        }
    }

    /// Whether VMs can run in it.
    pub fn has_vtx(self) -> bool {
        match self {
            Sim::Bochs | Sim::QemuKvm => true,
            Sim::Qemu => false,
        }
    }

    /// The kernel preset that it boots.
    pub fn kernel_preset(self) -> &'static str {
        match self {
            Sim::Bochs | Sim::QemuKvm => "vtx",
            Sim::Qemu => "tcg",
        }
    }

    /// How a machine in it switches itself off, as `system.toml` says it.
    pub fn power_off(self) -> &'static str {
        match self {
            Sim::Bochs => "bochs",
            Sim::Qemu | Sim::QemuKvm => "qemu",
        }
    }

    /// Why it cannot be used here, if it cannot.
    pub fn unusable(self) -> Option<String> {
        match self {
            Sim::Bochs | Sim::Qemu => None,
            Sim::QemuKvm => qemu::no_nested_vtx(Path::new("/")),
        }
    }
}

/// How simulated time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it goes, from a fixed date: the same run every time.
    Batch,
    /// At most real time, so that an idle guest leaves the processor alone.
    Interactive,
}

/// What the machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel and a root task by QEMU's multiboot loader.
    Multiboot {
        /// `kernel32.elf`.
        kernel: PathBuf,
        /// The root task.
        root_task: PathBuf,
    },
    /// A disk image by the BIOS.
    Disk(Disk),
}

/// A disk image and what makes booting it quick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The raw image; its length is a whole number of cylinders.
    pub image: PathBuf,
    /// Bochs: an option ROM that starts the disk at once instead of after the BIOS's key wait.
    pub option_rom: Option<PathBuf>,
}

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it boots.
    pub boot: Boot,
    /// Its RAM in MiB.
    pub memory_mib: u32,
    /// How time passes.
    pub pace: Pace,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Running {
    /// The simulator.
    pub process: Group,
    /// COM1: the guest's console.
    pub console: TcpStream,
    /// COM2: the system log.
    pub log: TcpStream,
    /// The folder with its configuration and logs.
    pub folder: PathBuf,
    sim: Sim,
}

impl Running {
    /// What the simulator itself says about a bad end, if anything (a few lines).
    pub fn own_words(&self) -> Option<String> {
        match self.sim {
            Sim::Bochs => bochs::panic_lines(&self.folder),
            Sim::Qemu | Sim::QemuKvm => qemu::complaints(&self.folder),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        forget_links(&self.folder);
    }
}

#[cfg(test)]
impl Running {
    /// A machine that a test plays: `process` stands for the simulator.
    pub fn played(process: Group, console: TcpStream, log: TcpStream, folder: PathBuf) -> Self {
        Self {
            process,
            console,
            log,
            folder,
            sim: Sim::Qemu,
        }
    }
}

/// Names in a run's folder of what its simulator reads.
const DISK: &str = "disk.img";
const OPTION_ROM: &str = "option-rom";
const KERNEL: &str = "kernel";
const ROOT_TASK: &str = "root-task";

/// Links what the simulator reads into its working folder, and names it from there: Bochs drops blanks from the paths in
/// its configuration and splits them at commas, QEMU splits at commas and cuts the paths of multiboot modules at blanks.
/// A link of its own also spares every run of Bochs the lock on the disk that a killed one left.
fn take_in(boot: &Boot, folder: &Path) -> Result<Boot> {
    let link = |file: &Path, name: &str| {
        let own = folder.join(name);
        std::fs::hard_link(file, &own)
            .or_else(|_| std::fs::copy(file, &own).map(drop))
            .with_context(|| format!("linking {} to {}", file.display(), own.display()))
            .map(|()| PathBuf::from(name))
    };
    Ok(match boot {
        Boot::Multiboot { kernel, root_task } => Boot::Multiboot {
            kernel: link(kernel, KERNEL)?,
            root_task: link(root_task, ROOT_TASK)?,
        },
        Boot::Disk(Disk { image, option_rom }) => Boot::Disk(Disk {
            image: link(image, DISK)?,
            option_rom: option_rom.as_deref().map(|rom| link(rom, OPTION_ROM)).transpose()?,
        }),
    })
}

/// Removes the links: a run's folder is kept for its logs, and they would keep tens of megabytes from being free.
fn forget_links(folder: &Path) {
    for name in [DISK, OPTION_ROM, KERNEL, ROOT_TASK] {
        let _ = std::fs::remove_file(folder.join(name));
    }
}

/// Starts `machine`. `label` names the run's folder.
pub fn start(paths: &Paths, sim: Sim, machine: &Machine, label: &str) -> Result<Running> {
    let folder = paths.new_run(label)?;
    let machine = &Machine {
        boot: take_in(&machine.boot, &folder)?,
        ..machine.clone()
    };
    let console = serial::Port::listen()?;
    let log = serial::Port::listen()?;
    let mut process = match sim {
        Sim::Bochs => bochs::start(machine, &folder, console.number(), log.number())?,
        Sim::Qemu | Sim::QemuKvm => qemu::start(sim, machine, &folder, console.number(), log.number())?,
    };
    let connected = console
        .accept(&mut process)
        .and_then(|console| Ok((console, log.accept(&mut process)?)));
    match connected {
        Ok((console, log)) => Ok(Running {
            process,
            console,
            log,
            folder,
            sim,
        }),
        Err(error) => {
            let said = std::fs::read_to_string(folder.join("simulator.txt")).unwrap_or_default();
            Err(error.context(format!(
                "{} did not start (its folder: {})\n{said}",
                sim.name(),
                folder.display()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulators_read_only_files_of_their_own_folder() {
        let folder = std::env::temp_dir().join(format!("umbra sim, {}", std::process::id()));
        let run = folder.join("run");
        std::fs::create_dir_all(&run).unwrap();
        let file = |name: &str| {
            std::fs::write(folder.join(name), name).unwrap();
            folder.join(name)
        };
        let disk = Boot::Disk(Disk {
            image: file("image"),
            option_rom: Some(file("rom")),
        });
        let multiboot = Boot::Multiboot {
            kernel: file("k 1"),
            root_task: file("r,1"),
        };
        let plain = Boot::Disk(Disk {
            image: DISK.into(),
            option_rom: Some(OPTION_ROM.into()),
        });
        assert_eq!(take_in(&disk, &run).unwrap(), plain);
        let plain = Boot::Multiboot {
            kernel: KERNEL.into(),
            root_task: ROOT_TASK.into(),
        };
        assert_eq!(take_in(&multiboot, &run).unwrap(), plain);
        assert_eq!(std::fs::read(run.join(ROOT_TASK)).unwrap(), b"r,1");
        forget_links(&run);
        assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0);
        std::fs::remove_file(folder.join("r,1")).unwrap();
        assert!(format!("{:#}", take_in(&multiboot, &run).unwrap_err()).contains("r,1"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

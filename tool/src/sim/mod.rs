// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which simulators are there, and how is a machine started in one?

mod bochs;
mod qemu;
mod serial;

use crate::paths::Paths;
use crate::process::Group;
use anyhow::Result;
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
        bochs::forget_links(&self.folder);
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

/// Starts `machine`. `label` names the run's folder.
pub fn start(paths: &Paths, sim: Sim, machine: &Machine, label: &str) -> Result<Running> {
    let folder = paths.new_run(label)?;
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

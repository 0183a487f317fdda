// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra boot`: how does a developer start any root task?

use super::session::{Input, Plan, Show, follow};
use crate::build::program::read;
use crate::build::{Builder, image, kernel};
use crate::sim::{Boot, Disk, Machine, Pace, Sim, start};
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Boots a root task (or a disk image) and prints the system log.
#[derive(Debug, clap::Args)]
pub struct BootArgs {
    /// The root task: a static ELF64 program
    #[arg(long, value_name = "ELF", required_unless_present = "disk")]
    root_task: Option<PathBuf>,
    /// Boot this disk image instead
    #[arg(long, value_name = "IMAGE", conflicts_with = "root_task")]
    disk: Option<PathBuf>,
    /// Bochs: an option ROM that starts the disk at once
    #[arg(long, value_name = "FILE", requires = "disk")]
    option_rom: Option<PathBuf>,
    /// Where to boot
    #[arg(long, value_enum, default_value_t = Sim::Qemu)]
    sim: Sim,
    /// The kernel's preset (default: what fits the simulator)
    #[arg(long)]
    preset: Option<String>,
    /// RAM in MiB
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Prints the system log to standard output, and the console to standard error.
struct Both;

impl Show for Both {
    fn console(&mut self, bytes: &[u8]) -> Result<()> {
        std::io::stderr().write_all(bytes).context("standard error")
    }

    fn log(&mut self, line: &str) -> Result<()> {
        writeln!(std::io::stdout(), "{line}").context("standard output")
    }
}

/// The command. Returns the exit status.
pub fn boot(builder: &Builder, args: &BootArgs) -> Result<i32> {
    let boot = match (&args.root_task, &args.disk) {
        (_, Some(image)) => Boot::Disk(Disk {
            image: absolute(image)?,
            option_rom: args.option_rom.as_deref().map(absolute).transpose()?,
        }),
        (Some(root_task), None) => {
            let preset = args.preset.as_deref().unwrap_or(args.sim.kernel_preset());
            let kernel = kernel::build(builder, preset)?;
            match args.sim {
                Sim::Qemu | Sim::QemuKvm => {
                    let root_task = absolute(root_task)?;
                    let kernel = kernel.elf32();
                    Boot::Multiboot { kernel, root_task }
                }
                Sim::Bochs => image::root_task(builder, &kernel, &read(root_task)?, "boot")?.boot(args.sim),
            }
        }
        (None, None) => bail!("nothing to boot: use --root-task or --disk"),
    };
    let machine = Machine {
        boot,
        memory_mib: args.memory,
        pace: Pace::Batch,
    };
    let running = start(&builder.paths, args.sim, &machine, "boot")?;
    let plan = Plan {
        input: Input::Lines(Vec::new()),
        prompt: super::prompt::USUAL.to_owned(),
        timeout: Some(Duration::from_secs(args.timeout)),
        until: None,
    };
    let report = follow(running, plan, &mut Both)?;
    eprintln!(
        "umbra: {} ({:.1} s; {})",
        report.outcome,
        report.took.as_secs_f64(),
        report.folder.display()
    );
    Ok(report.outcome.exit_code())
}

/// Simulators run in folders of their own.
fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| path.display().to_string())
}

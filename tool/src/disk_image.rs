// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra image`: how does one get a disk image for a PC?

use crate::build::description::Description;
use crate::build::image::{self, Ports};
use crate::build::program::Programs;
use crate::build::spec::{VmSpec, describe};
use crate::build::{Builder, kernel};
use crate::guests;
use anyhow::{Context, Result};
use std::path::PathBuf;
use toml::Table;

/// Makes a disk image that boots on a PC by BIOS, from a USB stick for example
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The guest (umbra guests lists them)
    #[arg(long, default_value = guests::DEFAULT)]
    guest: String,
    /// RAM of the guest, as 64M or 1G
    #[arg(long, value_name = "SIZE", value_parser = crate::run::guest::size)]
    memory: Option<String>,
    /// For a board with one serial port: console and system log share COM1
    #[arg(long)]
    one_port: bool,
}

/// The command. Returns the exit status.
pub fn image(builder: &Builder, args: &ImageArgs) -> Result<i32> {
    let mut wishes = Table::new();
    if let Some(memory) = &args.memory {
        wishes.insert("memory".into(), memory.clone().into());
    }
    let ports = if args.one_port { Ports::One } else { Ports::Two };
    if args.one_port {
        wishes.insert("shares-log".into(), true.into());
    }
    // The plain command line: the tuned one leaves out what only a simulator can do without.
    let spec = VmSpec {
        guest: guests::load(builder, &args.guest, true)?,
        wishes,
    };
    let base = Description::read(&builder.paths.root().join("root-task/system.toml"))?;
    let (mut description, files) = describe(base, &[spec], &Table::new())?;
    description.set("power-off", "halt");
    description.set("log", if args.one_port { "com1" } else { "com2" });
    let kernel = kernel::build(builder, "vtx")?;
    let programs = Programs::build(builder, &kernel, &image::packages(&description.compile()?))?;
    let made = builder.steps.work("putting the image together", |_| {
        image::system(
            builder,
            &kernel,
            &programs,
            description,
            &image::payload(&files)?,
            ports,
            "image",
        )
    })?;
    let length = std::fs::copy(made.disk(), &args.out).with_context(|| format!("writing {}", args.out.display()))?;
    made.remove();
    println!(
        "{}: {} MiB; the machine needs VT-x with EPT and {} MiB of RAM",
        args.out.display(),
        length >> 20,
        made.memory_mib
    );
    println!(
        "write it to a stick with: dd if={} of=/dev/DISK bs=1M conv=fsync (DISK is lost)",
        args.out.display()
    );
    Ok(0)
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `umbra` command: which subcommands are there?

mod bench;
mod build;
mod cleanup;
mod disk_image;
mod doctor;
mod fuzz;
mod guests;
mod model;
mod mutations;
mod paths;
mod process;
mod requirements;
mod run;
mod sim;
mod step;
mod test;

use anyhow::Result;
use build::Builder;
use clap::{Parser, Subcommand};
use paths::Paths;
use run::outcome::EXIT_STATUS_HELP;

/// Umbra: virtual machines on seL4. Builds, boots and tests the system.
#[derive(Debug, Parser)]
#[command(name = "umbra", version, after_help = EXIT_STATUS_HELP)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::guest::RunArgs),
    Test(test::TestArgs),
    /// Show what this machine needs, what is missing, and how to get it
    Doctor,
    /// Build a kernel
    Kernel {
        /// Presets of CMakePresets.json
        #[arg(default_value = "vtx")]
        presets: Vec<String>,
    },
    Bench(bench::BenchArgs),
    Image(disk_image::ImageArgs),
    /// List the guests that --guest takes
    Guests,
    /// Write docs/requirements.md: which requirement is met where, and shown by which test
    Requirements,
    Fuzz(fuzz::FuzzArgs),
    Model(model::ModelArgs),
    Mutations(mutations::MutationsArgs),
    /// Boot a root task or a disk image and print the system log (for developers)
    Boot(run::boot::BootArgs),
}

fn main() {
    let code = match cleanup::install().and_then(|()| run_command(Args::parse())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("umbra: {error:#}");
            if error.downcast_ref::<doctor::Missing>().is_some() {
                3
            } else {
                1
            }
        }
    };
    cleanup::exit(code)
}

fn run_command(args: Args) -> Result<i32> {
    let builder = Builder::new(Paths::find()?);
    match args.command {
        Command::Doctor => Ok(if doctor::report() { 0 } else { 3 }),
        Command::Run(args) => {
            doctor::ensure(&builder.steps)?;
            run::guest::run(&builder, &args)
        }
        Command::Test(args) => {
            doctor::ensure(&builder.steps)?;
            test::test(&builder, &args)
        }
        Command::Requirements => {
            let changed = requirements::write(&builder.paths)?;
            println!(
                "docs/requirements.md {}",
                if changed { "was written" } else { "was up to date" }
            );
            Ok(0)
        }
        Command::Fuzz(args) => fuzz::fuzz(&builder, &args),
        Command::Model(args) => model::model(&builder, &args),
        Command::Mutations(args) => mutations::mutations(&builder, &args),
        Command::Bench(args) => {
            doctor::ensure(&builder.steps)?;
            bench::bench(&builder, &args)
        }
        Command::Guests => guests::list(&builder).map(|()| 0),
        Command::Image(args) => {
            doctor::ensure(&builder.steps)?;
            disk_image::image(&builder, &args)
        }
        Command::Kernel { presets } => {
            doctor::ensure(&builder.steps)?;
            for preset in presets {
                let kernel = build::kernel::build(&builder, &preset)?;
                println!("{}: {}", kernel.preset(), kernel.folder().display());
            }
            Ok(0)
        }
        Command::Boot(args) => {
            doctor::ensure(&builder.steps)?;
            run::boot::boot(&builder, &args)
        }
    }
}

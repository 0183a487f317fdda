// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra run`: how does one guest come up, on a terminal or in a script?

use super::outcome::Outcome;
use super::queries::Queries;
use super::session::{Input, Plan, Report, Show, follow};
use super::{prompt, terminal};
use crate::build::description::Description;
use crate::build::program::{Programs, read};
use crate::build::spec::{Guest, VmSpec, describe};
use crate::build::{Builder, image, kernel};
use crate::guests;
use crate::sim::{Pace, Sim, start};
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use toml::Table;

/// Time that a script gets when it does not say.
const SCRIPT_LIMIT: u64 = 900;

/// Boots a guest. On a terminal you type at its console; elsewhere the lines of standard input are typed at its prompt
#[derive(Debug, clap::Args)]
#[command(after_help = KEYS)]
pub struct RunArgs {
    /// The guest (umbra guests lists them)
    #[arg(long, default_value = guests::DEFAULT, conflicts_with = "kernel")]
    guest: String,
    /// Your own kernel: bzImage, vmlinux with a PVH note, or multiboot 1
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line; with --guest it replaces the guest's own
    #[arg(long, value_name = "STRING")]
    append: Option<String>,
    /// RAM of the guest, as 64M or 1G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<String>,
    /// A regular expression for the prompt at which lines are typed
    #[arg(long, value_name = "REGEX")]
    prompt: Option<String>,
    /// The guest's test-exit port 0xf4 answers
    #[arg(long)]
    test_exit: bool,
    /// The guest's plain command line, as a user would type it, instead of the one tuned for simulators
    #[arg(long, conflicts_with = "append")]
    plain: bool,
    /// Where to run
    #[arg(long, value_enum, default_value_t = Sim::Bochs)]
    sim: Sim,
    /// Give up after so many seconds (on a terminal: never; else 900)
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Show the system log on standard error while it runs
    #[arg(long)]
    log: bool,
}

/// A size as `system.toml` takes it; whether it suits the guest is seen later.
pub fn size(text: &str) -> Result<String, String> {
    let known = umbra_description::compile::parse_size(text).is_some();
    if known {
        Ok(text.to_owned())
    } else {
        Err("a size is a number of bytes, or one like 64K, 128M, 1G".to_owned())
    }
}

const KEYS: &str = "On a terminal, Ctrl-] ends the run; every other key goes to the guest.";

/// The console goes to standard output, the system log to standard error if it is wanted.
struct Out {
    log: bool,
    on: On,
}

/// What standard output is.
enum On {
    /// A terminal in raw mode, which answers the guest's questions.
    Terminal,
    /// Something else.
    Elsewhere(Queries),
}

impl Show for Out {
    fn console(&mut self, bytes: &[u8]) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        let written = match &mut self.on {
            On::Terminal => stdout.write_all(bytes),
            On::Elsewhere(queries) => stdout.write_all(&queries.without(bytes)),
        };
        written.and_then(|()| stdout.flush()).context("standard output")
    }

    fn log(&mut self, line: &str) -> Result<()> {
        if self.log {
            // In raw mode a line feed alone does not return the cursor.
            let end = match self.on {
                On::Terminal => "\r\n",
                On::Elsewhere(_) => "\n",
            };
            eprint!("{line}{end}");
        }
        Ok(())
    }
}

/// The command. Returns the exit status.
pub fn run(builder: &Builder, args: &RunArgs) -> Result<i32> {
    if !args.sim.has_vtx() {
        return crate::test::suite::without_vtx(builder, args.sim);
    }
    if let Some(why) = args.sim.unusable() {
        bail!(crate::doctor::Missing(format!(
            "--sim {} cannot be used here: {why}",
            args.sim.name()
        )));
    }
    let spec = VmSpec {
        guest: guest(builder, args)?,
        wishes: wishes(args),
    };
    let pattern = args.prompt.clone().or_else(|| spec.guest.prompt.clone());
    let prompt = pattern.unwrap_or_else(|| prompt::USUAL.to_owned());
    // A wrong pattern must not cost a build.
    prompt::Watcher::new(&prompt)?;

    let kernel = kernel::build(builder, args.sim.kernel_preset())?;
    let base = Description::read(&builder.paths.root().join("root-task/system.toml"))?;
    let (mut description, files) = describe(base, std::slice::from_ref(&spec), &Table::new())?;
    description.set("power-off", args.sim.power_off());
    let system = description.compile()?;
    let programs = Programs::build(builder, &kernel, &image::packages(&system))?;
    let image = builder.steps.work("putting the system together", |_| {
        image::system(
            builder,
            &kernel,
            &programs,
            description,
            &image::payload(&files)?,
            image::Ports::Two,
            "run",
        )
    })?;

    let interactive = terminal::is_interactive();
    let pace = if interactive { Pace::Interactive } else { Pace::Batch };
    let machine = image.machine(args.sim, false, pace);
    let timeout = args
        .timeout
        .or((!interactive).then_some(SCRIPT_LIMIT))
        .map(Duration::from_secs);
    let plan = |input| Plan {
        input,
        prompt,
        timeout,
        until: None,
    };
    let report = if interactive {
        eprintln!(
            "umbra: starting {} in {}; Ctrl-] ends the run",
            spec.guest.name,
            args.sim.name()
        );
        let running = start(&builder.paths, args.sim, &machine, "run")?;
        let _raw = terminal::Raw::enter()?;
        follow(
            running,
            plan(Input::StdinKeys),
            &mut Out {
                log: args.log,
                on: On::Terminal,
            },
        )?
    } else {
        eprintln!("umbra: starting {} in {}", spec.guest.name, args.sim.name());
        let running = start(&builder.paths, args.sim, &machine, "run")?;
        follow(
            running,
            plan(Input::StdinLines),
            &mut Out {
                log: args.log,
                on: On::Elsewhere(Queries::default()),
            },
        )?
    };
    image.remove();
    tell(&report, args.log);
    Ok(report.outcome.exit_code())
}

fn guest(builder: &Builder, args: &RunArgs) -> Result<Guest> {
    let Some(kernel) = &args.kernel else {
        let mut guest = guests::load(builder, &args.guest, args.plain)?;
        if let Some(append) = &args.append {
            guest.cmdline.clone_from(append);
        }
        return Ok(guest);
    };
    Ok(Guest {
        name: "guest".to_owned(),
        kernel: read(kernel)?,
        initrd: args.initrd.as_deref().map(read).transpose()?,
        cmdline: args.append.clone().unwrap_or_else(|| "console=ttyS0,115200".to_owned()),
        memory: "128M".to_owned(),
        ..Guest::default()
    })
}

/// What the command line says about the VM.
fn wishes(args: &RunArgs) -> Table {
    let mut wishes = Table::new();
    if let Some(memory) = &args.memory {
        wishes.insert("memory".into(), memory.clone().into());
    }
    if args.test_exit {
        wishes.insert("test-exit".into(), true.into());
    }
    wishes
}

/// Says how it ended; a bad end with what the system log has to say about it.
fn tell(report: &Report, log_was_shown: bool) {
    if !report.console.ends_with(b"\n") && !report.console.is_empty() {
        eprintln!();
    }
    if report.outcome != Outcome::Clean && report.outcome != Outcome::Escape {
        if !log_was_shown {
            eprintln!("umbra: the end of the system log:");
            for line in report.log.iter().rev().take(40).rev() {
                eprintln!("  | {line}");
            }
        }
        eprintln!("umbra: consoles and logs of the run are in {}", report.folder.display());
    }
    eprintln!("umbra: {} ({:.1} s)", report.outcome, report.took.as_secs_f64());
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra model`: does a guest see a processor, in millions of random steps?

use crate::build::Builder;
use crate::build::program::host_cargo;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Random guests and hosts on simulated hardware, each step judged by an oracle: the model test, longer than `umbra test` runs it
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Only this mode of the MMU and of the guest's paging, as `ept-pae`
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Steps in each mode
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    steps: u64,
    /// Where the random numbers start; the same seed gives the same steps
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Instead of random steps, the script of a failure
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mode", "steps", "seed"])]
    replay: Option<PathBuf>,
}

/// The command. Returns the exit status.
pub fn model(builder: &Builder, args: &ModelArgs) -> Result<i32> {
    let mut build = host_cargo(builder.paths.root());
    // As tests are built: with assertions.
    build.args(["build", "--locked", "-p", "umbra-model"]);
    builder.steps.run("building the model", &mut build)?;
    let program = builder.paths.target().join("debug/umbra-model");
    if let Some(script) = &args.replay {
        let mut command = Command::new(&program);
        let output = builder.steps.capture("replaying", command.arg("replay").arg(script))?;
        print!("{output}");
        return Ok(0);
    }
    let all = modes(&program)?;
    let chosen = match &args.mode {
        None => all,
        Some(mode) if all.contains(mode) => vec![mode.clone()],
        Some(mode) => bail!("there is no mode {mode}; there are: {}", all.join(", ")),
    };
    println!("{HEAD}");
    let failures = Mutex::new(0);
    let quiet = builder.quiet();
    builder.steps.work("running the model", |shown| {
        let run = |mode: &String| -> Result<()> {
            shown.progress(mode);
            let ended = one(&quiet, &program, mode, args)?;
            match ended {
                Ok(row) => println!("{row}"),
                Err(text) => {
                    println!("{mode}: FAILED\n{text}");
                    if let Ok(mut count) = failures.lock() {
                        *count += 1;
                    }
                }
            }
            Ok(())
        };
        crate::process::in_parallel(&chosen, |_, mode| run(mode)).map(drop)
    })?;
    let failures = failures.into_inner().unwrap_or(1);
    Ok(if failures == 0 { 0 } else { 20 })
}

const HEAD: &str = "\
| mode | seed | steps | reads | writes | faults | MMIO | of the host | seconds | steps/s |
|---|---|---|---|---|---|---|---|---|---|";

/// The names of all modes.
fn modes(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("modes")
        .output()
        .context("running the model")?;
    ensure!(output.status.success(), "the model does not tell its modes");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Runs one mode: its row of the table, or what it said.
fn one(builder: &Builder, program: &Path, mode: &str, args: &ModelArgs) -> Result<Result<String, String>> {
    let folder = builder.paths.target().join("model");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut command = Command::new(program);
    command.args(["run", "--mode", mode, "--steps", &args.steps.to_string()]);
    command.args(["--seed", &args.seed.to_string(), "--save"]);
    command.arg(folder.join(format!("{mode}.txt")));
    let (status, output) = builder.steps.attempt(&format!("model {mode}"), &mut command)?;
    let row = output
        .lines()
        .rev()
        .find(|line| line.starts_with(&format!("| {mode} ")));
    Ok(match row {
        Some(row) if status.success() => Ok(row.to_owned()),
        _ => Err(output),
    })
}

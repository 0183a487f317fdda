// SPDX-License-Identifier: MIT OR Apache-2.0
//! Long runs of the model, and replays of what they found.
//!
//! `run --mode M|all --steps N --seed S [--save FILE]` · `replay FILE` · `shrink FILE` · `modes`

use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;
use umbra_model::machine::machine;
use umbra_model::modes::Mode;
use umbra_model::run::{Summary, replay};
use umbra_model::script::{Script, Step};
use umbra_model::shrink::shrink;

const USAGE: &str = "umbra-model run --mode NAME|all --steps N --seed S [--save FILE]\n\
    umbra-model replay FILE\n\
    umbra-model shrink FILE\n\
    umbra-model modes";

/// The script of a run so far, for those that end in a panic.
static LAST: Mutex<Option<Script>> = Mutex::new(None);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["modes"] => {
            Mode::ALL.iter().for_each(|mode| println!("{}", mode.name));
            Ok(())
        }
        ["run", ref options @ ..] => run(options),
        ["replay", file] => replay_file(file),
        ["shrink", file] => shrink_file(file),
        _ => Err(USAGE.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn option<'a>(options: &[&'a str], name: &str) -> Option<&'a str> {
    let at = options.iter().position(|word| *word == name)?;
    options.get(at + 1).copied()
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "")
        .parse()
        .map_err(|_| format!("{text} is no number"))
}

fn run(options: &[&str]) -> Result<(), String> {
    let mode = option(options, "--mode").ok_or(USAGE)?;
    let steps = number(option(options, "--steps").unwrap_or("200000"))?;
    let seed = number(option(options, "--seed").unwrap_or("1"))?;
    let default = std::env::temp_dir().join("umbra-model-failure.txt");
    let save = option(options, "--save").map_or_else(|| default.display().to_string(), str::to_string);
    let modes: Vec<Mode> = match mode {
        "all" => Mode::ALL.to_vec(),
        name => vec![Mode::named(name).ok_or_else(|| unknown_mode(name))?],
    };
    // Built to abort on a panic, this program has to save what it ran before it is gone.
    let file = save.clone();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        if let Ok(mut last) = LAST.lock()
            && let Some(script) = last.take()
        {
            let _ = std::fs::write(&file, script.to_string());
            eprintln!("the script is in {file}; `shrink {file}` makes it short");
        }
    }));
    println!("| mode | seed | steps | reads | writes | faults | MMIO | of the host | seconds | steps/s |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for mode in modes {
        let plan = mode.plan(seed, steps);
        let start = Instant::now();
        let header = plan.header;
        let mut note = |_, step: Option<&Step>| {
            let mut last = LAST.lock().expect("no thread panics here");
            match (step, last.as_mut()) {
                (Some(step), Some(script)) => script.steps.push(*step),
                (_, _) => {
                    *last = Some(Script {
                        header,
                        steps: Vec::new(),
                    });
                }
            }
        };
        let summary = plan.run_noting(&mut note, 0, || machine(&header));
        let summary = summary.map_err(|found| {
            let _ = std::fs::write(&save, found.script.to_string());
            format!(
                "{}: {}\nseed {}; the script is in {save}",
                mode.name, found.failure, found.seed
            )
        })?;
        print(mode, seed, &summary, start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn unknown_mode(name: &str) -> String {
    let names = Mode::ALL.map(|mode| mode.name).join(", ");
    format!("{name} is none of: {names}")
}

fn print(mode: Mode, seed: u64, summary: &Summary, seconds: f64) {
    let Summary { steps, ended, host, .. } = summary;
    let rate = *steps as f64 / seconds;
    println!(
        "| {} | {seed} | {steps} | {} | {} | {} | {} | {host} | {seconds:.1} | {rate:.0} |",
        mode.name, ended.read, ended.written, ended.faults, ended.mmio
    );
}

fn read(file: &str) -> Result<Script, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    text.parse().map_err(|error| format!("{file}: {error}"))
}

fn replay_file(file: &str) -> Result<(), String> {
    let script = read(file)?;
    let replayed = replay(&script, 1, machine(&script.header));
    replayed.map_err(|(at, failure)| match script.steps.get(at) {
        Some(step) => format!("after step {at}, {step}:\n{failure}"),
        None => failure.to_string(),
    })?;
    println!("{} steps, nothing wrong", script.steps.len());
    Ok(())
}

/// Each attempt is a process of its own, which may panic. What it says first, up to the values, has to stay the same.
fn shrink_file(file: &str) -> Result<(), String> {
    let script = read(file)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let attempt = format!("{file}.attempt");
    let failure = |script: &Script| {
        std::fs::write(&attempt, script.to_string()).ok()?;
        let output = Command::new(&program).args(["replay", &attempt]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let kind = text
            .lines()
            .find(|line| !line.trim().is_empty() && !line.starts_with("after step"));
        (!output.status.success()).then(|| {
            kind.unwrap_or_default()
                .split(['(', '{', ':'])
                .take(2)
                .collect::<String>()
        })
    };
    let wanted = failure(&script).ok_or("the script does not fail")?;
    let short = shrink(&script, 20_000, |script| failure(script).as_ref() == Some(&wanted));
    std::fs::write(file, short.to_string()).map_err(|error| error.to_string())?;
    let _ = std::fs::remove_file(&attempt);
    print!("{short}");
    Ok(())
}

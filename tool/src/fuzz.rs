// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra fuzz`: does arbitrary input find anything that the tests have not?

use crate::build::Builder;
use crate::build::program::host_cargo;
use crate::doctor;
use crate::paths::write_if_changed;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version is fixed because it decides how programs are built.
const CARGO_FUZZ: &str = "0.13.2";
/// Corpora, from the project folder: a file for each target, an input in hexadecimal digits on each line.
const CORPUS: &str = "tests/fuzz/corpus";
/// Bytes of a committed corpus at the most: its shortest inputs.
const KEPT: usize = 16 << 10;
/// So long are the inputs at the most. Scripts of a few steps find little, so they are long from the start.
const LENGTH: [&str; 2] = ["-max_len=400", "-len_control=0"];

/// Fuzzes the MMU's inputs: tests/fuzz. Inputs that were found stay in target/fuzz and are used again
#[derive(Debug, clap::Args)]
pub struct FuzzArgs {
    /// Only these targets (all if none is named)
    targets: Vec<String>,
    /// How long each of them runs
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Instead of fuzzing, replace the committed corpora by the smallest sets of inputs that reach as much
    #[arg(long)]
    minimise: bool,
}

/// The command. Returns the exit status.
pub fn fuzz(builder: &Builder, args: &FuzzArgs) -> Result<i32> {
    doctor::ensure_cpp_compiler(&builder.steps)?;
    let fuzzer = Fuzzer {
        builder,
        program: cargo_fuzz(builder)?,
    };
    let known = targets(builder.paths.root())?;
    for target in &args.targets {
        ensure!(
            known.contains(target),
            "there is no fuzz target {target}; there are: {}",
            known.join(", ")
        );
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    fuzzer.build()?;
    let mut findings = 0;
    for target in chosen {
        if args.minimise {
            fuzzer.minimise(target)?;
            continue;
        }
        match fuzzer.run(target, args.seconds)? {
            Found::Nothing(summary) => println!("{target}: {summary}, nothing found"),
            Found::Something { input, output } => {
                findings += 1;
                println!("{target}: FOUND {}", input.display());
                println!("{output}");
            }
        }
    }
    Ok(if findings == 0 { 0 } else { 20 })
}

/// The targets: each has a corpus.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(CORPUS);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.context("reading the corpora")?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// The inputs of a corpus.
fn inputs(corpus: &str) -> Result<Vec<Vec<u8>>> {
    let byte = |pair: &[u8]| -> Result<u8> {
        let pair = std::str::from_utf8(pair).context("no hexadecimal digits")?;
        u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} is no byte"))
    };
    let input = |line: &str| line.as_bytes().chunks(2).map(byte).collect();
    corpus.lines().map(input).collect()
}

/// The shortest inputs, of [`KEPT`] bytes in all.
fn shortest(mut inputs: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    inputs.sort_by_key(|input| (input.len(), input.clone()));
    let mut bytes = 0;
    inputs.retain(|input| {
        bytes += input.len();
        bytes <= KEPT
    });
    inputs
}

/// The corpus of some inputs.
fn corpus(inputs: &[Vec<u8>]) -> String {
    let line = |input: &Vec<u8>| input.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    inputs.iter().map(line).collect()
}

/// The program that builds and runs fuzz targets, installed for this project alone.
fn cargo_fuzz(builder: &Builder) -> Result<PathBuf> {
    let folder = builder.paths.target().join("tools");
    let program = folder.join("bin/cargo-fuzz");
    let right = |program: &Path| {
        let output = Command::new(program).args(["fuzz", "--version"]).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(CARGO_FUZZ))
    };
    if !right(&program) {
        let mut command = host_cargo(builder.paths.root());
        command.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--force"]);
        command.arg("--root").arg(&folder);
        builder.steps.run("installing cargo-fuzz", &mut command)?;
        ensure!(right(&program), "{} does not run", program.display());
    }
    Ok(program)
}

/// What came out of a run.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// How many inputs in which time.
    Nothing(String),
    /// An input that a target does not stand, and the end of the output.
    Something { input: PathBuf, output: String },
}

struct Fuzzer<'a> {
    builder: &'a Builder,
    program: PathBuf,
}

impl Fuzzer<'_> {
    /// Cargo-fuzz with `subcommand`. The stable compiler does, because no sanitizer is used: there is no unsafe code in what
    /// is fuzzed, and what a sanitizer would see is a panic here.
    fn command(&self, subcommand: &str) -> Command {
        let root = self.builder.paths.root();
        let mut command = Command::new(&self.program);
        command.current_dir(root).args(["fuzz", subcommand, "--fuzz-dir"]);
        command.arg(root.join("tests/fuzz/cargo-fuzz"));
        command.args(["--sanitizer", "none", "--release", "--debug-assertions"]);
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            command.env_remove(name);
        }
        command.env("CARGO_TARGET_DIR", self.builder.paths.target().join("fuzz/build"));
        command
    }

    fn build(&self) -> Result<()> {
        let mut locked = host_cargo(self.builder.paths.root());
        locked.args([
            "fetch",
            "--locked",
            "--manifest-path",
            "tests/fuzz/cargo-fuzz/Cargo.toml",
        ]);
        self.builder.steps.run("fetching what fuzzing needs", &mut locked)?;
        self.builder
            .steps
            .run("building fuzz targets", &mut self.command("build"))
    }

    /// Inputs that were found on this machine.
    fn found(&self, target: &str) -> Result<PathBuf> {
        let folder = self.builder.paths.target().join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(folder)
    }

    /// The committed inputs, a file each.
    fn committed(&self, target: &str) -> Result<PathBuf> {
        let file = self
            .builder
            .paths
            .root()
            .join(CORPUS)
            .join(target)
            .with_extension("txt");
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let folder = fresh(self.builder.paths.target().join("fuzz/committed").join(target))?;
        for (at, input) in inputs(&text)
            .with_context(|| file.display().to_string())?
            .iter()
            .enumerate()
        {
            std::fs::write(folder.join(at.to_string()), input).context("writing an input")?;
        }
        Ok(folder)
    }

    fn run(&self, target: &str, seconds: u32) -> Result<Found> {
        let artifacts = self.builder.paths.target().join("fuzz/artifacts").join(target);
        std::fs::create_dir_all(&artifacts).with_context(|| format!("creating {}", artifacts.display()))?;
        let mut command = self.command("run");
        command
            .arg(target)
            .arg(self.found(target)?)
            .arg(self.committed(target)?);
        command.args(["--", &format!("-max_total_time={seconds}")]).args(LENGTH);
        // A directory, hence the slash.
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        let (status, output) = self.builder.steps.attempt(&format!("fuzzing {target}"), &mut command)?;
        meaning(status.success(), &output).with_context(|| {
            format!(
                "{status}; all of it: {}",
                self.builder.steps.log(&format!("fuzzing {target}")).display()
            )
        })
    }

    /// Makes the committed corpus the smallest set of inputs that reaches all code that committed and found ones reach.
    fn minimise(&self, target: &str) -> Result<()> {
        let both = fresh(self.builder.paths.target().join("fuzz/minimised").join(target))?;
        // libFuzzer itself: cargo-fuzz merges one folder only.
        let mut command = self.command("run");
        command
            .arg(target)
            .arg(&both)
            .arg(self.committed(target)?)
            .arg(self.found(target)?);
        command.args(["--", "-merge=1", "-use_counters=0"]).args(LENGTH);
        self.builder.steps.run(&format!("minimising {target}"), &mut command)?;
        let mut inputs = Vec::new();
        for entry in std::fs::read_dir(&both).context("reading the merged corpus")? {
            let path = entry.context("reading the merged corpus")?.path();
            inputs.push(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
        let inputs = shortest(inputs);
        let (count, bytes) = (inputs.len(), inputs.iter().map(Vec::len).sum::<usize>());
        let file = self
            .builder
            .paths
            .root()
            .join(CORPUS)
            .join(target)
            .with_extension("txt");
        write_if_changed(&file, corpus(&inputs).as_bytes())?;
        println!("{target}: {count} inputs, {bytes} bytes");
        Ok(())
    }
}

/// An empty folder.
fn fresh(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// What libFuzzer's output says.
fn meaning(success: bool, output: &str) -> Result<Found> {
    if let Some(at) = output.find("Test unit written to ") {
        let input = output[at..].split_whitespace().nth(4).unwrap_or_default().into();
        let panic = output
            .find("panicked at")
            .map_or(at, |panic| output[..panic].rfind('\n').unwrap_or(0));
        let said: Vec<&str> = output[panic..at].lines().take(40).collect();
        return Ok(Found::Something {
            input,
            output: said.join("\n"),
        });
    }
    let done = Regex::new(r"Done (\d+) runs in (\d+) second").context("a pattern")?;
    match done.captures(output) {
        Some(numbers) if success => Ok(Found::Nothing(format!(
            "{} executions in {} s",
            &numbers[1], &numbers[2]
        ))),
        _ => bail!("the fuzzer ended without a result"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_keeps_its_inputs() {
        let some = vec![vec![0xff, 0], vec![1; KEPT], vec![], vec![7]];
        let text = corpus(&shortest(some));
        assert_eq!(text, "\n07\nff00\n");
        assert_eq!(inputs(&text).unwrap(), [vec![], vec![7], vec![0xff, 0]]);
        assert!(inputs("zz").is_err() && inputs("\u{e4}").is_err());
    }

    #[test]
    fn a_finding_names_its_input_and_what_was_said() {
        let output = "#1 NEW\nthread 'x' panicked at a.rs:1:1:\nboom\n==1== ERROR\nartifact_prefix='/t/'; Test unit written to /t/crash-1\nBase64: x";
        match meaning(false, output).unwrap() {
            Found::Something { input, output } => {
                assert_eq!(input, Path::new("/t/crash-1"));
                assert!(output.contains("boom") && !output.contains("#1"), "{output}");
            }
            Found::Nothing(summary) => panic!("{summary}"),
        }
    }

    #[test]
    fn only_a_whole_run_finds_nothing() {
        let output = "#9 DONE\nDone 9 runs in 11 second(s)\n";
        assert_eq!(
            meaning(true, output).unwrap(),
            Found::Nothing("9 executions in 11 s".to_owned())
        );
        assert!(meaning(false, output).is_err() && meaning(true, "").is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are the tests built and run, without and with a mutation, and what does their end mean?

use super::list::{CaughtBy, Mutation};
use super::schemata::VARIABLE;
use crate::build::Builder;
use crate::build::program::host_cargo;
use crate::process::{Group, in_parallel};
use crate::step::Shown;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A test has this much longer with a mutation than it took without, until it counts as hung.
const PATIENCE: (u32, Duration) = (10, Duration::from_secs(10));
/// Address space of a test, in KiB: a mutation may allocate without end.
const MEMORY_KIB: u64 = 4 << 20;
/// The seed of property tests, so that they see the same in each run.
const SEED: (&str, &str) = ("PROPTEST_RNG_SEED", "1");

/// Test programs by what they were built from.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<(Vec<String>, String, String), PathBuf>);

impl Programs {
    /// Builds the test programs of `tests` from the copy. In `crates` the switch is a constant function that is none when it
    /// runs, and the compiler has to be told to allow that.
    pub fn build(builder: &Builder, copy: &Path, crates: &[String], tests: &BTreeSet<&CaughtBy>) -> Result<Self> {
        let mut programs = Self::default();
        // Features change dependencies too, so each set of them is a build of its own.
        let builds: BTreeSet<(&[String], &str)> = tests
            .iter()
            .filter(|test| !test.features.is_empty())
            .map(|test| (test.features.as_slice(), test.package.as_str()))
            .collect();
        let plain: BTreeSet<&str> = tests
            .iter()
            .filter(|test| test.features.is_empty())
            .map(|test| test.package.as_str())
            .collect();
        let plain = (!plain.is_empty()).then_some((&[][..], plain.into_iter().collect::<Vec<_>>()));
        let builds = builds.into_iter().map(|(features, package)| (features, vec![package]));
        for (features, packages) in plain.into_iter().chain(builds) {
            let wanted: BTreeSet<&str> = tests
                .iter()
                .filter(|test| test.features == features && packages.contains(&test.package.as_str()))
                .map(|test| test.target.as_str())
                .collect();
            let mut command = host_cargo(copy);
            command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
            for package in &packages {
                command.args(["-p", package]);
            }
            if !features.is_empty() {
                command.args(["--features", &features.join(",")]);
            }
            for target in wanted {
                match target {
                    "lib" => command.arg("--lib"),
                    name => command.args(["--test", name]),
                };
            }
            // A mutation leaves unused things behind; here nobody wants to hear of them.
            command
                .env("RUSTFLAGS", "--cap-lints=allow")
                .env("RUSTC_BOOTSTRAP", crates.join(","))
                .env("CARGO_TARGET_DIR", copy.join("target"));
            let name = format!("building mutated tests of {}", packages.join(", "));
            programs.add(features, &builder.steps.capture(&name, &mut command)?);
        }
        Ok(programs)
    }

    /// Takes the test programs from cargo's messages.
    fn add(&mut self, features: &[String], messages: &str) {
        for message in messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        {
            let Some(file) = message["executable"].as_str() else {
                continue;
            };
            let target = &message["target"];
            let name = match target["kind"][0].as_str() {
                Some("test") => target["name"].as_str().unwrap_or_default(),
                _ => "lib",
            };
            // `path+file:///folder/package#version` or `…/folder#name@version`
            let id = message["package_id"].as_str().unwrap_or_default();
            let (folder, end) = id.rsplit_once('#').unwrap_or((id, ""));
            let package = match end.split_once('@') {
                Some((name, _)) => name,
                None => folder.rsplit('/').next().unwrap_or_default(),
            };
            let key = (features.to_vec(), package.to_owned(), name.to_owned());
            self.0.insert(key, file.into());
        }
    }

    fn of(&self, test: &CaughtBy) -> Result<&Path> {
        let key = (test.features.clone(), test.package.clone(), test.target.clone());
        let program = self.0.get(&key).map(PathBuf::as_path);
        program.with_context(|| format!("{} has no test program {}", test.package, test.target))
    }
}

/// How one run of one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The test passed.
    Passed,
    /// It did not: by assertion or panic, or killed by a signal.
    Failed(String),
    /// It was still running.
    Hung(Duration),
}

/// Runs one test, once. `log` gets its output.
fn run(programs: &Programs, test: &CaughtBy, number: u64, limit: Duration, log: &Path) -> Result<End> {
    // The limit of the address space is the shell's, set for what it becomes.
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"");
    command
        .args(["-c", &script])
        .arg(programs.of(test)?)
        .args(["--exact", &test.test]);
    command
        .env(VARIABLE, number.to_string())
        .env(SEED.0, SEED.1)
        .env("RUST_BACKTRACE", "0");
    for variable in &test.env {
        let (name, value) = variable
            .split_once('=')
            .with_context(|| format!("{variable:?} is not NAME=value"))?;
        command.env(name, value);
    }
    let output = std::fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let same = output
        .try_clone()
        .with_context(|| format!("writing {}", log.display()))?;
    command.stdout(output).stderr(same);
    command.current_dir(log.parent().unwrap_or(Path::new("/")));
    let mut group = Group::start(&mut command)?;
    let Some(status) = group.wait_for(limit)? else {
        return Ok(End::Hung(limit));
    };
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    meaning(status.success(), &status.to_string(), &text)
        .with_context(|| format!("test {} of {} {}", test.test, test.package, test.target))
}

/// What the status and the output of a test program say.
fn meaning(success: bool, status: &str, output: &str) -> Result<End> {
    if success {
        ensure!(
            output.contains("\ntest result: ok. 1 passed"),
            "there is no test of that name"
        );
        return Ok(End::Passed);
    }
    // The first line that says what was wrong, else how it ended.
    let said = output.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    Ok(End::Failed(said.unwrap_or(status).trim().to_owned()))
}

/// The verdict on one mutation.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How its test ended.
    pub end: End,
    /// How long that took.
    pub took: Duration,
}

/// Runs all tests without a mutation, each once, then each mutation's test with it. Results are in the order of `mutations`.
///
/// # Errors
/// A test that fails without any mutation says nothing about mutations.
pub fn all(programs: &Programs, mutations: &[&Mutation], logs: &Path, shown: &Shown) -> Result<Vec<Ran>> {
    std::fs::create_dir_all(logs).with_context(|| format!("creating {}", logs.display()))?;
    let tests: BTreeSet<&CaughtBy> = mutations.iter().map(|mutation| &mutation.caught_by).collect();
    let tests: Vec<&CaughtBy> = tests.into_iter().collect();
    let usual = in_parallel(&tests, |index, test| {
        shown.progress(&format!("without a mutation: {test}"));
        let begun = Instant::now();
        let log = logs.join(format!("without-{index}.log"));
        match run(programs, test, 0, Duration::from_secs(120), &log)? {
            End::Passed => Ok(begun.elapsed()),
            end => bail!("without a mutation {test} does not pass: {end:?}; {}", log.display()),
        }
    })?;
    in_parallel(mutations, |_, mutation| {
        shown.progress(&mutation.name);
        let begun = Instant::now();
        let usual = tests
            .iter()
            .position(|test| *test == &mutation.caught_by)
            .map(|index| usual[index]);
        let limit = usual.unwrap_or_default() * PATIENCE.0 + PATIENCE.1;
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = mutation.name.chars().map(plain).collect();
        let end = run(
            programs,
            &mutation.caught_by,
            mutation.number(),
            limit,
            &logs.join(format!("{name}.log")),
        )?;
        Ok(Ran {
            end,
            took: begun.elapsed(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_there_does_not_pass() {
        let output = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed;";
        assert!(meaning(true, "exit status: 0", output).is_err());
        assert_eq!(
            meaning(true, "exit status: 0", "x\ntest result: ok. 1 passed; 0 failed;").unwrap(),
            End::Passed
        );
    }

    #[test]
    fn a_failure_is_quoted() {
        let output = "thread 'a' panicked at x.rs:1:2:\nassertion failed\nmore";
        let end = meaning(false, "exit status: 101", output).unwrap();
        assert_eq!(end, End::Failed("assertion failed".to_owned()));
        let end = meaning(false, "signal: 6 (SIGABRT)", "").unwrap();
        assert_eq!(end, End::Failed("signal: 6 (SIGABRT)".to_owned()));
    }

    #[test]
    fn programs_come_from_cargos_messages() {
        let message = |id: &str, kind: &str, name: &str| {
            format!(
                r#"{{"package_id":"{id}","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":"/x/{name}"}}"#
            )
        };
        let text = [
            message("path+file:///w/mmu/core#umbra-mmu-core@0.1.0", "lib", "umbra_mmu_core"),
            message("path+file:///w/umbra-p#0.1.0", "test", "model"),
            r#"{"executable":null}"#.to_owned(),
        ];
        let mut programs = Programs::default();
        programs.add(&[], &text.join("\n"));
        let test = |package: &str, target: &str| CaughtBy {
            package: package.to_owned(),
            target: target.to_owned(),
            test: "t".to_owned(),
            features: Vec::new(),
            env: Vec::new(),
        };
        let found = programs.of(&test("umbra-mmu-core", "lib")).unwrap();
        assert_eq!(found, Path::new("/x/umbra_mmu_core"));
        assert_eq!(programs.of(&test("umbra-p", "model")).unwrap(), Path::new("/x/model"));
        assert!(programs.of(&test("umbra-p", "lib")).is_err());
    }
}

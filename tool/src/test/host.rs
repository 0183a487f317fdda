// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is checked without booting anything?

use super::verdict::{Board, Verdict};
use crate::build::program::{cargo, host_cargo};
use crate::build::{Builder, Kernel};
use crate::mutations::Extent;
use anyhow::{Context, Result};
use regex::Regex;
use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// One check by name.
type Check<'a> = (String, Box<dyn FnOnce() -> Verdict + Send + 'a>);

/// Runs all host checks, `at_once` of them side by side. Cargo lets them take turns where they build in the same folder.
pub fn checks(builder: &Builder, kernel: Option<&Kernel>, board: &Board, at_once: u8, extent: Extent) {
    let queue: Mutex<VecDeque<Check>> = Mutex::new(all(builder, kernel, board, extent).into());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((name, check)) = next() {
                    board.begin(&name);
                    let begun = Instant::now();
                    board.add(&name, check(), begun.elapsed());
                }
            });
        }
    });
}

/// The checks, the longest first.
fn all<'a>(builder: &'a Builder, kernel: Option<&'a Kernel>, board: &'a Board, extent: Extent) -> Vec<Check<'a>> {
    let root = builder.paths.root();
    let mut checks: Vec<Check> = Vec::new();
    let mut add = |name: &str, check: Box<dyn FnOnce() -> Verdict + Send + 'a>| checks.push((name.to_owned(), check));
    add("host tests", Box::new(|| host_tests(builder, board)));
    add("mutations", Box::new(move || mutations(builder, board, extent)));
    let mut cost = host_cargo(root);
    cost.args(["run", "--locked", "--quiet", "--release", "--package", "umbra-bench"]);
    add(
        "instructions of the core",
        Box::new(move || verdict(builder, "instructions of the core", &mut cost)),
    );
    for checker in CHECKERS {
        let name = format!("races ({checker})");
        let mut command = races(root, "test", checker);
        add(&name.clone(), Box::new(move || verdict(builder, &name, &mut command)));
    }
    let mut lints = host_cargo(root);
    lints
        .args(["clippy", "--locked", "--quiet", "--all-targets"])
        .args(["--features", "umbra-images/simulators,sel4-bindgen/built-tree"])
        .args(["--", "-D", "warnings"]);
    add("lints", Box::new(move || verdict(builder, "lints", &mut lints)));
    for checker in CHECKERS {
        let name = format!("lints of race models ({checker})");
        let mut command = races(root, "clippy", checker);
        command.args(["--quiet", "--all-targets", "--", "-D", "warnings"]);
        add(&name.clone(), Box::new(move || verdict(builder, &name, &mut command)));
    }
    add("lints of seL4 programs", Box::new(move || sel4_lints(builder, kernel)));
    add(
        "bindings and the built kernel agree",
        Box::new(move || bindings(builder, kernel)),
    );
    let mut format = host_cargo(root);
    format.args(["fmt", "--all", "--check"]);
    add("format", Box::new(move || verdict(builder, "format", &mut format)));
    add(
        "requirements table",
        Box::new(|| Verdict::from_result(crate::requirements::check(&builder.paths))),
    );
    checks
}

/// Features of the race models: each of them swaps the atomics of the MMU for those of a model checker.
const CHECKERS: [&str; 2] = ["loom", "shuttle"];

/// `cargo COMMAND` for the race models, which are no default member.
fn races(root: &Path, command: &str, checker: &str) -> Command {
    let mut cargo = host_cargo(root);
    cargo.args([command, "--locked", "--package", "umbra-races", "--features", checker]);
    cargo
}

fn sel4_lints(builder: &Builder, kernel: Option<&Kernel>) -> Verdict {
    match (kernel, sel4_packages(builder)) {
        (None, _) => Verdict::NotRun("there is no kernel build to take the bindings from".to_owned()),
        (_, Err(error)) => Verdict::from_result(Err(error)),
        (Some(_), Ok(packages)) if packages.is_empty() => Verdict::failed("the workspace has no seL4 programs", ""),
        (Some(kernel), Ok(packages)) => {
            let mut command = cargo(builder, kernel, "clippy");
            command.args(["--release", "--locked", "--quiet"]);
            for package in &packages {
                command.args(["-p", package]);
            }
            verdict(
                builder,
                "lints of seL4 programs",
                command.args(["--", "-D", "warnings"]),
            )
        }
    }
}

fn bindings(builder: &Builder, kernel: Option<&Kernel>) -> Verdict {
    let Some(kernel) = kernel else {
        return Verdict::NotRun("there is no kernel build to compare with".to_owned());
    };
    let mut command = host_cargo(builder.paths.root());
    command
        .args([
            "test",
            "--locked",
            "--package",
            "sel4-bindgen",
            "--features",
            "built-tree",
        ])
        .args(["--test", "real_tree"])
        .env("SEL4_BUILD_DIR", kernel.folder());
    verdict(builder, "bindings", &mut command)
}

/// Whether the tests see the bugs that they are known to see.
fn mutations(builder: &Builder, board: &Board, extent: Extent) -> Verdict {
    match crate::mutations::check(builder, extent) {
        Ok(report) => {
            board.note(&format!("    mutations: {}", report.summary));
            match report.survived.as_slice() {
                [] => Verdict::Passed,
                survived => Verdict::failed(format!("not caught: {}", survived.join("; ")), report.text),
            }
        }
        Err(error) => Verdict::from_result(Err(error)),
    }
}

/// The boot loader and the small guests on simulated PCs, without Umbra.
pub fn without_umbra(builder: &Builder, board: &Board) {
    let mut command = host_cargo(builder.paths.root());
    command.args([
        "test",
        "--locked",
        "--package",
        "umbra-images",
        "--features",
        "simulators",
    ]);
    command.args(["--test", "guests_native", "--test", "loader_boot"]);
    board.check("loader and small guests without Umbra", || {
        verdict(builder, "loader and small guests", &mut command)
    });
}

/// Packages of the workspace that run on seL4 only: members that are no default members, and do not say otherwise.
fn sel4_packages(builder: &Builder) -> Result<Vec<String>> {
    let mut command = host_cargo(builder.paths.root());
    command.args(["metadata", "--no-deps", "--locked", "--format-version", "1"]);
    let output = command.output().context("cargo metadata")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    target_only(&serde_json::from_slice(&output.stdout).context("cargo metadata")?)
}

fn target_only(metadata: &serde_json::Value) -> Result<Vec<String>> {
    let ids = |key: &str| -> Result<Vec<&str>> {
        let list = metadata[key]
            .as_array()
            .with_context(|| format!("cargo metadata has no {key}"))?;
        Ok(list.iter().filter_map(|id| id.as_str()).collect())
    };
    let (members, defaults) = (ids("workspace_members")?, ids("workspace_default_members")?);
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let named = packages.iter().filter(|package| {
        let id = package["id"].as_str().unwrap_or_default();
        members.contains(&id) && !defaults.contains(&id) && package["metadata"]["umbra"]["runs-on"] != "host"
    });
    Ok(named
        .filter_map(|package| package["name"].as_str())
        .map(str::to_owned)
        .collect())
}

fn verdict(builder: &Builder, name: &str, command: &mut Command) -> Verdict {
    match builder.steps.attempt(name, command) {
        Ok((status, _)) if status.success() => Verdict::Passed,
        Ok((status, output)) => Verdict::failed(
            format!("{status} of {}", crate::step::describe(command)),
            last_lines(&output, 60) + &format!("\nall of it: {}", builder.steps.log(name).display()),
        ),
        Err(error) => Verdict::from_result(Err(error)),
    }
}

/// Unit, property and documentation tests of the default members, each counted.
fn host_tests(builder: &Builder, board: &Board) -> Verdict {
    const NAME: &str = "host tests";
    let mut command = host_cargo(builder.paths.root());
    command.args(["test", "--locked", "--no-fail-fast"]);
    let (status, output) = match builder.steps.attempt(NAME, &mut command) {
        Ok(ended) => ended,
        Err(error) => return Verdict::from_result(Err(error)),
    };
    let (passed, failed) = count_tests(&output);
    // The verdict on the whole counts as one failure.
    board.add_count(passed, failed.saturating_sub(1));
    board.note(&format!("    {passed} host tests passed, {failed} failed"));
    if status.success() && passed > 0 {
        Verdict::Passed
    } else {
        let log = builder.steps.log(NAME);
        let more = failures(&output) + &format!("\nall of it: {}", log.display());
        Verdict::failed(format!("{failed} host tests failed ({status})"), more)
    }
}

/// Sums of the closing lines of all test programs.
fn count_tests(output: &str) -> (usize, usize) {
    let Ok(closing) = Regex::new(r"(?m)^test result: \w+\. (\d+) passed; (\d+) failed;") else {
        return (0, 0);
    };
    closing.captures_iter(output).fold((0, 0), |(passed, failed), found| {
        let number = |group: usize| found[group].parse::<usize>().unwrap_or(0);
        (passed + number(1), failed + number(2))
    })
}

/// The parts of `cargo test`'s output that tell what went wrong.
fn failures(output: &str) -> String {
    let mut kept = Vec::new();
    let mut inside = false;
    for line in output.lines() {
        if line.starts_with("failures:") || line.starts_with("error") {
            inside = true;
        }
        if inside {
            kept.push(line);
        }
        if line.starts_with("test result:") {
            inside = false;
        }
    }
    last_lines(&kept.join("\n"), 120)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let output = "test a ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; x\n\n\
                      test result: FAILED. 2 passed; 1 failed; 0 ignored; x\n";
        assert_eq!(count_tests(output), (5, 1));
        assert_eq!(count_tests("error: could not compile"), (0, 0));
    }

    #[test]
    fn failures_are_cut_out() {
        let output = "test a ... ok\nfailures:\n\n---- b ----\nboom\ntest result: FAILED. 0 passed; 1 failed;\nafter\n";
        let text = failures(output);
        assert!(
            text.contains("boom") && !text.contains("after") && !text.contains("test a"),
            "{text}"
        );
    }

    #[test]
    fn members_that_are_no_default_members_run_on_the_target() {
        let metadata = serde_json::json!({
            "workspace_members": ["host#1", "target#1", "model#1"],
            "workspace_default_members": ["host#1"],
            "packages": [
                {"id": "host#1", "name": "host"},
                {"id": "target#1", "name": "target", "metadata": null},
                {"id": "model#1", "name": "model", "metadata": {"umbra": {"runs-on": "host"}}},
            ],
        });
        assert_eq!(target_only(&metadata).unwrap(), ["target"]);
        assert!(target_only(&serde_json::json!({})).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra test`: what is checked, in which order, and what is the verdict?

pub mod booted;
pub mod case;
mod command;
pub mod host;
pub mod suite;
pub mod verdict;

use crate::build::description::Description;
use crate::build::program::Programs;
use crate::build::{Builder, Kernel, image, kernel};
use crate::mutations::Extent;
use crate::sim::Sim;
use anyhow::{Context, Result};
use booted::Rig;
use case::Case;
use command::End;
use regex::Regex;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use suite::Suite;
use verdict::{Board, Verdict};

/// Runs the project's tests
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Only what needs no simulator
    #[arg(long)]
    fast: bool,
    /// Only booted suites and cases whose NAME/SIMULATOR matches (no host checks)
    #[arg(long, value_name = "REGEX", conflicts_with = "fast")]
    filter: Option<String>,
    /// Checks, and then simulators, at the same time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// List suites and cases instead of running them
    #[arg(long)]
    list: bool,
}

/// One thing to boot.
enum Job<'a> {
    Suite(&'a Suite, Sim),
    Case(&'a Case, Sim),
    Command(End),
}

impl Job<'_> {
    fn name(&self) -> String {
        match self {
            Job::Suite(suite, sim) => format!("{}/{}", suite.name, sim.name()),
            Job::Case(case, sim) => format!("{}/{}", case.name, sim.name()),
            Job::Command(end) => format!("{}/{}", end.name(), Sim::Bochs.name()),
        }
    }

    fn suite_package(&self) -> Option<&str> {
        match self {
            Job::Suite(suite, _) => Some(&suite.package),
            Job::Case(..) | Job::Command(_) => None,
        }
    }

    fn case(&self) -> Option<&Case> {
        match self {
            Job::Suite(..) | Job::Command(_) => None,
            Job::Case(case, _) => Some(case),
        }
    }

    fn timeout(&self) -> u64 {
        match self {
            Job::Suite(suite, _) => suite.timeout,
            Job::Case(case, _) => case.timeout,
            Job::Command(_) => command::LIMIT.as_secs(),
        }
    }
}

/// The command. Returns the exit status.
pub fn test(builder: &Builder, args: &TestArgs) -> Result<i32> {
    let suites = Suite::read_all(builder)?;
    let cases = Case::read_all(&builder.paths.root().join("tests/system/cases"))?;
    let filter = args.filter.as_deref().map(Regex::new).transpose().context("--filter")?;
    let jobs = jobs(&suites, &cases, filter.as_ref());
    if args.list {
        for suite in &suites {
            let sims: Vec<&str> = suite.sims.iter().map(|sim| sim.name()).collect();
            println!("{:28} {:14} suite {}", suite.name, sims.join(","), suite.package);
        }
        for case in &cases {
            let sims: Vec<&str> = case.sims.iter().map(|sim| sim.name()).collect();
            println!("{:28} {:14} {}", case.name, sims.join(","), case.about);
        }
        for end in End::ALL {
            println!(
                "{:28} {:14} the run command as a command",
                end.name(),
                Sim::Bochs.name()
            );
        }
        return Ok(0);
    }
    let board = Board::with_progress();
    let vtx = kernel_check(builder, "vtx", &board);
    if filter.is_none() {
        let extent = if args.fast { Extent::PlainBuild } else { Extent::All };
        host::checks(&builder.quiet(), vtx.as_ref(), &board, args.jobs, extent);
    }
    if !args.fast {
        if filter.is_none() {
            host::without_umbra(builder, &board);
        }
        let needs_tcg = jobs.iter().any(|job| matches!(job, Job::Suite(_, Sim::Qemu)));
        let tcg = if needs_tcg {
            kernel_check(builder, "tcg", &board)
        } else {
            None
        };
        let built = vtx
            .as_ref()
            .map(|kernel| programs_check(builder, kernel, &jobs, &board));
        let programs = built.unwrap_or_default();
        run_jobs(
            builder,
            jobs,
            (vtx.as_ref(), tcg.as_ref()),
            &programs,
            &board,
            args.jobs,
        );
    }
    Ok(if board.close() { 0 } else { 20 })
}

/// Suites and cases that are wanted; those that may run longest come first, so that the end is not one long one.
fn jobs<'a>(suites: &'a [Suite], cases: &'a [Case], filter: Option<&Regex>) -> VecDeque<Job<'a>> {
    let suites = suites
        .iter()
        .flat_map(|suite| suite.sims.iter().map(move |sim| Job::Suite(suite, *sim)));
    let cases = cases.iter().filter(|case| !case.only_bench);
    let cases = cases.flat_map(|case| case.sims.iter().map(move |sim| Job::Case(case, *sim)));
    let commands = End::ALL.into_iter().map(Job::Command);
    let mut jobs: Vec<Job> = suites.chain(cases).chain(commands).collect();
    jobs.retain(|job| filter.is_none_or(|filter| filter.is_match(&job.name())));
    jobs.sort_by_key(|job| std::cmp::Reverse(job.timeout()));
    jobs.into()
}

fn kernel_check(builder: &Builder, preset: &str, board: &Board) -> Option<Kernel> {
    let mut built = None;
    board.check(&format!("build of the {preset} kernel"), || {
        match kernel::build(builder, preset) {
            Ok(kernel) => {
                built = Some(kernel);
                Verdict::Passed
            }
            Err(error) => Verdict::failed(format!("{error:#}"), ""),
        }
    });
    built
}

/// What the jobs boot, built once: root task and components, and suites. What cannot be built is left out.
fn programs_check(builder: &Builder, kernel: &Kernel, jobs: &VecDeque<Job>, board: &Board) -> Programs {
    let mut programs = Programs::default();
    if jobs.iter().any(|job| matches!(job, Job::Case(..) | Job::Command(_))) {
        board.check("build of root task and components", || {
            Verdict::from_result(system_programs(builder, kernel).map(|built| programs.join(built)))
        });
    }
    let components = jobs.iter().filter_map(Job::case).flat_map(Case::components);
    let packages: BTreeSet<&str> = jobs.iter().filter_map(Job::suite_package).chain(components).collect();
    for package in packages {
        board.check(&format!("build of {package}"), || {
            Verdict::from_result(Programs::build(builder, kernel, &[package]).map(|built| programs.join(built)))
        });
    }
    programs
}

/// Builds root task and components of the default system.
pub fn system_programs(builder: &Builder, kernel: &Kernel) -> Result<Programs> {
    let system = Description::read(&builder.paths.root().join("root-task/system.toml"))?.compile()?;
    Programs::build(builder, kernel, &image::packages(&system))
}

fn run_jobs(
    builder: &Builder,
    jobs: VecDeque<Job>,
    (vtx, tcg): (Option<&Kernel>, Option<&Kernel>),
    programs: &Programs,
    board: &Board,
    at_once: u8,
) {
    let queue = Mutex::new(jobs);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(job) = next() {
            let (name, begun) = (job.name(), Instant::now());
            let kernel = match &job {
                Job::Suite(_, Sim::Qemu) => tcg,
                Job::Suite(_, Sim::Bochs | Sim::QemuKvm) | Job::Case(..) | Job::Command(_) => vtx,
            };
            let built = match &job {
                Job::Suite(suite, _) => programs.has(&suite.package),
                Job::Case(case, _) => case.refused.is_some() || programs.has(image::ROOT_TASK),
                Job::Command(_) => programs.has(image::ROOT_TASK),
            };
            let Some(kernel) = kernel.filter(|_| built) else {
                board.add(
                    &name,
                    Verdict::NotRun("what it boots was not built".into()),
                    Duration::ZERO,
                );
                continue;
            };
            match job {
                Job::Suite(suite, sim) => suite.judge(builder, kernel, programs, sim, board),
                Job::Case(case, sim) => {
                    board.begin(&name);
                    let rig = Rig {
                        builder,
                        kernel,
                        programs,
                    };
                    board.add(&name, rig.judge(case, sim), begun.elapsed());
                }
                Job::Command(end) => {
                    board.begin(&name);
                    board.add(&name, command::judge(builder, end), begun.elapsed());
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
}

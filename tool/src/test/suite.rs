// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a suite run that is a root task of its own and prints a verdict for each of its tests?

use super::case::tail;
use super::verdict::{Board, Verdict};
use crate::build::program::Programs;
use crate::build::{Builder, Kernel, image, kernel};
use crate::run::outcome::Outcome;
use crate::run::prompt;
use crate::run::session::{Input, Plan, Report, Show, follow};
use crate::run::syslog::Line;
use crate::sim::{Pace, Sim, start};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// A suite, from `tests/system/suites.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Suite {
    /// Its name in verdicts.
    pub name: String,
    /// The package of its root task.
    pub package: String,
    /// Where it runs.
    pub sims: Vec<Sim>,
    /// Seconds after which it hangs.
    pub timeout: u64,
    /// Boot the disk image as a PC would, in every simulator.
    #[serde(default)]
    pub plain_disk: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    suite: Vec<Suite>,
}

impl Suite {
    /// All suites of the project.
    pub fn read_all(builder: &Builder) -> Result<Vec<Self>> {
        let path = builder.paths.root().join("tests/system/suites.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let file: SuiteFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(file.suite)
    }

    /// Boots it and follows it to its end.
    pub fn run(
        &self,
        builder: &Builder,
        kernel: &Kernel,
        programs: &Programs,
        sim: Sim,
        show: &mut dyn Show,
    ) -> Result<Report> {
        let label = format!("{}-{}", self.name, sim.name());
        let image = image::root_task(builder, kernel, programs.get(&self.package)?, &label)?;
        let machine = image.machine(sim, self.plain_disk, Pace::Batch);
        let running = start(&builder.paths, sim, &machine, &label)?;
        let plan = Plan {
            input: Input::Lines(Vec::new()),
            prompt: prompt::USUAL.to_owned(),
            timeout: Some(Duration::from_secs(self.timeout)),
            until: None,
        };
        follow(running, plan, show)
    }

    /// Runs it and puts a verdict on the board for each of its tests, and one for the whole.
    pub fn judge(&self, builder: &Builder, kernel: &Kernel, programs: &Programs, sim: Sim, board: &Board) {
        let name = format!("{}/{}", self.name, sim.name());
        let begun = Instant::now();
        board.begin(&name);
        let report = match self.run(builder, kernel, programs, sim, &mut Silent) {
            Ok(report) => report,
            Err(error) => return board.add(&name, Verdict::from_result(Err(error)), begun.elapsed()),
        };
        for line in &report.log {
            if let Line::Test { name: test, failure } = Line::parse(line) {
                let verdict = failure.map_or(Verdict::Passed, |why| Verdict::failed(why, ""));
                board.add(&format!("{name}/{test}"), verdict, Duration::ZERO);
            }
        }
        board.add(&name, whole(&report), begun.elapsed());
    }
}

/// A suite is good if it came to its end, and something was tested.
fn whole(report: &Report) -> Verdict {
    match (&report.outcome, report.story.tests()) {
        (Outcome::Clean, (0, _)) => Verdict::failed("it ran no test", tail(report)),
        (Outcome::Clean, _) => Verdict::Passed,
        (outcome, _) => Verdict::failed(outcome.to_string(), tail(report)),
    }
}

/// Shows nothing.
pub struct Silent;

impl Show for Silent {
    fn console(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn log(&mut self, _: &str) -> Result<()> {
        Ok(())
    }
}

/// Prints the system log.
struct Verdicts;

impl Show for Verdicts {
    fn console(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn log(&mut self, line: &str) -> Result<()> {
        println!("{line}");
        Ok(())
    }
}

/// `umbra run` in a simulator without VT-x: the conformance suite is what can run there.
pub fn without_vtx(builder: &Builder, sim: Sim) -> Result<i32> {
    eprintln!(
        "umbra: {} has no VT-x, so no guest can run in it: guests need Intel VT-x with EPT.",
        sim.name()
    );
    eprintln!("umbra: what can run is the mmu's conformance suite, with real capabilities; here it is.");
    let suites = Suite::read_all(builder)?;
    let suite = suites
        .iter()
        .find(|suite| suite.name == "conformance" && suite.sims.contains(&sim));
    let suite = suite.with_context(|| format!("no conformance suite for {}", sim.name()))?;
    let kernel = kernel::build(builder, sim.kernel_preset())?;
    let programs = Programs::build(builder, &kernel, &[&suite.package])?;
    let report = suite.run(builder, &kernel, &programs, sim, &mut Verdicts)?;
    let (passed, failed) = report.story.tests();
    eprintln!("umbra: {passed} passed, {} failed: {}", failed.len(), report.outcome);
    Ok(match whole(&report) {
        Verdict::Passed => 0,
        Verdict::Failed { .. } | Verdict::NotRun(_) => report.outcome.exit_code().max(1),
    })
}

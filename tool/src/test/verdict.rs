// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are verdicts shown and counted?

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The verdict on one check or case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not; why, and what helps to find out more (several lines).
    Failed {
        /// One line.
        why: String,
        /// The console's tail, the end of the log.
        more: String,
    },
    /// It could not be run here, and that is not a pass.
    NotRun(String),
}

impl Verdict {
    /// A failure.
    pub fn failed(why: impl Into<String>, more: impl Into<String>) -> Self {
        Verdict::Failed {
            why: why.into(),
            more: more.into(),
        }
    }

    /// From a step of the tool.
    pub fn from_result(result: anyhow::Result<()>) -> Self {
        match result {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::failed(format!("{error:#}"), ""),
        }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Not run.
    pub not_run: usize,
}

#[derive(Debug, Default)]
struct State {
    count: Count,
    running: Vec<String>,
    failures: Vec<(String, Verdict)>,
}

/// Shows verdicts as they come, from any thread, and counts them.
#[derive(Debug)]
pub struct Board {
    started: Instant,
    state: Mutex<State>,
    /// On a terminal: what runs now.
    bar: Option<ProgressBar>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::default(),
            bar: None,
        }
    }
}

impl Board {
    /// Shows what runs, if standard error is a terminal.
    pub fn with_progress() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} [{elapsed}] {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        Self { bar, ..Self::default() }
    }

    /// `name` begins to run (possibly beside others).
    pub fn begin(&self, name: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.push(name.to_owned());
        self.show_running(&state);
    }

    fn show_running(&self, state: &State) {
        if let Some(bar) = &self.bar {
            if state.running.is_empty() {
                bar.finish_and_clear();
            } else {
                bar.enable_steady_tick(Duration::from_millis(120));
                bar.set_message(state.running.join(", "));
            }
        }
    }

    /// One verdict, with the time that it took.
    pub fn add(&self, name: &str, verdict: Verdict, took: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let print = || println!("{}", words(name, &verdict, took));
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
        state.running.retain(|other| other != name);
        self.show_running(&state);
        match &verdict {
            Verdict::Passed => state.count.passed += 1,
            Verdict::Failed { .. } => state.count.failed += 1,
            Verdict::NotRun(_) => state.count.not_run += 1,
        }
        if verdict != Verdict::Passed {
            state.failures.push((name.to_owned(), verdict));
        }
    }

    /// A line beside the verdicts.
    pub fn note(&self, line: &str) {
        let print = || println!("{line}");
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Many passes at once that another runner has shown already.
    pub fn add_count(&self, passed: usize, failed: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count.passed += passed;
        state.count.failed += failed;
    }

    /// Runs `check` and shows its verdict. Returns whether it passed.
    pub fn check(&self, name: &str, check: impl FnOnce() -> Verdict) -> bool {
        let begun = Instant::now();
        let verdict = check();
        let passed = verdict == Verdict::Passed;
        self.add(name, verdict, begun.elapsed());
        passed
    }

    /// Prints what went wrong, in short, and the closing line. Returns whether all is well.
    pub fn close(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let minutes = self.started.elapsed().as_secs_f64() / 60.0;
        println!();
        for (name, verdict) in &state.failures {
            match verdict {
                Verdict::Failed { why, .. } => println!("FAILED   {name}: {why}"),
                Verdict::NotRun(why) => println!("not run  {name}: {why}"),
                Verdict::Passed => {}
            }
        }
        println!(
            "{:.1} minutes{}",
            minutes,
            match state.count.not_run {
                0 => String::new(),
                n => format!("; {n} not run, which counts as a failure"),
            }
        );
        let failed = state.count.failed + state.count.not_run;
        println!("{} passed, {failed} failed", state.count.passed);
        failed == 0 && state.count.passed > 0
    }

    /// What was counted so far.
    #[cfg(test)]
    pub fn count(&self) -> Count {
        self.state.lock().unwrap().count
    }
}

/// The lines that show one verdict.
fn words(name: &str, verdict: &Verdict, took: Duration) -> String {
    // A test inside a suite has no time of its own.
    let seconds = if took.is_zero() {
        String::new()
    } else {
        format!(" ({:.1} s)", took.as_secs_f64())
    };
    match verdict {
        Verdict::Passed => format!("test {name} ... ok{seconds}"),
        Verdict::Failed { why, more } => {
            let more: String = more.lines().map(|line| format!("\n    | {line}")).collect();
            format!("test {name} ... FAILED{seconds}: {why}{more}")
        }
        Verdict::NotRun(why) => format!("test {name} ... not run: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_run_is_not_a_pass() {
        let board = Board::default();
        board.add("a", Verdict::Passed, Duration::ZERO);
        assert!(board.close());
        board.add("b", Verdict::NotRun("no simulator".into()), Duration::ZERO);
        assert!(!board.close());
    }

    #[test]
    fn a_failure_and_an_empty_run_are_not_a_pass() {
        let board = Board::default();
        assert!(!board.close(), "nothing was tested");
        board.add_count(5, 0);
        assert!(board.close());
        assert!(!board.check("c", || Verdict::failed("why", "more")));
        assert!(!board.close());
        assert_eq!(
            board.count(),
            Count {
                passed: 5,
                failed: 1,
                not_run: 0
            }
        );
    }
}

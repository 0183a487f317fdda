// SPDX-License-Identifier: MIT OR Apache-2.0
//! How did a run end, what is said about it, and which exit status does that give?

use super::syslog::Line;
use std::fmt;
use std::time::Duration;
use umbra_description::supervisor::StopReason;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every VM switched itself off, rebooted or reported success; every test passed.
    Clean,
    /// A VM stopped otherwise. The first such VM.
    GuestStopped {
        /// Its name.
        vm: String,
        /// Why.
        reason: StopReason,
        /// More, in words.
        detail: String,
    },
    /// Tests of a test root task failed; their names.
    TestsFailed(Vec<String>),
    /// The capability audit found a difference.
    AuditFailed(String),
    /// The root task gave up.
    Panic(String),
    /// The machine's verdict was bad without a VM or test to blame.
    BadVerdict(u64),
    /// The simulator ended without a verdict.
    NoVerdict(String),
    /// The time ran out.
    Timeout(Duration),
    /// What was waited for was seen, and the machine was ended.
    Seen,
    /// The person at the terminal ended it.
    Escape,
}

/// Exit statuses, for `umbra help` and for scripts.
pub const EXIT_STATUS_HELP: &str = "\
Exit status of run and boot:
   0  every guest switched off or rebooted by itself (test suites: every test passed)
   1  the tool itself failed: a build step, a bad argument file, a missing file
   2  wrong usage
   3  something is missing on this machine (umbra doctor)
  10  timeout
  11  triple fault of the guest
  12  a component (vmm or mmu) crashed
  13  panic of the root task
  14  the guest halted with interrupts off
  15  the guest's kernel or initrd could not be loaded
  16  an instruction could not be emulated
  17  an exit reason that the vmm does not know
  18  the mmu component failed
  19  the capability audit failed
  20  tests failed
  21  the simulator or the kernel ended without a verdict
  22  the guest wrote a failure to the test-exit port
  23  ended by the escape key";

impl Outcome {
    /// The exit status of the tool.
    pub fn exit_code(&self) -> i32 {
        match self {
            Outcome::Clean | Outcome::Seen => 0,
            Outcome::Timeout(_) => 10,
            Outcome::GuestStopped { reason, .. } => match reason {
                StopReason::PowerOff | StopReason::Reset => 0,
                StopReason::TripleFault => 11,
                StopReason::ComponentFault(_) => 12,
                StopReason::Halted => 14,
                StopReason::LoadFailed => 15,
                StopReason::EmulationFailed => 16,
                StopReason::UnknownExit(_) => 17,
                StopReason::MmuFailed => 18,
                StopReason::TestExit(_) => 22,
            },
            Outcome::Panic(_) => 13,
            Outcome::AuditFailed(_) => 19,
            Outcome::TestsFailed(_) | Outcome::BadVerdict(_) => 20,
            Outcome::NoVerdict(_) => 21,
            Outcome::Escape => 23,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Clean => f.write_str("clean end"),
            Outcome::GuestStopped { vm, reason, detail } => {
                let words = match reason {
                    StopReason::PowerOff => "switched off",
                    StopReason::Reset => "rebooted",
                    StopReason::TestExit(_) => "reported a failure at the test-exit port",
                    StopReason::TripleFault => "stopped by a triple fault",
                    StopReason::Halted => "halted with interrupts off",
                    StopReason::LoadFailed => "could not be loaded",
                    StopReason::EmulationFailed => "needs an instruction that cannot be emulated",
                    StopReason::UnknownExit(_) => "caused an exit that the vmm does not know",
                    StopReason::MmuFailed => "lost its mmu component (it failed)",
                    StopReason::ComponentFault(_) => "lost a component (it crashed)",
                };
                write!(f, "guest {vm} {words} [{reason}]")?;
                if detail.is_empty() {
                    Ok(())
                } else {
                    write!(f, ": {detail}")
                }
            }
            Outcome::TestsFailed(names) => write!(f, "{} tests failed: {}", names.len(), names.join(", ")),
            Outcome::AuditFailed(what) => write!(f, "the capability audit failed: {what}"),
            Outcome::Panic(what) => write!(f, "the root task panicked: {what}"),
            Outcome::BadVerdict(status) => write!(f, "the system ended with status {status}"),
            Outcome::NoVerdict(what) => write!(f, "ended without a verdict: {what}"),
            Outcome::Timeout(limit) => write!(f, "timeout after {} s", limit.as_secs()),
            Outcome::Seen => f.write_str("what was waited for was seen"),
            Outcome::Escape => f.write_str("ended by the escape key"),
        }
    }
}

/// What the system log has said so far.
#[derive(Clone, Debug, Default)]
pub struct Story {
    verdict: Option<u64>,
    panic: Option<String>,
    audit: Option<String>,
    bad_stop: Option<(String, StopReason, String)>,
    stops: Vec<(String, StopReason)>,
    failed: Vec<String>,
    passed: usize,
}

impl Story {
    /// Takes in one line of the system log.
    pub fn line(&mut self, text: &str) {
        match Line::parse(text) {
            Line::Stopped { vm, reason, detail } => {
                self.stops.push((vm.clone(), reason));
                if !reason.is_clean() && self.bad_stop.is_none() {
                    self.bad_stop = Some((vm, reason, detail));
                }
            }
            Line::AuditFailed(what) => self.audit = Some(what),
            Line::Panic(what) => self.panic = Some(what),
            Line::Done { status } => self.verdict = Some(status),
            Line::Test { name, failure: Some(_) } => self.failed.push(name),
            Line::Test { failure: None, .. } => self.passed += 1,
            Line::Ready { .. } | Line::Entered { .. } | Line::AuditOk | Line::Text => {}
        }
    }

    /// Nothing more is to come: the verdict was given, or the root task gave up.
    pub fn is_over(&self) -> bool {
        self.verdict.is_some() || self.panic.is_some()
    }

    /// VMs in the order in which they stopped.
    pub fn stops(&self) -> &[(String, StopReason)] {
        &self.stops
    }

    /// Tests that passed and the names of those that failed.
    pub fn tests(&self) -> (usize, &[String]) {
        (self.passed, &self.failed)
    }

    /// The outcome; `silence` says what is known when there was no verdict.
    pub fn outcome(&self, silence: impl FnOnce() -> Outcome) -> Outcome {
        if let Some(what) = &self.panic {
            return Outcome::Panic(what.clone());
        }
        if let Some(what) = &self.audit {
            return Outcome::AuditFailed(what.clone());
        }
        if let Some((vm, reason, detail)) = &self.bad_stop {
            return Outcome::GuestStopped {
                vm: vm.clone(),
                reason: *reason,
                detail: detail.clone(),
            };
        }
        if !self.failed.is_empty() {
            return Outcome::TestsFailed(self.failed.clone());
        }
        match self.verdict {
            Some(0) => Outcome::Clean,
            Some(status) => Outcome::BadVerdict(status),
            None => silence(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut story = Story::default();
        for line in lines {
            story.line(line);
        }
        story.outcome(|| Outcome::Timeout(Duration::from_secs(1)))
    }

    #[test]
    fn only_a_good_verdict_is_clean() {
        assert_eq!(
            outcome(&["umbra: vm a stopped: power-off", "umbra: done status=0"]).exit_code(),
            0
        );
        assert_eq!(outcome(&["umbra: vm a stopped: power-off"]).exit_code(), 10);
        assert_eq!(outcome(&["umbra: done status=1"]).exit_code(), 20);
        assert_eq!(
            outcome(&["test a ... ok", "test b ... FAILED: x", "umbra: done status=0"]).exit_code(),
            20
        );
        assert_eq!(
            outcome(&["umbra: audit FAILED: x", "umbra: done status=0"]).exit_code(),
            19
        );
    }

    #[test]
    fn the_first_bad_vm_is_named() {
        let outcome = outcome(&[
            "umbra: vm a stopped: power-off",
            "umbra: vm b stopped: triple-fault rip=0x10",
            "umbra: vm c stopped: halted",
            "umbra: done status=1",
        ]);
        assert_eq!(outcome.exit_code(), 11);
        let text = outcome.to_string();
        assert!(
            text.contains("guest b") && text.contains("triple fault") && text.contains("rip=0x10"),
            "{text}"
        );
    }

    #[test]
    fn every_exit_status_is_documented() {
        use umbra_description::supervisor::Role;
        let stopped = |reason| Outcome::GuestStopped {
            vm: "x".into(),
            reason,
            detail: String::new(),
        };
        let outcomes = [
            Outcome::Clean,
            stopped(StopReason::TripleFault),
            stopped(StopReason::ComponentFault(Role::Vmm)),
            Outcome::Panic(String::new()),
            stopped(StopReason::Halted),
            stopped(StopReason::LoadFailed),
            stopped(StopReason::EmulationFailed),
            stopped(StopReason::UnknownExit(1)),
            stopped(StopReason::MmuFailed),
            stopped(StopReason::TestExit(3)),
            Outcome::AuditFailed(String::new()),
            Outcome::TestsFailed(Vec::new()),
            Outcome::NoVerdict(String::new()),
            Outcome::Timeout(Duration::ZERO),
            Outcome::Escape,
        ];
        let mut codes: Vec<i32> = outcomes.iter().map(Outcome::exit_code).collect();
        for code in &codes {
            let documented = EXIT_STATUS_HELP
                .lines()
                .any(|l| l.trim_start().starts_with(&format!("{code} ")));
            assert!(documented, "{code}");
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), outcomes.len(), "exit statuses differ");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the system log say? One line in, one meaning out.

use umbra_description::supervisor::StopReason;

/// The meaning of a line of the system log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `umbra: ready vms=N ticks=T`: the root task is done, the VMs were started.
    Ready {
        /// Number of VMs.
        vms: u64,
        /// Ticks of the time stamp counter since power-on.
        ticks: u64,
    },
    /// `umbra: vm NAME: entered ticks=T`: the guest's first instruction.
    Entered {
        /// The VM.
        vm: String,
        /// Ticks of the time stamp counter since power-on.
        ticks: u64,
    },
    /// `umbra: vm NAME stopped: REASON detail`.
    Stopped {
        /// The VM.
        vm: String,
        /// Why.
        reason: StopReason,
        /// More, in words.
        detail: String,
    },
    /// `umbra: audit ok ...`.
    AuditOk,
    /// `umbra: audit FAILED: ...`.
    AuditFailed(String),
    /// `umbra: panic: ...`: the root task gave up.
    Panic(String),
    /// `umbra: done status=S`: the verdict.
    Done {
        /// 0 if all went well.
        status: u64,
    },
    /// `test NAME ... ok` or `test NAME ... FAILED: why`.
    Test {
        /// Its name.
        name: String,
        /// Why it failed; `None`: it passed.
        failure: Option<String>,
    },
    /// Anything else.
    Text,
}

impl Line {
    /// Reads one line, without its line end.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("test ") {
            return parse_test(rest).unwrap_or(Line::Text);
        }
        let Some(rest) = line.strip_prefix("umbra: ") else {
            return Line::Text;
        };
        parse_umbra(rest).unwrap_or(Line::Text)
    }
}

fn parse_umbra(text: &str) -> Option<Line> {
    if let Some(rest) = text.strip_prefix("ready ") {
        return Some(Line::Ready {
            vms: field(rest, "vms")?,
            ticks: field(rest, "ticks")?,
        });
    }
    if let Some(rest) = text.strip_prefix("done ") {
        return Some(Line::Done {
            status: field(rest, "status")?,
        });
    }
    if let Some(rest) = text.strip_prefix("panic: ") {
        return Some(Line::Panic(rest.to_owned()));
    }
    if let Some(rest) = text.strip_prefix("audit ") {
        return match rest.split_whitespace().next()? {
            "ok" => Some(Line::AuditOk),
            "FAILED:" | "FAILED" => Some(Line::AuditFailed(
                rest["FAILED".len()..].trim_start_matches(':').trim().into(),
            )),
            _ => None,
        };
    }
    let rest = text.strip_prefix("vm ")?;
    // A VM's name has no space. What a component logs comes after `NAME: `, what the root task says after `NAME `.
    let (name, rest) = rest.split_once(' ')?;
    if let Some(reason) = rest.strip_prefix("stopped: ").filter(|_| !name.ends_with(':')) {
        let (reason, detail) = StopReason::split(reason)?;
        return Some(Line::Stopped {
            vm: name.to_owned(),
            reason,
            detail: detail.to_owned(),
        });
    }
    let name = name.strip_suffix(':')?;
    let ticks = rest.strip_prefix("entered ")?;
    Some(Line::Entered {
        vm: name.to_owned(),
        ticks: field(ticks, "ticks")?,
    })
}

fn parse_test(text: &str) -> Option<Line> {
    let (name, verdict) = text.split_once(" ... ")?;
    let failure = match verdict.strip_prefix("FAILED") {
        Some(why) => Some(why.trim_start_matches(':').trim().to_owned()),
        None if verdict == "ok" => None,
        None => return None,
    };
    Some(Line::Test {
        name: name.to_owned(),
        failure,
    })
}

/// The number in `key=number` among the words of `text`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_description::supervisor::Role;

    #[test]
    fn every_kind_of_line_is_read() {
        let stopped = |reason, detail: &str| Line::Stopped {
            vm: "linux".into(),
            reason,
            detail: detail.into(),
        };
        let cases = [
            (
                "umbra: ready vms=2 ticks=123456",
                Line::Ready { vms: 2, ticks: 123_456 },
            ),
            (
                "umbra: vm linux: entered ticks=99",
                Line::Entered {
                    vm: "linux".into(),
                    ticks: 99,
                },
            ),
            ("umbra: vm linux stopped: power-off", stopped(StopReason::PowerOff, "")),
            (
                "umbra: vm linux stopped: test-exit 3 by out",
                stopped(StopReason::TestExit(3), "by out"),
            ),
            (
                "umbra: vm linux stopped: triple-fault rip=0x1",
                stopped(StopReason::TripleFault, "rip=0x1"),
            ),
            (
                "umbra: vm linux stopped: component-fault mmu",
                stopped(StopReason::ComponentFault(Role::Mmu), ""),
            ),
            ("umbra: audit ok caps=120", Line::AuditOk),
            ("umbra: audit FAILED: extra cap", Line::AuditFailed("extra cap".into())),
            ("umbra: panic: out of slots", Line::Panic("out of slots".into())),
            ("umbra: done status=1", Line::Done { status: 1 }),
            (
                "test ept_map ... ok",
                Line::Test {
                    name: "ept_map".into(),
                    failure: None,
                },
            ),
            (
                "test ept_map ... FAILED: 2 != 3",
                Line::Test {
                    name: "ept_map".into(),
                    failure: Some("2 != 3".into()),
                },
            ),
            ("Booting all finished, dropped to user space", Line::Text),
        ];
        for (text, want) in cases {
            assert_eq!(Line::parse(text), want, "{text}");
            assert_eq!(Line::parse(&format!("{text}\r")), want, "{text} with CR");
        }
    }

    #[test]
    fn what_a_component_logs_cannot_look_like_the_root_task() {
        // The root task puts `umbra: vm NAME: ` before each line that a component logs.
        for text in [
            "done status=0",
            "stopped: power-off",
            "umbra: done status=0",
            "panic: x",
            "audit ok",
        ] {
            assert_eq!(Line::parse(&format!("umbra: vm linux: {text}")), Line::Text, "{text}");
        }
    }

    #[test]
    fn broken_lines_mean_nothing() {
        for text in [
            "umbra: done status=x",
            "umbra: done",
            "umbra: ready vms=1",
            "umbra: vm a stopped: gone",
            "test x",
        ] {
            assert_eq!(Line::parse(text), Line::Text, "{text}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does a case file in `tests/system/cases` say, and does a finished run agree with it?

use super::verdict::Verdict;
use crate::run::outcome::Outcome;
use crate::run::session::Report;
use crate::sim::Sim;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde::Deserialize;
use std::path::Path;
use toml::Table;

/// One booted behaviour. The file's name is the case's name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// From the file's name.
    #[serde(skip)]
    pub name: String,
    /// What is shown, in one sentence.
    pub about: String,
    /// Where it runs.
    #[serde(default = "bochs")]
    pub sims: Vec<Sim>,
    /// The VMs.
    #[serde(default)]
    pub vm: Vec<CaseVm>,
    /// Keys of the description's top level to set.
    #[serde(default)]
    pub system: Table,
    /// Keys to set in every VM of a second description: the capability audit then compares with that one.
    #[serde(default)]
    pub policy: Option<Table>,
    /// What is done to the guest's files before they are packed.
    #[serde(default)]
    pub damage: Vec<Damage>,
    /// Boot the disk image as a PC would, without a simulator's shortcuts.
    #[serde(default)]
    pub plain_disk: bool,
    /// Lines typed at the prompt.
    #[serde(default, rename = "type")]
    pub typed: Vec<String>,
    /// Patterns that the console shows, in this order.
    #[serde(default)]
    pub console: Vec<String>,
    /// Patterns that the console must not show.
    #[serde(default)]
    pub console_lacks: Vec<String>,
    /// Patterns that lines of the system log match, in this order.
    #[serde(default)]
    pub log: Vec<String>,
    /// Patterns that no line of the system log matches.
    #[serde(default)]
    pub log_lacks: Vec<String>,
    /// How each VM stops, in the order of the VMs: as `power-off` or `test-exit 3`. Empty with `policy`.
    #[serde(default)]
    pub stopped: Vec<String>,
    /// A pattern of a line of console or system log at which the machine is ended: for guests that never stop. VMs that
    /// have not stopped by then are left out of `stopped`.
    pub until: Option<String>,
    /// Exit status of the run.
    #[serde(default)]
    pub status: i32,
    /// The description itself is refused, with words that match this; nothing is booted.
    pub refused: Option<String>,
    /// Seconds after which it hangs.
    pub timeout: u64,
    /// What `umbra bench` reads from the run.
    #[serde(default)]
    pub bench: Vec<Bench>,
    /// Only `umbra bench` runs it.
    #[serde(default)]
    pub only_bench: bool,
}

/// One VM of a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CaseVm {
    /// A guest of `images/`.
    pub guest: String,
    /// Its plain command line instead of the tuned one.
    #[serde(default)]
    pub plain: bool,
    /// Keys of `[[vm]]` to set.
    #[serde(flatten)]
    pub wishes: Table,
}

/// Something done to a file of the first guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Damage {
    /// Which file.
    pub file: DamagedFile,
    /// Keep only so many bytes.
    pub cut: Option<usize>,
    /// Invert the byte at this offset.
    pub flip: Option<usize>,
    /// Replace the whole content by this text.
    pub text: Option<String>,
}

/// A file that can be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamagedFile {
    /// The first guest's kernel.
    Kernel,
    /// The first guest's initial RAM disk.
    Initrd,
    /// The bundle that holds all guests' files.
    Payload,
}

/// A number that a run gives.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bench {
    /// What is measured.
    pub name: String,
    /// A pattern with a group for the number; looked for in the console and in the system log.
    pub pattern: String,
    /// Another pattern whose number is subtracted.
    pub minus: Option<String>,
    /// Largest number that is good.
    pub limit: Option<u64>,
    /// What is known of others, for the table.
    #[serde(default)]
    pub peer: String,
}

fn bochs() -> Vec<Sim> {
    vec![Sim::Bochs]
}

impl Case {
    /// Reads one file.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut case: Case = toml::from_str(text)?;
        name.clone_into(&mut case.name);
        ensure!(!case.vm.is_empty(), "there is no [[vm]]");
        ensure!(!case.sims.is_empty(), "there is no simulator");
        ensure!(
            case.refused.is_some()
                || case.policy.is_some()
                || case.until.is_some()
                || case.status != 0
                || case.stopped.len() == case.vm.len(),
            "stopped has {} entries for {} VMs",
            case.stopped.len(),
            case.vm.len()
        );
        for damage in &case.damage {
            let ways = [damage.cut.is_some(), damage.flip.is_some(), damage.text.is_some()];
            ensure!(
                ways.iter().filter(|way| **way).count() == 1,
                "a damage is one of cut, flip, text"
            );
        }
        let bench = case
            .bench
            .iter()
            .flat_map(|bench| [Some(&bench.pattern), bench.minus.as_ref()])
            .flatten();
        for pattern in bench {
            ensure!(
                regex(pattern)?.captures_len() == 2,
                "the pattern {pattern:?} has no single group"
            );
        }
        let lists = [&case.console, &case.console_lacks, &case.log, &case.log_lacks];
        for pattern in lists.into_iter().flatten().chain(&case.refused).chain(&case.until) {
            regex(pattern)?;
        }
        Ok(case)
    }

    /// All files of a folder, by name.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut cases = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                cases.push(Self::parse(&name, &text).with_context(|| path.display().to_string())?);
            }
        }
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(cases)
    }

    /// Compares a finished run with what the case says.
    pub fn judge(&self, report: &Report) -> Verdict {
        match self.compare(report) {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::failed(format!("{error:#}"), tail(report)),
        }
    }

    fn compare(&self, report: &Report) -> Result<()> {
        let status = report.outcome.exit_code();
        ensure!(
            status == self.status,
            "exit status {status}, not {}: {}",
            self.status,
            report.outcome
        );
        ensure!(
            self.until.is_none() || report.outcome == Outcome::Seen,
            "it ended before {:?} was seen: {}",
            self.until.as_deref().unwrap_or_default(),
            report.outcome
        );
        let mut stops: Vec<String> = report
            .story
            .stops()
            .iter()
            .map(|(_, reason)| reason.to_string())
            .collect();
        let mut expected = self.stopped.clone();
        // VMs run at the same time: they stop in any order.
        stops.sort();
        expected.sort();
        ensure!(stops == expected, "VMs stopped by {stops:?}, not {expected:?}");
        let console = plain(&report.console);
        let lines: Vec<&str> = console.lines().collect();
        in_order("the console", &self.console, &lines)?;
        absent("the console", &self.console_lacks, &lines)?;
        let log: Vec<&str> = report.log.iter().map(String::as_str).collect();
        in_order("the system log", &self.log, &log)?;
        absent("the system log", &self.log_lacks, &log)
    }
}

impl Case {
    /// Components that it starts instead of the system's own.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        let components = self.system.get("component").and_then(toml::Value::as_table);
        let images = components
            .into_iter()
            .flat_map(|table| table.values().filter_map(|c| c.get("image")));
        images.filter_map(toml::Value::as_str)
    }
}

impl Bench {
    /// The number, from a finished run.
    pub fn read(&self, report: &Report) -> Result<u64> {
        let value = number(&self.pattern, report)?;
        let Some(minus) = &self.minus else { return Ok(value) };
        let minus = number(minus, report)?;
        value
            .checked_sub(minus)
            .with_context(|| format!("{}: {value} is less than {minus}", self.name))
    }
}

fn number(pattern: &str, report: &Report) -> Result<u64> {
    let regex = regex(pattern)?;
    let console = plain(&report.console);
    let mut lines = report.log.iter().map(String::as_str).chain(console.lines());
    let Some(found) = lines.find_map(|line| regex.captures(line)) else {
        bail!("nothing in the run matches {pattern:?}");
    };
    found[1]
        .parse()
        .with_context(|| format!("{:?} is no number", &found[1]))
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).with_context(|| format!("the pattern {pattern:?}"))
}

/// Each pattern matches a line at or after its predecessor's.
fn in_order(place: &str, patterns: &[String], lines: &[&str]) -> Result<()> {
    let mut rest = lines;
    for (index, pattern) in patterns.iter().enumerate() {
        let regex = regex(pattern)?;
        let Some(at) = rest.iter().position(|line| regex.is_match(line)) else {
            let after = if index == 0 {
                String::new()
            } else {
                format!(" after {:?}", patterns[index - 1])
            };
            bail!("{place} has no line like {pattern:?}{after}");
        };
        // The same line may match the next pattern too, but no earlier one.
        rest = &rest[at..];
        if patterns.get(index + 1) == Some(pattern) {
            rest = &rest[1..];
        }
    }
    Ok(())
}

fn absent(place: &str, patterns: &[String], lines: &[&str]) -> Result<()> {
    for pattern in patterns {
        let regex = regex(pattern)?;
        if let Some(line) = lines.iter().find(|line| regex.is_match(line)) {
            bail!("{place} must not have a line like {pattern:?}: {line}");
        }
    }
    Ok(())
}

/// A console as text: no carriage returns, no escape sequences.
pub fn plain(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console).replace('\r', "");
    match Regex::new("\x1b\\[[0-9;?]*[@-~]") {
        Ok(escapes) => escapes.replace_all(&text, "").into_owned(),
        Err(_) => text,
    }
}

/// What helps to understand a failure.
pub fn tail(report: &Report) -> String {
    let last = |title: &str, text: Vec<&str>, count: usize| {
        let first = text.len().saturating_sub(count);
        format!(
            "{title}\n{}\n",
            text[first..]
                .iter()
                .map(|line| format!("  {line}\n"))
                .collect::<String>()
        )
    };
    let console = plain(&report.console);
    let mut out = last("the console's last lines:", console.lines().collect(), 25);
    out.push_str(&last(
        "the system log's last lines:",
        report.log.iter().map(String::as_str).collect(),
        25,
    ));
    out.push_str(&format!("everything is in {}", report.folder.display()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::outcome::Story;
    use std::time::Duration;

    fn report(console: &str, log: &[&str]) -> Report {
        let mut story = Story::default();
        for line in log {
            story.line(line);
        }
        Report {
            outcome: story.outcome(|| Outcome::Timeout(Duration::from_secs(1))),
            console: console.as_bytes().to_vec(),
            log: log.iter().map(|line| (*line).to_owned()).collect(),
            story,
            took: Duration::ZERO,
            folder: "/run".into(),
        }
    }

    fn case(more: &str) -> Case {
        let text = format!("about = 'a'\ntimeout = 5\nstopped = ['power-off']\n{more}\n[[vm]]\nguest = 'g'\n");
        Case::parse("c", &text).unwrap()
    }

    const GOOD: &[&str] = &["umbra: vm g stopped: power-off", "umbra: done status=0"];

    #[test]
    fn order_and_absence_count() {
        let case = case("console = ['^one', '^two$']\nconsole-lacks = ['Oops']");
        assert_eq!(
            case.judge(&report("one\r\n\x1b[1mtwo\x1b[0m\r\n", GOOD)),
            Verdict::Passed
        );
        assert_ne!(case.judge(&report("two\r\none\r\n", GOOD)), Verdict::Passed);
        assert_ne!(case.judge(&report("one\ntwo\nOops\n", GOOD)), Verdict::Passed);
    }

    #[test]
    fn another_end_than_expected_fails_with_the_consoles_tail() {
        let log = ["umbra: vm g stopped: triple-fault rip=0x1", "umbra: done status=1"];
        let Verdict::Failed { why, more } = case("").judge(&report("last words\n", &log)) else {
            panic!("passed");
        };
        assert!(why.contains("triple fault"), "{why}");
        assert!(more.contains("last words") && more.contains("rip=0x1"), "{more}");
        let expected = case("status = 11").judge(&report("", &log));
        assert!(matches!(expected, Verdict::Failed { why, .. } if why.contains("power-off")));
    }

    #[test]
    fn a_hang_fails() {
        assert_ne!(
            case("").judge(&report("", &["umbra: ready vms=1 ticks=2"])),
            Verdict::Passed
        );
    }

    #[test]
    fn wishes_of_a_vm_are_kept_apart_from_its_guest() {
        let case = Case::parse(
            "c",
            "about='a'\ntimeout=1\nstopped=['reset']\n[[vm]]\nguest='g'\nmemory='8M'",
        )
        .unwrap();
        assert_eq!(case.vm[0].wishes.get("memory").and_then(|m| m.as_str()), Some("8M"));
        assert!(!case.vm[0].plain);
    }

    #[test]
    fn wrong_case_files_are_refused() {
        let bad = [
            "about='a'\ntimeout=1\n",
            "about='a'\ntimeout=1\nstopped=[]\n[[vm]]\nguest='g'",
            "about='a'\ntimeout=1\nstopped=['reset']\nconsole=['(']\n[[vm]]\nguest='g'",
            "about='a'\ntimeout=1\nstopped=['reset']\nunknown=1\n[[vm]]\nguest='g'",
            "about='a'\ntimeout=1\nstopped=['reset']\n[[vm]]\nguest='g'\n[[damage]]\nfile='kernel'\ncut=1\nflip=2",
            "about='a'\ntimeout=1\nstopped=['reset']\n[[vm]]\nguest='g'\n[[bench]]\nname='n'\npattern='no group'",
        ];
        for text in bad {
            assert!(Case::parse("c", text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_case_of_the_project_is_right_and_every_test_guest_has_one() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let cases = Case::read_all(&root.join("tests/system/cases")).unwrap();
        let booted: Vec<&str> = cases
            .iter()
            .flat_map(|case| &case.vm)
            .map(|vm| vm.guest.as_str())
            .collect();
        let guests = umbra_images::guests::Images::open(&root.join("images"), &root.join("target")).unwrap();
        let idle: Vec<String> = guests
            .test_guests()
            .unwrap()
            .into_iter()
            .map(|guest| guest.name)
            .collect();
        let idle: Vec<&String> = idle.iter().filter(|name| !booted.contains(&name.as_str())).collect();
        assert!(idle.is_empty(), "no case boots {idle:?}");
    }

    #[test]
    fn numbers_are_read_and_subtracted() {
        let log = ["umbra: ready vms=1 ticks=100", "umbra: vm g: entered ticks=150"];
        let bench = |pattern: &str, minus: Option<&str>| Bench {
            name: "n".into(),
            pattern: pattern.into(),
            minus: minus.map(Into::into),
            limit: None,
            peer: String::new(),
        };
        let report = report("fault ticks=7\n", &log);
        assert_eq!(bench(r"fault ticks=(\d+)", None).read(&report).unwrap(), 7);
        assert_eq!(
            bench(r"entered ticks=(\d+)", Some(r"ready .*ticks=(\d+)"))
                .read(&report)
                .unwrap(),
            50
        );
        assert!(
            bench(r"ready .*ticks=(\d+)", Some(r"entered ticks=(\d+)"))
                .read(&report)
                .is_err()
        );
        assert!(bench(r"absent (\d+)", None).read(&report).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra bench`: which numbers do the cases give?

use crate::build::program::Programs;
use crate::build::{Builder, kernel};
use crate::sim::Sim;
use crate::test::booted::{Ended, Rig};
use crate::test::case::Case;
use crate::test::suite::{Silent, Suite};
use crate::test::{system_programs, verdict::Verdict};
use anyhow::{Context, Result, ensure};
use regex::Regex;

/// Measures and prints a table
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Only cases whose name matches
    #[arg(long, value_name = "REGEX")]
    filter: Option<String>,
}

const METHOD: &str = "\
Numbers are ticks of the time stamp counter in Bochs: one tick is one emulated instruction, so runs repeat, and time
does not enter. What costs a processor time without instructions (TLB and cache misses, world switches) counts as
almost nothing: code with many exits looks cheaper than on silicon. Peers were measured in the same emulator.";

/// The command. Returns the exit status: 20 if a number is above its limit or a run failed.
pub fn bench(builder: &Builder, args: &BenchArgs) -> Result<i32> {
    let filter = args.filter.as_deref().map(Regex::new).transpose().context("--filter")?;
    let mut cases = Case::read_all(&builder.paths.root().join("tests/system/cases"))?;
    cases.retain(|case| !case.bench.is_empty() && filter.as_ref().is_none_or(|filter| filter.is_match(&case.name)));
    let mut suites = Suite::read_all(builder)?;
    suites.retain(|suite| {
        !suite.plain_disk
            && suite.sims.contains(&Sim::Bochs)
            && filter.as_ref().is_none_or(|filter| filter.is_match(&suite.name))
    });
    ensure!(
        !cases.is_empty() || !suites.is_empty(),
        "no case with a [[bench]] entry and no suite matches"
    );
    let vtx = kernel::build(builder, Sim::Bochs.kernel_preset())?;
    let mut programs = if cases.is_empty() {
        Programs::default()
    } else {
        system_programs(builder, &vtx)?
    };
    for suite in &suites {
        programs.join(Programs::build(builder, &vtx, &[&suite.package])?);
    }
    let rig = Rig {
        builder,
        kernel: &vtx,
        programs: &programs,
    };
    let mut rows = Vec::new();
    let mut good = true;
    for suite in &suites {
        let run = builder.steps.work(&format!("running {}", suite.name), |_| {
            suite.run(builder, &vtx, &programs, Sim::Bochs, &mut Silent)
        });
        for (name, value) in said(&run?.log) {
            let case = suite.name.clone();
            rows.push(Row {
                name,
                value,
                limit: None,
                fits: true,
                peer: String::new(),
                case,
            });
        }
    }
    for case in &cases {
        let run = builder
            .steps
            .work(&format!("running {}", case.name), |_| rig.run(case, Sim::Bochs));
        let report = match run? {
            Ended::Ran(report) => report,
            Ended::Refused => continue,
        };
        if let Verdict::Failed { why, more } = case.judge(&report) {
            eprintln!(
                "umbra: {} failed, so its numbers mean nothing: {why}\n{more}",
                case.name
            );
            good = false;
            continue;
        }
        for measure in &case.bench {
            let value = measure
                .read(&report)
                .with_context(|| format!("{}: {}", case.name, measure.name))?;
            let fits = measure.limit.is_none_or(|limit| value <= limit);
            good &= fits;
            rows.push(Row {
                name: measure.name.clone(),
                value,
                limit: measure.limit,
                fits,
                peer: measure.peer.clone(),
                case: case.name.clone(),
            });
        }
    }
    println!("{}\n{METHOD}", table(&rows));
    Ok(if good { 0 } else { 20 })
}

/// Numbers that a suite prints itself: `bench NAME ticks=N`.
fn said(log: &[String]) -> Vec<(String, u64)> {
    let number = |line: &String| {
        let (name, ticks) = line.strip_prefix("bench ")?.rsplit_once(" ticks=")?;
        Some((name.to_owned(), ticks.trim().parse().ok()?))
    };
    log.iter().filter_map(number).collect()
}

#[derive(Debug)]
struct Row {
    name: String,
    value: u64,
    limit: Option<u64>,
    fits: bool,
    peer: String,
    case: String,
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from("| measure | ticks | goal | | peer | case |\n|---|--:|--:|---|---|---|\n");
    for row in rows {
        let limit = row
            .limit
            .map(|limit| format!("≤ {}", grouped(limit)))
            .unwrap_or_default();
        let verdict = match (row.limit, row.fits) {
            (None, _) => "",
            (Some(_), true) => "ok",
            (Some(_), false) => "ABOVE",
        };
        let value = grouped(row.value);
        out.push_str(&format!(
            "| {} | {value} | {limit} | {verdict} | {} | {} |\n",
            row.name, row.peer, row.case
        ));
    }
    out
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_may_print_numbers() {
        let log = ["bench map 4K ticks=770", "test a ... ok", "bench broken ticks=x"].map(str::to_owned);
        assert_eq!(said(&log), [("map 4K".to_owned(), 770)]);
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(
            (grouped(0).as_str(), grouped(123).as_str(), grouped(1_234_567).as_str()),
            ("0", "123", "1 234 567")
        );
    }

    #[test]
    fn a_number_above_its_goal_shows() {
        let row = |value, fits| Row {
            name: "fault".into(),
            value,
            limit: Some(2600),
            fits,
            peer: "KVM 2 755".into(),
            case: "c".into(),
        };
        let text = table(&[row(2000, true), row(3000, false)]);
        assert!(
            text.contains("| fault | 2 000 | ≤ 2 600 | ok | KVM 2 755 | c |"),
            "{text}"
        );
        assert!(text.contains("| fault | 3 000 | ≤ 2 600 | ABOVE |"), "{text}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! `umbra mutations`: does a test see each bug of the list?

mod copy;
mod list;
mod run;
mod schemata;

use crate::build::Builder;
use crate::requirements;
use anyhow::{Context, Result, ensure};
use list::{List, Mutation};
use regex::Regex;
use run::{End, Programs, Ran};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Puts each bug of tests/mutations/mutations.toml into a copy of the source, and sees that its test fails
#[derive(Debug, clap::Args)]
pub struct MutationsArgs {
    /// Only mutations of which the name, a requirement or the file matches
    #[arg(long, value_name = "REGEX")]
    filter: Option<String>,
    /// List the mutations instead of running them
    #[arg(long)]
    list: bool,
}

/// The command. Returns the exit status.
pub fn mutations(builder: &Builder, args: &MutationsArgs) -> Result<i32> {
    let list = List::read(builder.paths.root(), &requirements::known(&builder.paths)?)?;
    let filter = args.filter.as_deref().map(Regex::new).transpose().context("--filter")?;
    let chosen = chosen(&list, filter.as_ref())?;
    if args.list {
        for mutation in &chosen {
            println!("{}  [{}]", mutation.name, mutation.requirements.join(", "));
            println!("    {}", mutation.breaks);
            println!("    in {}, caught by {}", mutation.file, mutation.caught_by);
        }
        return Ok(0);
    }
    // All tests are built, whatever is chosen: the next choice finds them.
    let all: Vec<&Mutation> = list.mutation.iter().collect();
    let report = judge(builder, &list, &chosen, &all)?;
    print!("{}", report.text);
    Ok(if report.survived.is_empty() { 0 } else { 1 })
}

/// Which mutations `umbra test` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All.
    All,
    /// Those whose tests need no build with features: builds take longer than anything else here.
    PlainBuild,
}

/// What `umbra test` says about the list.
pub fn check(builder: &Builder, extent: Extent) -> Result<Report> {
    let list = List::read(builder.paths.root(), &requirements::known(&builder.paths)?)?;
    let wanted = |mutation: &&Mutation| match extent {
        Extent::All => true,
        Extent::PlainBuild => mutation.caught_by.features.is_empty(),
    };
    let chosen: Vec<&Mutation> = list.mutation.iter().filter(wanted).collect();
    judge(builder, &list, &chosen, &chosen)
}

fn chosen<'a>(list: &'a List, filter: Option<&Regex>) -> Result<Vec<&'a Mutation>> {
    let wanted = |filter: &Regex, mutation: &Mutation| {
        filter.is_match(&mutation.name)
            || filter.is_match(&mutation.file)
            || mutation.requirements.iter().any(|id| filter.is_match(id))
    };
    let chosen = list.mutation.iter();
    let chosen: Vec<&Mutation> = chosen
        .filter(|mutation| filter.is_none_or(|filter| wanted(filter, mutation)))
        .collect();
    ensure!(!chosen.is_empty(), "no mutation matches");
    Ok(chosen)
}

/// What came out.
#[derive(Debug)]
pub struct Report {
    /// A table, and a closing line.
    pub text: String,
    /// The closing line alone.
    pub summary: String,
    /// Names of mutations that no test saw.
    pub survived: Vec<String>,
}

/// Runs `chosen`, with the tests of `built`.
fn judge(builder: &Builder, list: &List, chosen: &[&Mutation], built: &[&Mutation]) -> Result<Report> {
    let copy = builder.paths.target().join("mutants");
    let programs = {
        let _turn = builder.turn()?;
        copy::make(builder.paths.root(), &copy, list)?;
        let tests: BTreeSet<_> = built.iter().map(|mutation| &mutation.caught_by).collect();
        let crates = copy::mutated_crates(builder.paths.root(), list)?;
        Programs::build(builder, &copy, &crates, &tests)?
    };
    let results = builder.steps.work("running mutations", |shown| {
        run::all(&programs, chosen, &copy.join("logs"), shown)
    })?;
    Ok(report(chosen, &results))
}

fn report(mutations: &[&Mutation], results: &[Ran]) -> Report {
    let (mut text, mut survived) = (String::new(), Vec::new());
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    let width = mutations
        .iter()
        .map(|mutation| mutation.name.chars().count())
        .max()
        .unwrap_or(0);
    for (mutation, result) in mutations.iter().zip(results) {
        let how = match &result.end {
            End::Failed(_) => "caught by",
            End::Hung(_) => "hangs   ",
            End::Passed => {
                survived.push(mutation.name.clone());
                "SURVIVED"
            }
        };
        for group in mutation
            .requirements
            .iter()
            .filter_map(|id| id.split('-').next())
            .collect::<BTreeSet<_>>()
        {
            *groups.entry(group).or_default() += 1;
        }
        let _ = writeln!(
            text,
            "{:width$}  {:14}  {how} {}  {:.1} s",
            mutation.name,
            mutation.requirements.join(" "),
            mutation.caught_by,
            result.took.as_secs_f64()
        );
    }
    let groups: Vec<String> = groups.iter().map(|(group, count)| format!("{group} {count}")).collect();
    let caught = mutations.len() - survived.len();
    let summary = format!("{caught} of {} caught ({})", mutations.len(), groups.join(", "));
    let _ = writeln!(text, "{summary}");
    Report {
        text,
        summary,
        survived,
    }
}

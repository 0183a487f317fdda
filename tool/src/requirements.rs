// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which requirement is met by which code and shown by which test? `docs/requirements.md` is made here.

use crate::paths::{Paths, write_if_changed};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

const LIST: &str = "docs/requirements.toml";
const TABLE: &str = "docs/requirements.md";
/// Kinds of files that may cite a requirement.
const SOURCES: [&str; 7] = ["rs", "toml", "asm", "inc", "c", "h", "cmake"];
/// Folders without sources of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "docs"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    group: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    requirement: Vec<Requirement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    id: String,
    text: String,
    /// What is missing although there is code and a test.
    partial: Option<String>,
}

/// Where a requirement is cited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    code: BTreeSet<String>,
    tests: BTreeSet<String>,
}

/// Writes the table. Returns whether it changed.
pub fn write(paths: &Paths) -> Result<bool> {
    let table = table(paths.root())?;
    write_if_changed(&paths.root().join(TABLE), table.as_bytes())
}

/// Fails when the committed table is not the current one.
pub fn check(paths: &Paths) -> Result<()> {
    let current = table(paths.root())?;
    let committed = std::fs::read_to_string(paths.root().join(TABLE)).unwrap_or_default();
    ensure!(
        current == committed,
        "{TABLE} is not up to date: run ./umbra requirements and commit it"
    );
    Ok(())
}

/// The numbers of all requirements.
pub fn known(paths: &Paths) -> Result<BTreeSet<String>> {
    let list = list(paths.root())?;
    let requirements = list.group.into_iter().flat_map(|group| group.requirement);
    Ok(requirements.map(|requirement| requirement.id).collect())
}

fn list(root: &Path) -> Result<List> {
    let text = std::fs::read_to_string(root.join(LIST)).with_context(|| format!("reading {LIST}"))?;
    toml::from_str(&text).with_context(|| LIST.to_owned())
}

fn table(root: &Path) -> Result<String> {
    let list = list(root)?;
    let mut places: BTreeMap<String, Places> = BTreeMap::new();
    for requirement in list.group.iter().flat_map(|group| &group.requirement) {
        let old = places.insert(requirement.id.clone(), Places::default());
        ensure!(old.is_none(), "{LIST} has {} twice", requirement.id);
    }
    scan(root, root, &mut places)?;
    Ok(render(&list, &places))
}

fn scan(root: &Path, folder: &Path, places: &mut BTreeMap<String, Places>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                scan(root, &path, places)?;
            }
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if !SOURCES.contains(&extension.as_str()) {
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        // The finder itself speaks of citations without citing.
        if relative == "tool/src/requirements.rs" {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {relative}"))?;
        for citation in citations(&relative, &text) {
            let Some(place) = places.get_mut(&citation.id) else {
                bail!("{relative}:{}: there is no requirement {}", citation.line, citation.id);
            };
            let set = if citation.in_test {
                &mut place.tests
            } else {
                &mut place.code
            };
            set.insert(citation.place);
        }
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Citation {
    id: String,
    line: usize,
    /// The file, with the test's name where there is one.
    place: String,
    in_test: bool,
}

/// Citations look like `REQ: GEN-3` or `REQ: GEN-3, GEN-4` in a comment.
fn citations(file: &str, text: &str) -> Vec<Citation> {
    let lines: Vec<&str> = text.lines().collect();
    let test_file = file.starts_with("tests/") || file.contains("/tests/") || file.ends_with("tests.rs");
    // The module itself, not the declaration of one in a file of its own.
    let tests_from = lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].ends_with('{'))
        .unwrap_or(lines.len());
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((_, cited)) = line.split_once("REQ: ") else {
            continue;
        };
        let in_test = test_file || index > tests_from;
        // In Rust the test is the function that follows, or the one around.
        let function = |line: &&str| {
            Some(
                line.trim_start()
                    .strip_prefix("fn ")?
                    .split(['(', '<'])
                    .next()?
                    .to_owned(),
            )
        };
        let after = lines[index..].iter().take(6).find_map(function);
        let around = || lines[..index].iter().rev().find_map(function);
        let test = if in_test && file.ends_with(".rs") {
            after.or_else(around)
        } else {
            None
        };
        let place = test.map_or_else(|| file.to_owned(), |test| format!("{file}: {test}"));
        for id in cited
            .split([',', ' ', ')', ';', '.', ':'])
            .filter(|word| !word.is_empty())
        {
            if !is_id(id) {
                break;
            }
            found.push(Citation {
                id: id.to_owned(),
                line: index + 1,
                place: place.clone(),
                in_test,
            });
        }
    }
    found
}

fn is_id(word: &str) -> bool {
    let Some((group, number)) = word.split_once('-') else {
        return false;
    };
    let capital = |c: char| c.is_ascii_uppercase();
    !group.is_empty() && group.chars().all(capital) && !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
}

fn render(list: &List, places: &BTreeMap<String, Places>) -> String {
    let mut out = String::from(
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n<!-- Made by ./umbra requirements; do not edit. -->\n\
         # Requirements\n\nWhat the MMU has to do, where it is done, and which test would fail if it were not. \
         **Met**: there is code and a test.\n**Partial**: the same, but something named is missing. **No test**, \
         **no code**: one half. **Open**: neither.\n\n",
    );
    let mut body = String::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for group in &list.group {
        let _ = write!(
            body,
            "\n## {}\n\n| id | requirement | code | tests | status |\n|---|---|---|---|---|\n",
            group.name
        );
        for requirement in &group.requirement {
            let none = Places::default();
            let place = places.get(&requirement.id).unwrap_or(&none);
            let status = status(requirement, place);
            *counts.entry(status).or_default() += 1;
            let missing = requirement
                .partial
                .as_ref()
                .map(|text| format!(": {text}"))
                .unwrap_or_default();
            let missing = if status == "partial" { missing } else { String::new() };
            let _ = writeln!(
                body,
                "| {} | {} | {} | {} | {status}{missing} |",
                requirement.id,
                requirement.text,
                cell(&place.code),
                cell(&place.tests)
            );
        }
    }
    let total: usize = counts.values().sum();
    let summary: Vec<String> = counts
        .iter()
        .map(|(status, count)| format!("{count} {status}"))
        .collect();
    let _ = writeln!(out, "{total} requirements: {}.", summary.join(", "));
    out + &body
}

fn status(requirement: &Requirement, place: &Places) -> &'static str {
    match (place.code.is_empty(), place.tests.is_empty(), &requirement.partial) {
        (false, false, None) => "met",
        (false, false, Some(_)) => "partial",
        (false, true, _) => "no test",
        (true, false, _) => "no code",
        (true, true, _) => "open",
    }
}

fn cell(places: &BTreeSet<String>) -> String {
    places
        .iter()
        .map(|place| format!("`{place}`"))
        .collect::<Vec<_>>()
        .join("<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "// REQ: GEN-3\nfn bump() {}\n\n#[cfg(test)]\nmod tests {\n    // REQ: GEN-3, GEN-4: both\n    \
                          #[test]\n    fn a_bump_is_cheap() {}\n}\n";

    #[test]
    fn code_and_tests_are_told_apart() {
        let found = citations("mmu/core/src/mmio.rs", SOURCE);
        let short: Vec<_> = found
            .iter()
            .map(|c| (c.id.as_str(), c.line, c.place.as_str(), c.in_test))
            .collect();
        let test = "mmu/core/src/mmio.rs: a_bump_is_cheap";
        assert_eq!(
            short,
            [
                ("GEN-3", 1, "mmu/core/src/mmio.rs", false),
                ("GEN-3", 6, test, true),
                ("GEN-4", 6, test, true)
            ]
        );
    }

    #[test]
    fn code_below_a_declaration_for_tests_is_code() {
        let found = citations(
            "x/src/lib.rs",
            "#[cfg(test)]\nmod tests;\n\n// REQ: GEN-3\nfn bump() {}\n",
        );
        assert!(!found[0].in_test, "{found:?}");
    }

    #[test]
    fn a_case_file_is_a_test_and_words_are_no_numbers() {
        let found = citations("tests/system/cases/x.toml", "# REQ: X-4 shown live\n# REQ: see above\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].in_test && found[0].id == "X-4");
        assert!(!is_id("GEN-") && !is_id("-3") && !is_id("gen-3") && !is_id("GEN3"));
    }

    #[test]
    fn a_table_row_says_what_is_missing() {
        let list: List = toml::from_str(
            "[[group]]\nname='G'\nrequirement=[{id='A-1',text='a'},{id='A-2',text='b',partial='half'},{id='A-3',text='c'}]",
        )
        .unwrap();
        let both = Places {
            code: ["x.rs".into()].into(),
            tests: ["y.rs".into()].into(),
        };
        let places = [("A-1".to_owned(), both.clone()), ("A-2".to_owned(), both)].into();
        let text = render(&list, &places);
        assert!(text.contains("| A-1 | a | `x.rs` | `y.rs` | met |"), "{text}");
        assert!(
            text.contains("| partial: half |") && text.contains("| A-3 | c |  |  | open |"),
            "{text}"
        );
        assert!(text.contains("3 requirements: 1 met, 1 open, 1 partial."), "{text}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does `tests/mutations/mutations.toml` say, and is it in order?

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Where the list is, from the project folder.
pub const FILE: &str = "tests/mutations/mutations.toml";

/// The whole list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct List {
    /// Packages that are copied, those with mutations and all that their tests need; and other files or folders.
    pub copied: Vec<String>,
    /// The bugs.
    pub mutation: Vec<Mutation>,
}

/// One bug, and the test that has to see it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mutation {
    /// Few words, as they are printed.
    pub name: String,
    /// What goes wrong with it, in a sentence.
    pub breaks: String,
    /// The requirements that it violates.
    pub requirements: Vec<String>,
    /// The source file, from the project folder.
    pub file: String,
    /// Text that is in the file exactly once, however its lines are broken.
    pub find: String,
    /// What is there instead when the mutation is on.
    pub replace: String,
    /// How the two become one program.
    pub schema: Option<Schema>,
    /// The test that fails.
    pub caught_by: CaughtBy,
}

/// How original and mutated text are put into one program.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Schema {
    /// `(if on { replace } else { find })`
    Expression,
    /// `if on { replace } else { find }`, for one or more whole statements, or the last expression of a block.
    Statement,
    /// `replace`, in which `MUTANT` stands for the switch: for patterns, where an `if` cannot be.
    Custom,
}

/// One test.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaughtBy {
    /// The package.
    pub package: String,
    /// `lib`, or the name of the file in `tests/`.
    pub target: String,
    /// The test's whole name.
    pub test: String,
    /// Features of the package to build with: a build of its own.
    #[serde(default)]
    pub features: Vec<String>,
    /// Environment variables as `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
}

impl std::fmt::Display for CaughtBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let package = self.package.strip_prefix("umbra-").unwrap_or(&self.package);
        match self.target.as_str() {
            "lib" => write!(f, "{package} {}", self.test),
            target => write!(f, "{package} {target}: {}", self.test),
        }
    }
}

impl Mutation {
    /// The schema, chosen by the text's end if none is given.
    pub fn schema(&self) -> Schema {
        self.schema.unwrap_or(match self.find.trim_end().chars().last() {
            Some(';' | '}') => Schema::Statement,
            _ => Schema::Expression,
        })
    }

    /// The number by which the program knows the mutation. It depends on the name alone, so that a longer list leaves the
    /// files of other mutations as they were. (64-bit FNV-1a; never 0, which is none.)
    pub fn number(&self) -> u64 {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.name.bytes().fold(0xcbf2_9ce4_8422_2325, hash).max(1)
    }
}

impl List {
    /// Reads and checks the list; `known` are the requirements that exist.
    pub fn read(root: &Path, known: &BTreeSet<String>) -> Result<Self> {
        let text = std::fs::read_to_string(root.join(FILE)).with_context(|| format!("reading {FILE}"))?;
        Self::parse(&text, known).with_context(|| FILE.to_owned())
    }

    fn parse(text: &str, known: &BTreeSet<String>) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        for mutation in &list.mutation {
            let name = &mutation.name;
            ensure!(names.insert(name), "there are two mutations {name:?}");
            ensure!(numbers.insert(mutation.number()), "{name:?}: choose another name");
            ensure!(!mutation.find.trim().is_empty(), "{name:?}: `find` is empty");
            ensure!(
                mutation.find.trim() != mutation.replace.trim(),
                "{name:?} changes nothing"
            );
            ensure!(
                mutation.schema() != Schema::Custom || mutation.replace.contains("MUTANT"),
                "{name:?}: a custom schema needs the word MUTANT in `replace`"
            );
            ensure!(!mutation.requirements.is_empty(), "{name:?} names no requirement");
            for id in &mutation.requirements {
                ensure!(known.contains(id), "{name:?}: there is no requirement {id}");
            }
            let copied = |folder: &String| Path::new(&mutation.file).starts_with(folder);
            ensure!(
                list.copied.iter().any(copied),
                "{name:?}: {} is in no folder of `copied`",
                mutation.file
            );
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"
        copied = ["a"]
        [[mutation]]
        name = "n"
        breaks = "b"
        requirements = ["SP-1"]
        file = "a/src/lib.rs"
        find = "x + 1"
        replace = "x"
        caught-by = { package = "umbra-p", target = "lib", test = "t" }
    "#;

    fn parse(text: &str) -> Result<List> {
        List::parse(text, &BTreeSet::from(["SP-1".to_owned()]))
    }

    #[test]
    fn schemas_follow_the_text() {
        let mut one = parse(ONE).unwrap().mutation.remove(0);
        assert_eq!(one.schema(), Schema::Expression);
        one.find = "x += 1; ".to_owned();
        assert_eq!(one.schema(), Schema::Statement);
        one.schema = Some(Schema::Expression);
        assert_eq!(one.schema(), Schema::Expression);
        assert_eq!(one.caught_by.to_string(), "p t");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (from, to, error) in [
            ("SP-1", "SP-99", "no requirement SP-99"),
            ("x + 1", " ", "empty"),
            ("x + 1", "x", "changes nothing"),
            ("a/src", "b/src", "no folder of `copied`"),
            ("breaks", "brakes", "unknown field"),
            ("[\"SP-1\"]", "[]", "names no requirement"),
            ("find =", "schema = \"custom\"\nfind =", "needs the word MUTANT"),
        ] {
            let text = format!("{:#}", parse(&ONE.replacen(from, to, 1)).unwrap_err());
            assert!(text.contains(error), "{text}");
        }
        let twice = format!("{ONE}{}", ONE.replacen("copied = [\"a\"]", "", 1));
        assert!(parse(&twice).unwrap_err().to_string().contains("two mutations"));
    }
}

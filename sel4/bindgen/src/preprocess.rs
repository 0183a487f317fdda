// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which lines of a file count with the options of this build?

use crate::error::{Error, Result};
use crate::expr::{Macro, Names, Unknown, evaluate};
use crate::token::tokenize;
use std::path::Path;

/// A line that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: u32,
    /// Without comments.
    pub text: String,
}

/// Follows `#if` and friends, adds what `#define` defines to `names`, and returns the other lines. `#include` is ignored:
/// the caller reads the files in order.
///
/// # Errors
/// A condition that is not understood or not closed.
pub fn preprocess(file: &Path, text: &str, names: &mut Names) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    // One entry for each open #if: whether its branch counts, and whether a branch of it has counted already.
    let mut open: Vec<(bool, bool)> = Vec::new();
    for Line { number, text } in join_lines(&strip_comments(text)) {
        let fail = |reason: String| Error::line(file, number, reason);
        let counts = open.iter().all(|(counts, _)| *counts);
        let Some(directive) = text.trim_start().strip_prefix('#') else {
            if counts && !text.trim().is_empty() {
                lines.push(Line { number, text });
            }
            continue;
        };
        let (word, rest) = split_word(directive.trim_start());
        match word {
            "ifdef" | "ifndef" => {
                let holds = names.is_defined(split_word(rest).0) == (word == "ifdef");
                open.push((holds, holds));
            }
            "if" => {
                let holds = counts && condition(rest, names).map_err(fail)?;
                open.push((holds, holds));
            }
            "elif" => {
                let (_, taken) = open.pop().ok_or_else(|| fail("#elif without #if".into()))?;
                let outer = open.iter().all(|(counts, _)| *counts);
                let holds = outer && !taken && condition(rest, names).map_err(fail)?;
                open.push((holds, taken || holds));
            }
            "else" => {
                let (_, taken) = open.pop().ok_or_else(|| fail("#else without #if".into()))?;
                open.push((!taken, true));
            }
            "endif" => {
                open.pop().ok_or_else(|| fail("#endif without #if".into()))?;
            }
            "define" if counts => define(rest, names),
            "undef" if counts => {
                names.macros.remove(split_word(rest).0);
            }
            "error" if counts => return Err(fail(format!("#error {rest}"))),
            _ => {}
        }
    }
    match open.len() {
        0 => Ok(lines),
        missing => Err(Error::file(file, format!("{missing} #if without #endif"))),
    }
}

/// Whether a condition, as in `#if` or in the XML attribute `condition`, holds.
///
/// # Errors
/// What was not understood.
pub fn condition(text: &str, names: &Names) -> std::result::Result<bool, String> {
    Ok(evaluate(&tokenize(text), names, Unknown::IsZero)? != 0)
}

fn define(rest: &str, names: &mut Names) {
    let (name, after) = split_word(rest);
    // Parameters only if the parenthesis follows at once.
    let (parameters, body) = match after.strip_prefix('(').and_then(|list| list.split_once(')')) {
        Some((list, body)) => {
            let parameters = list
                .split(',')
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
            (Some(parameters), body)
        }
        None => (None, after),
    };
    names.macros.insert(
        name.to_owned(),
        Macro {
            parameters,
            body: tokenize(body),
        },
    );
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(
        text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len()),
    )
}

/// Replaces comments by spaces, keeping line ends.
fn strip_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/*").into_iter().chain(rest.find("//")).min() {
        out.push_str(&rest[..at]);
        let comment = if rest[at..].starts_with("/*") {
            rest[at..].find("*/").map_or(&rest[at..], |end| &rest[at..at + end + 2])
        } else {
            rest[at..].find('\n').map_or(&rest[at..], |end| &rest[at..at + end])
        };
        out.push(' ');
        out.extend(comment.chars().filter(|c| *c == '\n'));
        rest = &rest[at + comment.len()..];
    }
    out + rest
}

/// Joins lines that end in a backslash.
fn join_lines(text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut continues = false;
    for (number, text) in (1..).zip(text.lines()) {
        let (text, more) = text.strip_suffix('\\').map_or((text, false), |text| (text, true));
        match lines.last_mut().filter(|_| continues) {
            Some(last) => last.text.push_str(text),
            None => lines.push(Line {
                number,
                text: text.to_owned(),
            }),
        }
        continues = more;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, names: &mut Names) -> Vec<String> {
        let lines = preprocess(Path::new("test.h"), text, names).unwrap();
        lines.into_iter().map(|line| line.text.trim().to_owned()).collect()
    }

    #[test]
    fn branches_follow_the_options() {
        let text = "#ifdef A\none\n#elif defined(B) && B > 1\ntwo\n#else\nthree\n#endif";
        let mut names = Names::default();
        assert_eq!(lines(text, &mut names), ["three"]);
        names.define("B", "2");
        assert_eq!(lines(text, &mut names), ["two"]);
        names.define("A", "");
        assert_eq!(lines(text, &mut names), ["one"]);
    }

    #[test]
    fn a_branch_inside_a_dead_one_is_dead() {
        let text = "#ifdef NO\n#ifndef NO2\nx\n#define X 1\n#else\ny\n#endif\n#endif\nz";
        let mut names = Names::default();
        assert_eq!(lines(text, &mut names), ["z"]);
        assert!(!names.is_defined("X"));
    }

    #[test]
    fn comments_and_continuations() {
        let mut names = Names::default();
        assert_eq!(
            lines("a /* b\nc */ d\n#define E \\\n 7\n// f\ng", &mut names),
            ["a", "d", "g"]
        );
        assert_eq!(names.value("E"), Some(7));
    }

    #[test]
    fn errors_name_the_line() {
        let error = preprocess(Path::new("t.h"), "\n#if 1 +\n#endif", &mut Names::default()).unwrap_err();
        assert!(error.to_string().starts_with("t.h:2: "), "{error}");
        assert!(preprocess(Path::new("t.h"), "#ifdef A", &mut Names::default()).is_err());
        assert!(preprocess(Path::new("t.h"), "#endif", &mut Names::default()).is_err());
    }
}

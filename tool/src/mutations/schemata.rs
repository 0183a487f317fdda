// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do all mutations of a source file become one program, in which each can be switched on when it runs?

use super::list::{Mutation, Schema};
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use std::ops::Range;

/// The variable with the number of the mutation that is on.
pub const VARIABLE: &str = "UMBRA_MUTANT";

/// Before the root file of every crate with mutations, on its first line.
const FEATURES: &str = "#![feature(core_intrinsics, const_eval_select)] ";

/// Behind that root file. A constant that calls a mutated function has its usual value.
const SWITCH: &str = r#"
// Whether a mutation is on.
#[doc(hidden)]
pub const fn __mutant(number: u64) -> bool {
    extern crate std;
    fn chosen(number: u64) -> bool {
        static CHOSEN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        let chosen = || std::env::var("UMBRA_MUTANT").map_or(0, |text| text.parse().expect("the number of a mutation"));
        *CHOSEN.get_or_init(chosen) == number
    }
    const fn never(_: u64) -> bool {
        false
    }
    core::intrinsics::const_eval_select((number,), never, chosen)
}
"#;

/// The root file of a crate with the switch.
pub fn with_switch(text: &str) -> String {
    format!("{FEATURES}{text}{SWITCH}")
}

/// The text of a file with all of `mutations`, which are of this file, in it.
pub fn apply(text: &str, mutations: &[&Mutation]) -> Result<String> {
    let (mut places, mut unfit) = (Vec::new(), Vec::new());
    for mutation in mutations {
        match find_once(text, &mutation.find) {
            Ok(range) => places.push((range, *mutation)),
            Err(why) => unfit.push(format!(
                "mutation {:?} does not apply to {}: {why}",
                mutation.name, mutation.file
            )),
        }
    }
    ensure!(unfit.is_empty(), "{}", unfit.join("\n"));
    // Outer ones before those inside them.
    places.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
    for (index, (first, one)) in places.iter().enumerate() {
        for (second, other) in &places[index + 1..] {
            let custom = one.schema() == Schema::Custom || other.schema() == Schema::Custom;
            if second.start < first.end && (second.end > first.end || custom) {
                bail!("mutations {:?} and {:?} overlap", one.name, other.name);
            }
        }
    }
    Ok(render(text, 0..text.len(), &places))
}

/// Where `wanted` is in the text, if that is one place, however rustfmt has broken its lines.
fn find_once(text: &str, wanted: &str) -> Result<Range<usize>> {
    let pattern = Regex::new(&pattern(wanted)).context("the text to find")?;
    let mut found = pattern.find_iter(text);
    let first = found.next().context("its `find` is not there")?;
    let others = found.count();
    ensure!(others == 0, "its `find` is there {} times", others + 1);
    Ok(first.range())
}

/// A pattern for `wanted` with any white space between its words and signs, and a comma or none before closing brackets.
fn pattern(wanted: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut pattern = String::new();
    let mut before = None;
    for word in wanted.split_whitespace() {
        let mut inside = false;
        for c in word.chars() {
            let gap = match before {
                None => "",
                Some(before) if is_word(before) && is_word(c) && inside => "",
                Some(before) if is_word(before) && is_word(c) => r"\s+",
                Some(before) if ")]}".contains(c) && !",([{".contains(before) => r"\s*,?\s*",
                Some(_) => r"\s*",
            };
            pattern.push_str(gap);
            pattern.push_str(&regex::escape(&c.to_string()));
            before = Some(c);
            inside = true;
        }
    }
    pattern
}

/// The text of `range`, with those of `places` (sorted, all inside) in it.
fn render(text: &str, range: Range<usize>, places: &[(Range<usize>, &Mutation)]) -> String {
    let mut made = String::new();
    let mut at = range.start;
    let mut rest = places;
    while let Some(((place, _), _)) = rest.split_first() {
        let same = rest.iter().take_while(|(other, _)| other == place).count();
        let inside = rest[same..]
            .iter()
            .take_while(|(other, _)| other.start < place.end)
            .count();
        made.push_str(&text[at..place.start]);
        let original = render(text, place.clone(), &rest[same..same + inside]);
        made.push_str(&choice(&rest[..same], &original));
        at = place.end;
        rest = &rest[same + inside..];
    }
    made.push_str(&text[at..range.end]);
    made
}

/// The variants at one place.
fn choice(variants: &[(Range<usize>, &Mutation)], original: &str) -> String {
    let switch = |mutation: &Mutation| {
        format!(
            "crate::__mutant({:#x} /* {} */)",
            mutation.number(),
            mutation.name.replace("*/", "")
        )
    };
    let mut made = String::new();
    for (_, mutation) in variants {
        match mutation.schema() {
            Schema::Custom => return mutation.replace.replace("MUTANT", &switch(mutation)),
            Schema::Expression | Schema::Statement => {
                made += &format!("if {} {{ {} }} else ", switch(mutation), mutation.replace.trim());
            }
        }
    }
    made += &format!("{{ {original} }}");
    // An expression that begins a statement would end there without parentheses.
    let expression = variants
        .iter()
        .any(|(_, mutation)| mutation.schema() == Schema::Expression);
    if expression { format!("({made})") } else { made }
}

#[cfg(test)]
mod tests {
    use super::super::list::CaughtBy;
    use super::*;

    fn mutation(name: &str, find: &str, replace: &str, schema: Option<Schema>) -> Mutation {
        Mutation {
            name: name.to_owned(),
            breaks: String::new(),
            requirements: Vec::new(),
            file: "f.rs".to_owned(),
            find: find.to_owned(),
            replace: replace.to_owned(),
            schema,
            caught_by: CaughtBy {
                package: String::new(),
                target: String::new(),
                test: String::new(),
                features: Vec::new(),
                env: Vec::new(),
            },
        }
    }

    /// The result with short switches: `on(name)`.
    fn applied(text: &str, mutations: &[Mutation]) -> Result<String> {
        let made = apply(text, &mutations.iter().collect::<Vec<_>>())?;
        let switch = Regex::new(r"crate::__mutant\(0x[0-9a-f]+ /\* (\w+) \*/\)").unwrap();
        Ok(switch.replace_all(&made, "on($1)").into_owned())
    }

    #[test]
    fn expressions_and_statements_keep_their_original_as_other_branch() {
        let text = "fn f(x: u8) -> u8 { g(); x + 1 }";
        let one = mutation("a", "x + 1", "x", None);
        let other = mutation("b", "g();", "", None);
        assert_eq!(
            applied(text, &[one, other]).unwrap(),
            "fn f(x: u8) -> u8 { if on(b) {  } else { g(); } (if on(a) { x } else { x + 1 }) }"
        );
    }

    #[test]
    fn several_mutations_of_one_place_and_inside_it() {
        let text = "let y = f(x + 1);";
        let list = [
            mutation("a", "f(x + 1)", "0", None),
            mutation("b", "f(x + 1)", "1", None),
            mutation("c", "x + 1", "x", None),
        ];
        assert_eq!(
            applied(text, &list).unwrap(),
            "let y = (if on(a) { 0 } else if on(b) { 1 } else { f((if on(c) { x } else { x + 1 })) });"
        );
    }

    #[test]
    fn custom_text_holds_the_switch() {
        let guard = mutation("a", "Some(_) if x", "Some(_) if x && !MUTANT", Some(Schema::Custom));
        assert_eq!(
            applied("Some(_) if x => 1", &[guard]).unwrap(),
            "Some(_) if x && !on(a) => 1"
        );
    }

    #[test]
    fn white_space_does_not_matter() {
        let one = mutation("a", "a  .b()\n.c()", "d", None);
        assert_eq!(
            applied("a\n    .b()\n    .c()", &[one]).unwrap(),
            "(if on(a) { d } else { a\n    .b()\n    .c() })"
        );
        let one = mutation("a", "f(x, y) -> &mut T", "d", None);
        let broken = "f(\n    x,\n    y,\n) -> &mut T";
        assert_eq!(
            applied(broken, &[one]).unwrap(),
            format!("(if on(a) {{ d }} else {{ {broken} }})")
        );
        // But words stay words.
        for other in ["f(xy) -> &mut T", "f(x, y) -> &mu t T", "f(x, y z) -> &mut T"] {
            assert!(applied(other, &[mutation("a", "f(x, y) -> &mut T", "d", None)]).is_err());
        }
    }

    #[test]
    fn the_text_must_be_there_exactly_once() {
        let error = |find| format!("{:#}", applied("x x y", &[mutation("n", find, "r", None)]).unwrap_err());
        assert!(error("z").contains(r#"mutation "n" does not apply to f.rs: its `find` is not there"#));
        assert!(error("x").contains("there 2 times"));
        // No pattern: a dot is a dot.
        assert!(error(".").contains("not there"));
    }

    #[test]
    fn half_overlaps_are_refused() {
        let list = [mutation("n", "a b", "r", None), mutation("o", "b c", "r", None)];
        assert!(applied("a b c", &list).unwrap_err().to_string().contains("overlap"));
    }
}

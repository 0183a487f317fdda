// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is the value of a C constant expression?

use crate::token::{Token, tokenize};
use std::collections::BTreeMap;

/// A macro: its parameters if it takes any, and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macro {
    /// Names of the parameters; `None` for a macro that is used without parentheses.
    pub parameters: Option<Vec<String>>,
    /// Replacement.
    pub body: Vec<Token>,
}

/// The names that an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Macros by name.
    pub macros: BTreeMap<String, Macro>,
    /// Enumerators by name.
    pub constants: BTreeMap<String, i128>,
}

impl Names {
    /// Defines `name` as `#define name text` would.
    pub fn define(&mut self, name: &str, text: &str) {
        self.macros.insert(
            name.to_owned(),
            Macro {
                parameters: None,
                body: tokenize(text),
            },
        );
    }

    /// Whether `defined(name)` holds.
    pub fn is_defined(&self, name: &str) -> bool {
        self.macros.contains_key(name)
    }

    /// The value of a macro or enumerator; `None` if it is unknown or no integer.
    pub fn value(&self, name: &str) -> Option<i128> {
        evaluate(&[Token::Ident(name.to_owned())], self, Unknown::Fails).ok()
    }
}

/// How an unknown name counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// As zero: the rule inside `#if`.
    IsZero,
    /// It makes the expression no constant.
    Fails,
}

/// Evaluates `tokens`.
///
/// # Errors
/// A text that says what was not understood.
pub fn evaluate(tokens: &[Token], names: &Names, unknown: Unknown) -> Result<i128, String> {
    let mut parser = Parser {
        tokens,
        at: 0,
        names,
        unknown,
        bound: &BTreeMap::new(),
        depth: 0,
    };
    parser.whole()
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    names: &'a Names,
    unknown: Unknown,
    bound: &'a BTreeMap<String, i128>,
    depth: u32,
}

/// Binary operators, weakest first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<", ">", "<=", ">="],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl Parser<'_> {
    fn whole(&mut self) -> Result<i128, String> {
        let value = self.binary(0)?;
        match self.tokens.get(self.at) {
            None => Ok(value),
            Some(token) => Err(format!("unexpected `{token}` in an expression")),
        }
    }

    fn punct(&mut self, wanted: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Punct(punct)) if *punct == wanted);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        if self.punct(wanted) {
            Ok(())
        } else {
            Err(format!("`{wanted}` expected in an expression"))
        }
    }

    fn binary(&mut self, level: usize) -> Result<i128, String> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        while let Some(Token::Punct(operator)) = self.tokens.get(self.at)
            && operators.contains(operator)
        {
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = apply(operator, left, right)?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<i128, String> {
        if self.punct("!") {
            Ok(i128::from(self.unary()? == 0))
        } else if self.punct("-") {
            Ok(-self.unary()?)
        } else if self.punct("+") {
            self.unary()
        } else if self.punct("~") {
            // As C's unsigned long.
            Ok(i128::from(!(self.unary()? as u64)))
        } else {
            self.primary()
        }
    }

    fn primary(&mut self) -> Result<i128, String> {
        if self.punct("(") {
            let value = self.binary(0)?;
            self.expect(")")?;
            return Ok(value);
        }
        let token = self.tokens.get(self.at).ok_or("an expression ends too early")?;
        self.at += 1;
        match token {
            Token::Int(value) => Ok(*value),
            Token::Ident(name) if name == "defined" => self.defined(),
            Token::Ident(name) => self.name(name),
            Token::Punct(_) | Token::Other(_) => Err(format!("`{token}` is no number")),
        }
    }

    fn defined(&mut self) -> Result<i128, String> {
        let parenthesis = self.punct("(");
        let Some(Token::Ident(name)) = self.tokens.get(self.at) else {
            return Err("`defined` needs a name".into());
        };
        self.at += 1;
        if parenthesis {
            self.expect(")")?;
        }
        Ok(i128::from(self.names.is_defined(name)))
    }

    fn name(&mut self, name: &str) -> Result<i128, String> {
        if let Some(value) = self.bound.get(name).or_else(|| self.names.constants.get(name)) {
            return Ok(*value);
        }
        let Some(found) = self.names.macros.get(name) else {
            return match self.unknown {
                Unknown::IsZero => Ok(0),
                Unknown::Fails => Err(format!("`{name}` is not known")),
            };
        };
        if self.depth > 32 {
            return Err(format!("`{name}` is defined by itself"));
        }
        let mut bound = BTreeMap::new();
        for (i, parameter) in found.parameters.iter().flatten().enumerate() {
            self.expect(if i == 0 { "(" } else { "," })?;
            bound.insert(parameter.clone(), self.binary(0)?);
        }
        if found.parameters.is_some() {
            self.expect(")")?;
        }
        let (names, unknown, depth) = (self.names, self.unknown, self.depth + 1);
        Parser {
            tokens: &found.body,
            at: 0,
            names,
            unknown,
            bound: &bound,
            depth,
        }
        .whole()
    }
}

fn apply(operator: &str, left: i128, right: i128) -> Result<i128, String> {
    let shift = || {
        u32::try_from(right)
            .ok()
            .filter(|by| *by < 64)
            .ok_or("a shift is out of range")
    };
    Ok(match operator {
        "||" => i128::from(left != 0 || right != 0),
        "&&" => i128::from(left != 0 && right != 0),
        "|" => left | right,
        "^" => left ^ right,
        "&" => left & right,
        "==" => i128::from(left == right),
        "!=" => i128::from(left != right),
        "<" => i128::from(left < right),
        ">" => i128::from(left > right),
        "<=" => i128::from(left <= right),
        ">=" => i128::from(left >= right),
        "<<" => left << shift()?,
        ">>" => left >> shift()?,
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left.checked_div(right).ok_or("a division by zero")?,
        "%" => left.checked_rem(right).ok_or("a division by zero")?,
        _ => return Err(format!("`{operator}` is not known")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, names: &Names) -> Result<i128, String> {
        evaluate(&tokenize(text), names, Unknown::Fails)
    }

    #[test]
    fn precedence_is_that_of_c() {
        let names = Names::default();
        assert_eq!(value("1 + 2 * 3 << 1 | 1", &names), Ok(15));
        assert_eq!(value("-(1 - 3) == 2 && !0", &names), Ok(1));
    }

    #[test]
    fn macros_and_enumerators_are_used() {
        let mut names = Names::default();
        names.macros.insert(
            "BIT".into(),
            Macro {
                parameters: Some(vec!["n".into()]),
                body: tokenize("(1ul << (n))"),
            },
        );
        names.define("TWICE", "(BIT(first) * 2)");
        names.constants.insert("first".into(), 3);
        assert_eq!(value("TWICE - 1", &names), Ok(15));
    }

    #[test]
    fn unknown_names_are_zero_only_in_conditions() {
        let names = Names::default();
        assert!(value("nothing", &names).is_err());
        assert_eq!(evaluate(&tokenize("nothing > 1"), &names, Unknown::IsZero), Ok(0));
    }

    #[test]
    fn a_macro_that_names_itself_is_refused() {
        let mut names = Names::default();
        names.define("A", "A + 1");
        assert!(value("A", &names).unwrap_err().contains("by itself"));
    }

    #[test]
    fn garbage_is_refused() {
        let names = Names::default();
        for text in ["", "1 +", "(1", "1 2", "1 / 0", "\"text\"", "1 << 99"] {
            assert!(value(text, &names).is_err(), "{text}");
        }
    }
}

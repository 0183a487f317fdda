// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is C text cut into tokens?

use std::fmt;

/// One token of C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A name or keyword.
    Ident(String),
    /// An integer literal.
    Int(i128),
    /// Punctuation: one character, or one of `<< >> <= >= == != && || ##`.
    Punct(&'static str),
    /// A string or character literal, or anything else that no constant is made of.
    Other(String),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ident(name) | Self::Other(name) => f.write_str(name),
            Self::Int(value) => write!(f, "{value}"),
            Self::Punct(punct) => f.write_str(punct),
        }
    }
}

/// Longer ones first, so that `<<` is not read as two `<`.
const PUNCTS: [&str; 34] = [
    "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "##", "(", ")", "{", "}", "[", "]", ";", ",", "*", "+", "-", "/",
    "%", "~", "!", "&", "|", "^", "<", ">", "?", ":", "=", ".", "#",
];

/// Cuts `text` (free of comments) into tokens.
pub fn tokenize(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphabetic() || first == '_' {
            let length = word_length(rest);
            tokens.push(Token::Ident(rest[..length].to_owned()));
            length
        } else if first.is_ascii_digit() {
            let length = word_length(rest);
            let word = &rest[..length];
            tokens.push(parse_int(word).map_or_else(|| Token::Other(word.to_owned()), Token::Int));
            length
        } else if first == '"' || first == '\'' {
            let length = literal_length(rest, first);
            tokens.push(Token::Other(rest[..length].to_owned()));
            length
        } else if let Some(punct) = PUNCTS.iter().find(|punct| rest.starts_with(**punct)) {
            tokens.push(Token::Punct(punct));
            punct.len()
        } else {
            tokens.push(Token::Other(first.to_string()));
            first.len_utf8()
        };
        rest = rest[length..].trim_start();
    }
    tokens
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

/// The length of a quoted literal, its quotes included; the whole text if it is not closed.
fn literal_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn parse_int(word: &str) -> Option<i128> {
    let digits = word.trim_end_matches(['u', 'U', 'l', 'L']);
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        i128::from_str_radix(hex, 16).ok()
    } else if digits.len() > 1 && digits.starts_with('0') {
        i128::from_str_radix(&digits[1..], 8).ok()
    } else {
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_with_suffix_and_base() {
        assert_eq!(tokenize("0x10ul 010 7"), [Token::Int(16), Token::Int(8), Token::Int(7)]);
    }

    #[test]
    fn long_punctuation_wins() {
        assert_eq!(
            tokenize("a<<b"),
            [Token::Ident("a".into()), Token::Punct("<<"), Token::Ident("b".into())]
        );
    }

    #[test]
    fn a_quote_inside_a_string_does_not_end_it() {
        assert_eq!(tokenize(r#""a\"b" c"#).len(), 2);
    }
}

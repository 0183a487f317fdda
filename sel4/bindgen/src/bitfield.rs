// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which fields does a bitfield file (.bf) give to the words of a type?

use crate::error::{Error, Result};
use crate::expr::Names;
use crate::preprocess::preprocess;
use std::path::Path;

/// Bits of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name.
    pub name: String,
    /// Lowest bit, counted from bit 0 of word 0.
    pub offset: u32,
    /// Number of bits.
    pub width: u32,
}

/// One layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Name.
    pub name: String,
    /// Number of 64-bit words.
    pub words: u32,
    /// Fields, highest bits first.
    pub fields: Vec<Field>,
}

/// A choice of blocks by the value of a field that all of them have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Union {
    /// Name.
    pub name: String,
    /// The field that chooses.
    pub tag: String,
    /// (block, value of the tag).
    pub members: Vec<(String, u64)>,
}

/// What bitfield files declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitfields {
    /// Blocks in order.
    pub blocks: Vec<Block>,
    /// Tagged unions in order.
    pub unions: Vec<Union>,
}

const WORD_BITS: u32 = 64;

/// Reads one file.
///
/// # Errors
/// What the bitfield language does not allow, with its line.
pub fn read(file: &Path, text: &str, names: &mut Names, out: &mut Bitfields) -> Result<()> {
    // Comments of this language start with `--`.
    let text: Vec<&str> = text.lines().map(|line| line.split("--").next().unwrap_or("")).collect();
    let mut words = Vec::new();
    for line in preprocess(file, &text.join("\n"), names)? {
        let spaced = line
            .text
            .replace('{', " { ")
            .replace('}', " } ")
            .replace('(', " ( ")
            .replace(')', " ) ");
        words.extend(
            spaced
                .replace(',', " ")
                .split_whitespace()
                .map(|word| (line.number, word.to_owned())),
        );
    }
    let mut reader = Reader {
        file,
        words: &words,
        at: 0,
    };
    while let Some(word) = reader.next_if_any() {
        match word {
            "base" => {
                let bits = reader.number()?;
                if bits != u64::from(WORD_BITS) {
                    return Err(reader.fail(format!("base {bits} is not supported, only {WORD_BITS}")));
                }
                if reader.peek() == Some("(") {
                    reader.skip_parentheses()?;
                }
            }
            "block" => out.blocks.push(reader.block()?),
            "tagged_union" => out.unions.push(reader.union()?),
            other => return Err(reader.fail(format!("`{other}` is no declaration"))),
        }
    }
    Ok(())
}

struct Reader<'a> {
    file: &'a Path,
    words: &'a [(u32, String)],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|(_, word)| word.as_str())
    }

    fn next_if_any(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.at += 1;
        Some(word)
    }

    fn next(&mut self) -> Result<&'a str> {
        self.next_if_any().ok_or_else(|| self.fail("the file ends too early"))
    }

    fn fail(&self, reason: impl Into<String>) -> Error {
        let line = self.words.get(self.at.saturating_sub(1)).map_or(1, |(line, _)| *line);
        Error::line(self.file, line, reason)
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        match self.next()? {
            word if word == wanted => Ok(()),
            word => Err(self.fail(format!("`{wanted}` expected, not `{word}`"))),
        }
    }

    fn number(&mut self) -> Result<u64> {
        let word = self.next()?;
        let number = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => word.parse(),
        };
        number.map_err(|_| self.fail(format!("`{word}` is no number")))
    }

    fn skip_parentheses(&mut self) -> Result<()> {
        self.expect("(")?;
        while self.next()? != ")" {}
        Ok(())
    }

    fn block(&mut self) -> Result<Block> {
        let name = self.next()?.to_owned();
        if self.peek() == Some("(") {
            self.skip_parentheses()?;
        }
        self.expect("{")?;
        let mut parts = Vec::new();
        loop {
            match self.next()? {
                "}" => break,
                "padding" => parts.push((None, self.number()?)),
                "field" | "field_high" => {
                    let field = self.next()?.to_owned();
                    parts.push((Some(field), self.number()?));
                }
                other => return Err(self.fail(format!("`{other}` in block {name}"))),
            }
        }
        let bits = parts.iter().map(|(_, width)| width).sum::<u64>();
        if bits == 0 || bits % u64::from(WORD_BITS) != 0 || bits > 64 * 64 {
            return Err(self.fail(format!("block {name} has {bits} bits, not a whole number of words")));
        }
        // The first part is the highest: bits of the last word.
        let mut offset = bits as u32;
        let mut fields = Vec::new();
        for (field, width) in parts {
            let width = width as u32;
            offset -= width;
            let Some(field) = field else { continue };
            if width == 0 || offset / WORD_BITS != (offset + width - 1) / WORD_BITS {
                return Err(self.fail(format!("field {field} of block {name} is not within one word")));
            }
            fields.push(Field {
                name: field,
                offset,
                width,
            });
        }
        Ok(Block {
            name,
            words: bits as u32 / WORD_BITS,
            fields,
        })
    }

    fn union(&mut self) -> Result<Union> {
        let (name, tag) = (self.next()?.to_owned(), self.next()?.to_owned());
        self.expect("{")?;
        let mut members = Vec::new();
        loop {
            match self.next()? {
                "}" => return Ok(Union { name, tag, members }),
                "tag" => {
                    let block = self.next()?.to_owned();
                    members.push((block, self.number()?));
                }
                other => return Err(self.fail(format!("`{other}` in union {name}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitfields(text: &str) -> Result<Bitfields> {
        let mut out = Bitfields::default();
        read(Path::new("test.bf"), text, &mut Names::default(), &mut out).map(|()| out)
    }

    #[test]
    fn the_last_field_is_the_lowest() {
        let found = bitfields(
            "base 64\n-- text\nblock info { padding 32\n field label 20 -- top\n padding 5\n field length 7 }",
        );
        let block = &found.unwrap().blocks[0];
        assert_eq!(block.words, 1);
        assert_eq!(
            block.fields[0],
            Field {
                name: "label".into(),
                offset: 12,
                width: 20
            }
        );
        assert_eq!(
            block.fields[1],
            Field {
                name: "length".into(),
                offset: 0,
                width: 7
            }
        );
    }

    #[test]
    fn words_count_from_the_end() {
        let found = bitfields("base 64\nblock two { field high 64 padding 61 field tag 3 }").unwrap();
        assert_eq!(found.blocks[0].words, 2);
        assert_eq!(
            (found.blocks[0].fields[0].offset, found.blocks[0].fields[1].offset),
            (64, 0)
        );
    }

    #[test]
    fn unions_follow_the_options() {
        let text = "tagged_union fault kind { tag a 0\n#ifdef CONFIG_DEBUG\n tag b 4\n#endif\n tag c 5 }";
        assert_eq!(
            bitfields(text).unwrap().unions[0].members,
            [("a".into(), 0), ("c".into(), 5)]
        );
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, line, reason) in [
            ("base 32", 1, "base 32"),
            ("base 64\nblock a {\n field b 63 }", 3, "63 bits"),
            ("block a {\n padding 32 field b 64 padding 32 }", 2, "within one word"),
            ("block a { thing 3 }", 1, "`thing`"),
            ("block a {\n padding many }", 2, "`many`"),
            ("block a { padding 64", 1, "too early"),
            ("nothing", 1, "no declaration"),
        ] {
            let error = bitfields(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("test.bf:{line}: ")) && error.contains(reason),
                "{text}: {error}"
            );
        }
    }
}

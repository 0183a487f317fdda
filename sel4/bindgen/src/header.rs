// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which constants, type names and structures does a C header declare?

use crate::error::{Error, Result};
use crate::expr::{Names, Unknown, evaluate};
use crate::preprocess::preprocess;
use crate::token::{Token, tokenize};
use std::path::Path;

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in C.
    pub name: String,
    /// Name of its type (of one element, of what it points to).
    pub kind: String,
    /// Whether it is a pointer.
    pub pointer: bool,
    /// Number of elements of an array.
    pub length: Option<u64>,
}

/// A structure with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Struct {
    /// Name of the typedef.
    pub name: String,
    /// Whether there is no padding between members.
    pub packed: bool,
    /// Whether it is aligned to its own size.
    pub aligned_to_size: bool,
    /// Members in order.
    pub fields: Vec<Field>,
}

/// What headers declare.
#[derive(Clone, Debug, Default)]
pub struct Declarations {
    /// Constants in the order of their declaration.
    pub constants: Vec<(String, i128)>,
    /// `typedef KIND NAME`, in order: (NAME, KIND).
    pub aliases: Vec<(String, String)>,
    /// Names of enumerations.
    pub enums: Vec<String>,
    /// Structures in order.
    pub structs: Vec<Struct>,
}

/// What to take from a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Everything.
    All,
    /// Only constants: a kernel header, whose structures stay in the kernel.
    Constants,
}

/// Reads one header, after those that it needs; adds to `names` and to `declarations`.
///
/// # Errors
/// A condition or an enumerator that is not understood. Declarations of other kinds (functions, variables) are skipped.
pub fn read(file: &Path, text: &str, want: Want, names: &mut Names, declarations: &mut Declarations) -> Result<()> {
    let known: Vec<String> = names.macros.keys().cloned().collect();
    let mut tokens = Vec::new();
    for line in preprocess(file, text, names)? {
        tokens.extend(tokenize(&line.text).into_iter().map(|token| (line.number, token)));
    }
    let mut reader = Reader {
        file,
        tokens: &tokens,
        at: 0,
        want,
        names,
    };
    while reader.at < tokens.len() {
        reader.declaration(declarations)?;
    }
    // Macros last: they may use enumerators of the same header.
    for name in names.macros.keys().filter(|name| known.binary_search(name).is_err()) {
        if names.macros[name].parameters.is_none()
            && let Some(value) = names.value(name)
        {
            declarations.constants.push((name.clone(), value));
        }
    }
    Ok(())
}

struct Reader<'a> {
    file: &'a Path,
    tokens: &'a [(u32, Token)],
    at: usize,
    want: Want,
    names: &'a mut Names,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    fn punct(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Punct(punct)) if *punct == wanted);
        self.at += usize::from(found);
        found
    }

    fn ident(&mut self) -> Option<String> {
        match self.peek() {
            Some(Token::Ident(name)) => {
                let name = name.clone();
                self.at += 1;
                Some(name)
            }
            _ => None,
        }
    }

    fn word(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Ident(name)) if name == wanted);
        self.at += usize::from(found);
        found
    }

    fn fail(&self, reason: impl Into<String>) -> Error {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        Error::line(self.file, self.tokens.get(at).map_or(1, |(line, _)| *line), reason)
    }

    fn declaration(&mut self, out: &mut Declarations) -> Result<()> {
        let start = self.at;
        let typedef = self.word("typedef");
        if self.word("enum") {
            let tag = self.ident();
            if self.punct("{") {
                self.enumerators(out)?;
                let name = self.ident();
                out.enums.extend(if typedef { name } else { tag });
                self.skip_statement();
                return Ok(());
            }
        } else if self.want == Want::All && self.word("struct") {
            let tag = self.ident();
            if self.punct("{") {
                let mut found = self.fields()?;
                // What stands between } and ; : attributes and, for a typedef, the name.
                let mut tail = Vec::new();
                while !self.punct(";") {
                    tail.push(self.next().ok_or_else(|| self.fail("a structure is not closed"))?);
                }
                found.packed = mentions(&tail, "packed") || mentions(&tail, "SEL4_PACKED");
                found.aligned_to_size = mentions(&tail, "sizeof");
                let is_attribute = |name: &str| name == "SEL4_PACKED" || name.starts_with("__");
                let name = tail.iter().find_map(|token| match token {
                    Token::Ident(name) if !is_attribute(name) => Some(name.clone()),
                    _ => None,
                });
                if let Some(name) = if typedef { name } else { tag } {
                    out.structs.push(Struct { name, ..found });
                }
                return Ok(());
            }
        } else if typedef {
            let mut words = Vec::new();
            while let Some(word) = self.ident() {
                words.push(word);
            }
            if self.punct(";") && words.len() >= 2 {
                let name = words.pop().unwrap_or_default();
                out.aliases.push((name, words.join(" ")));
                return Ok(());
            }
        }
        self.at = start;
        self.skip_statement();
        Ok(())
    }

    /// Skips to behind the next `;`, or behind the body of a function.
    fn skip_statement(&mut self) {
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token {
                Token::Punct("{" | "(" | "[") => depth += 1,
                Token::Punct("}") => {
                    depth -= 1;
                    if depth == 0 && !matches!(self.peek(), Some(Token::Punct(";") | Token::Ident(_))) {
                        return;
                    }
                    // `} static inline ...` ends a body too; `} name;` ends a declaration.
                    if depth == 0
                        && let Some((_, Token::Ident(_))) = self.tokens.get(self.at)
                        && !matches!(self.tokens.get(self.at + 1), Some((_, Token::Punct(";" | "=" | ","))))
                    {
                        return;
                    }
                }
                Token::Punct(")" | "]") => depth -= 1,
                Token::Punct(";") if depth == 0 => return,
                Token::Ident(_) | Token::Int(_) | Token::Punct(_) | Token::Other(_) => {}
            }
        }
    }

    /// Behind the `{` of an enumeration, to behind its `}`.
    fn enumerators(&mut self, out: &mut Declarations) -> Result<()> {
        let mut value = 0;
        while !self.punct("}") {
            let name = self
                .ident()
                .ok_or_else(|| self.fail("the name of an enumerator is expected"))?;
            if self.punct("(") {
                // A macro that pads the enumeration to a word.
                while !self.punct(")") {
                    self.next().ok_or_else(|| self.fail("an enumeration is not closed"))?;
                }
            } else {
                if self.punct("=") {
                    let expression = self.until_comma()?;
                    value = evaluate(&expression, self.names, Unknown::Fails)
                        .map_err(|reason| self.fail(format!("enumerator {name}: {reason}")))?;
                }
                self.names.constants.insert(name.clone(), value);
                out.constants.push((name, value));
                value += 1;
            }
            if !self.punct(",") && !matches!(self.peek(), Some(Token::Punct("}"))) {
                return Err(self.fail("`,` or `}` expected in an enumeration"));
            }
        }
        Ok(())
    }

    fn until_comma(&mut self) -> Result<Vec<Token>> {
        let mut found = Vec::new();
        let mut depth = 0;
        loop {
            match self.peek() {
                None => return Err(self.fail("an enumeration is not closed")),
                Some(Token::Punct("," | "}")) if depth == 0 => return Ok(found),
                Some(Token::Punct("(")) => depth += 1,
                Some(Token::Punct(")")) => depth -= 1,
                Some(_) => {}
            }
            found.extend(self.next());
        }
    }

    /// Behind the `{` of a structure, to behind its `}`.
    fn fields(&mut self) -> Result<Struct> {
        let mut fields = Vec::new();
        while !self.punct("}") {
            let mut kind = self
                .ident()
                .ok_or_else(|| self.fail("the type of a member is expected"))?;
            if kind == "struct" || kind == "enum" {
                kind = self.ident().unwrap_or_default();
            }
            while matches!(kind.as_str(), "unsigned" | "signed") {
                let Some(word) = self.ident() else { break };
                kind = format!("{kind} {word}");
            }
            loop {
                let pointer = self.punct("*");
                let name = self
                    .ident()
                    .ok_or_else(|| self.fail("the name of a member is expected"))?;
                let length = if self.punct("[") {
                    Some(self.array_length(&name)?)
                } else {
                    None
                };
                fields.push(Field {
                    name,
                    kind: kind.clone(),
                    pointer,
                    length,
                });
                if !self.punct(",") {
                    break;
                }
            }
            // Attributes of a member (kernel headers only) do not matter here.
            while !self.punct(";") {
                self.next().ok_or_else(|| self.fail("a structure is not closed"))?;
            }
        }
        Ok(Struct {
            name: String::new(),
            packed: false,
            aligned_to_size: false,
            fields,
        })
    }

    fn array_length(&mut self, name: &str) -> Result<u64> {
        let mut expression = Vec::new();
        while !self.punct("]") {
            expression.push(self.next().ok_or_else(|| self.fail("an array is not closed"))?);
        }
        let value = evaluate(&expression, self.names, Unknown::Fails);
        let value = value.map_err(|reason| self.fail(format!("length of {name}: {reason}")))?;
        u64::try_from(value).map_err(|_| self.fail(format!("length of {name}: {value}")))
    }
}

fn mentions(tokens: &[Token], word: &str) -> bool {
    tokens
        .iter()
        .any(|token| matches!(token, Token::Ident(name) if name.trim_matches('_') == word.trim_matches('_')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declarations(text: &str, options: &[(&str, &str)]) -> Declarations {
        let mut names = Names::default();
        for (name, value) in options {
            names.define(name, value);
        }
        let mut out = Declarations::default();
        read(Path::new("test.h"), text, Want::All, &mut names, &mut out).unwrap();
        out
    }

    fn constant(declarations: &Declarations, name: &str) -> Option<i128> {
        declarations
            .constants
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| *value)
    }

    const OBJECTS: &str = "typedef enum { A, B,\n#ifdef CONFIG_HUGE\n HUGE,\n#endif\n COUNT, PAD(x) } objects;\n\
                           enum more { C = COUNT, D, };\n#define TWICE (D * 2)\n";

    #[test]
    fn enumerators_follow_the_options() {
        let small = declarations(OBJECTS, &[]);
        let large = declarations(OBJECTS, &[("CONFIG_HUGE", "1")]);
        assert_eq!((constant(&small, "D"), constant(&small, "HUGE")), (Some(3), None));
        assert_eq!((constant(&large, "D"), constant(&large, "HUGE")), (Some(4), Some(2)));
        assert_eq!(constant(&large, "TWICE"), Some(8));
        assert_eq!(large.enums, ["objects", "more"]);
    }

    #[test]
    fn structures_with_arrays_pointers_and_attributes() {
        let text = "#define N 3\ntypedef struct t_ { word a, b; byte c[N + 1]; t *next; } SEL4_PACKED t;\n\
                    typedef struct u_ { word a; } u __attribute__((__aligned__(sizeof(struct u_))));";
        let found = declarations(text, &[]);
        assert_eq!(found.structs.len(), 2);
        let (t, u) = (&found.structs[0], &found.structs[1]);
        assert!(t.packed && !t.aligned_to_size && !u.packed && u.aligned_to_size);
        let shape: Vec<_> = t
            .fields
            .iter()
            .map(|f| (f.name.as_str(), f.kind.as_str(), f.pointer, f.length))
            .collect();
        assert_eq!(
            shape,
            [
                ("a", "word", false, None),
                ("b", "word", false, None),
                ("c", "byte", false, Some(4)),
                ("next", "t", true, None)
            ]
        );
    }

    #[test]
    fn functions_and_variables_are_skipped() {
        let text = "static inline int f(int a) { if (a) { return 1; } return 2; }\nint g(void);\nextern const x y[];\n\
                    typedef unsigned long word;\nstatic inline void h(void) {}\nenum { LAST = 9 };";
        let found = declarations(text, &[]);
        assert_eq!(constant(&found, "LAST"), Some(9));
        assert_eq!(found.aliases, [("word".to_owned(), "unsigned long".to_owned())]);
    }

    #[test]
    fn an_unknown_enumerator_value_names_the_line() {
        let mut out = Declarations::default();
        let error = read(
            Path::new("t.h"),
            "\nenum {\n A = nothing,\n};",
            Want::All,
            &mut Names::default(),
            &mut out,
        );
        let error = error.unwrap_err();
        assert!(error.to_string().starts_with("t.h:3: enumerator A"), "{error}");
    }
}

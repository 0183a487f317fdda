// SPDX-License-Identifier: MIT OR Apache-2.0
//! How `system.toml` becomes a [`System`]: read every table, report every mistake with its line, then cross-check.

mod build;
mod error;
pub mod limits;
mod reader;
#[cfg(test)]
mod tests;

pub use error::{Error, Errors, Reason};
pub use reader::parse_size;

use crate::System;
use error::Sink;
use toml::de::DeTable;

/// Compiles the text of a `system.toml`; says everything that is wrong with it.
pub fn compile(text: &str) -> Result<System, Errors> {
    let mut sink = Sink::default();
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let at = error.span().map_or(text.len(), |span| span.start);
            let message = error.message().trim().replace('\n', "; ");
            return Err(Errors(std::vec![place(text, at, Reason::Syntax(message))]));
        }
    };
    let system = build::system(text, document.get_ref(), &mut sink);
    sink.finish(text, system)
}

fn place(text: &str, at: usize, reason: Reason) -> Error {
    let (line, column) = error::position(text, at);
    Error { line, column, reason }
}

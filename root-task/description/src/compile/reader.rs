// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a TOML table is read: every key asked for once, every wrong one reported with its place.

use super::error::{Reason, Sink};
use crate::bundle;
use std::{borrow::ToOwned, string::String, vec::Vec};
use toml::de::{DeTable, DeValue};

/// A value and its byte offset in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// A table whose keys are being taken out.
pub(super) struct Table<'t> {
    /// As errors name it.
    name: String,
    /// Its offset.
    pub(super) at: usize,
    content: &'t DeTable<'t>,
    asked: Vec<&'static str>,
}

impl<'t> Table<'t> {
    pub(super) fn new(name: &str, at: usize, content: &'t DeTable<'t>) -> Self {
        Self {
            name: name.to_owned(),
            at,
            content,
            asked: Vec::new(),
        }
    }

    /// Reports keys that nobody asked for.
    pub(super) fn finish(self, sink: &mut Sink) {
        for key in self.content.keys() {
            let name: &str = key.get_ref();
            if !self.asked.contains(&name) {
                let (key_name, table) = (name.to_owned(), self.name.clone());
                let reason = Reason::UnknownKey {
                    key: key_name,
                    table,
                    known: self.asked.clone(),
                };
                sink.push(key.span().start, reason);
            }
        }
    }

    /// `value`, or a report that `key` is missing.
    pub(super) fn required<T>(&self, key: &'static str, value: Option<T>, sink: &mut Sink) -> Option<T> {
        if !self.has(key) {
            sink.push(
                self.at,
                Reason::MissingKey {
                    key,
                    table: self.name.clone(),
                },
            );
        }
        value
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.content.contains_key(key)
    }

    pub(super) fn string(&mut self, key: &'static str, sink: &mut Sink) -> Option<At<&'t str>> {
        self.typed(key, "a string", sink, |value| match value {
            DeValue::String(s) => Some(s.as_ref()),
            _ => None,
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str, sink: &mut Sink) -> Option<At<bool>> {
        self.typed(key, "true or false", sink, |value| match value {
            DeValue::Boolean(b) => Some(*b),
            _ => None,
        })
    }

    /// A non-negative integer in `min..=max`.
    pub(super) fn integer(&mut self, key: &'static str, min: u64, max: u64, sink: &mut Sink) -> Option<At<u64>> {
        let number = self.typed(key, "a non-negative integer", sink, integer_of)?;
        in_range(key, number, min, max, sink)
    }

    /// A size in bytes: in `min..=max` and a multiple of `align`.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        (min, max): (u64, u64),
        align: u64,
        sink: &mut Sink,
    ) -> Option<At<u64>> {
        let value = self.get(key)?;
        let size = match value.value {
            DeValue::String(s) => match parse_size(s) {
                Some(size) => size,
                None => {
                    sink.push(value.at, Reason::BadSize(s.as_ref().to_owned()));
                    return None;
                }
            },
            other => match integer_of(other) {
                Some(size) => size,
                None => {
                    sink.push(value.at, wrong_type(key, "a size", other));
                    return None;
                }
            },
        };
        let size = in_range(
            key,
            At {
                value: size,
                at: value.at,
            },
            min,
            max,
            sink,
        )?;
        if !size.value.is_multiple_of(align) {
            sink.push(
                size.at,
                Reason::Unaligned {
                    key,
                    found: size.value,
                    align,
                },
            );
            return None;
        }
        Some(size)
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        sink: &mut Sink,
    ) -> Option<At<T>> {
        let word = self.string(key, sink)?;
        match words.iter().find(|(name, _)| *name == word.value) {
            Some((_, value)) => Some(At {
                value: *value,
                at: word.at,
            }),
            None => {
                let allowed = words.iter().map(|(name, _)| *name).collect();
                sink.push(
                    word.at,
                    Reason::BadChoice {
                        key,
                        found: word.value.to_owned(),
                        allowed,
                    },
                );
                None
            }
        }
    }

    /// A name of 1 to `max` characters of a small set.
    pub(super) fn name(&mut self, key: &'static str, max: usize, sink: &mut Sink) -> Option<At<&'t str>> {
        let name = self.string(key, sink)?;
        check_name(key, name, max, sink).then_some(name)
    }

    /// The name of a file in a bundle.
    pub(super) fn file(&mut self, key: &'static str, sink: &mut Sink) -> Option<At<&'t str>> {
        let name = self.line(key, bundle::MAX_NAME, sink)?;
        if name.value.is_empty() {
            sink.push(
                name.at,
                Reason::BadName {
                    key,
                    found: String::new(),
                    max: bundle::MAX_NAME,
                },
            );
            return None;
        }
        Some(name)
    }

    /// Text of at most `max` bytes on one line.
    pub(super) fn line(&mut self, key: &'static str, max: usize, sink: &mut Sink) -> Option<At<&'t str>> {
        let text = self.string(key, sink)?;
        if text.value.len() > max {
            sink.push(
                text.at,
                Reason::TooLong {
                    key,
                    len: text.value.len(),
                    max,
                },
            );
            return None;
        }
        if text.value.chars().any(|c| c.is_control()) {
            sink.push(text.at, Reason::ControlCharacter(key));
            return None;
        }
        Some(text)
    }

    /// A table under `key`.
    pub(super) fn table(&mut self, key: &'static str, name: &str, sink: &mut Sink) -> Option<Table<'t>> {
        let found = self.typed(key, "a table", sink, |value| match value {
            DeValue::Table(t) => Some(t),
            _ => None,
        })?;
        Some(Table::new(name, found.at, found.value))
    }

    /// The tables `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str, name: &str, sink: &mut Sink) -> Vec<Table<'t>> {
        let Some(found) = self.typed(key, "an array of tables", sink, |value| match value {
            DeValue::Array(a) => Some(a),
            _ => None,
        }) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in found.value.iter() {
            match item.get_ref() {
                DeValue::Table(t) => tables.push(Table::new(name, item.span().start, t)),
                other => sink.push(item.span().start, wrong_type(key, "an array of tables", other)),
            }
        }
        tables
    }

    /// Named tables: `[key.NAME]`.
    pub(super) fn named(&mut self, key: &'static str, sink: &mut Sink) -> Vec<(At<&'t str>, Table<'t>)> {
        let Some(found) = self.typed(key, "a table", sink, |value| match value {
            DeValue::Table(t) => Some(t),
            _ => None,
        }) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (name, value) in found.value.iter() {
            let name = At {
                value: name.get_ref().as_ref(),
                at: name.span().start,
            };
            match value.get_ref() {
                DeValue::Table(t) => {
                    let title = std::format!("[{key}.{}]", name.value);
                    tables.push((name, Table::new(&title, value.span().start, t)));
                }
                other => sink.push(value.span().start, wrong_type(name.value, "a table", other)),
            }
        }
        tables.sort_by_key(|(name, _)| name.at);
        tables
    }

    fn get(&mut self, key: &'static str) -> Option<At<&'t DeValue<'t>>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let value = self.content.get(key)?;
        Some(At {
            value: value.get_ref(),
            at: value.span().start,
        })
    }

    fn typed<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        sink: &mut Sink,
        read: impl FnOnce(&'t DeValue<'t>) -> Option<T>,
    ) -> Option<At<T>> {
        let found = self.get(key)?;
        match read(found.value) {
            Some(value) => Some(At { value, at: found.at }),
            None => {
                sink.push(found.at, wrong_type(key, expected, found.value));
                None
            }
        }
    }
}

/// Whether the name is one; reports it if not.
pub(super) fn check_name(key: &'static str, name: At<&str>, max: usize, sink: &mut Sink) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let fits = (1..=max).contains(&name.value.len()) && name.value.chars().all(good);
    if !fits {
        sink.push(
            name.at,
            Reason::BadName {
                key,
                found: name.value.to_owned(),
                max,
            },
        );
    }
    fits
}

/// "4096", "64K", "128M", "1G" (also "KiB", "MiB", "GiB") as bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start_matches(' ') {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn integer_of(value: &DeValue<'_>) -> Option<u64> {
    match value {
        DeValue::Integer(i) => u64::from_str_radix(i.as_str(), i.radix()).ok(),
        _ => None,
    }
}

fn in_range(key: &'static str, number: At<u64>, min: u64, max: u64, sink: &mut Sink) -> Option<At<u64>> {
    if (min..=max).contains(&number.value) {
        return Some(number);
    }
    sink.push(
        number.at,
        Reason::OutOfRange {
            key,
            found: number.value,
            min,
            max,
        },
    );
    None
}

fn wrong_type(key: &str, expected: &'static str, value: &DeValue<'_>) -> Reason {
    let found = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(i) if i.as_str().starts_with('-') => "a negative integer",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a floating-point number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Reason::WrongType {
        key: key.to_owned(),
        expected,
        found,
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Rust text do the declarations become?

use crate::bitfield::{Bitfields, Block};
use crate::header::{Field, Struct};
use crate::interface::Method;
use crate::marshal::{Place, place};
use crate::types::{Transport, Types, primitive};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

/// Constants, each once.
///
/// # Errors
/// A name with two values.
pub fn constants(out: &mut String, constants: &[(String, i128)]) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    for (name, value) in constants {
        match seen.insert(name, value) {
            Some(other) if other != value => return Err(format!("{name} is both {other} and {value}")),
            Some(_) => continue,
            None => {}
        }
        let kind = if *value < 0 { "i64" } else { "u64" };
        line!(
            out,
            "pub const {}: {kind} = {value:#x};",
            safe(name),
            value = Signed(*value)
        );
    }
    Ok(())
}

/// Prints negative numbers in decimal, others in hexadecimal.
struct Signed(i128);

impl std::fmt::LowerHex for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 < 0 {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{:#x}", self.0)
        }
    }
}

/// Type names and structures.
///
/// # Errors
/// A structure with a member of unknown type.
pub fn types(out: &mut String, types: &Types<'_>) -> Result<(), String> {
    for (name, kind) in &types.declarations.aliases {
        let target = primitive(kind).map_or(kind.as_str(), |(rust, _)| rust);
        line!(out, "pub type {name} = {target};");
    }
    for name in &types.declarations.enums {
        line!(out, "pub type {name} = u64;");
    }
    for found in &types.declarations.structs {
        structure(out, types, found)?;
    }
    Ok(())
}

fn structure(out: &mut String, types: &Types<'_>, found: &Struct) -> Result<(), String> {
    let (size, alignment) = match types.struct_layout(found) {
        Some(layout) => layout,
        None => return Err(format!("structure {} has a member of an unknown type", found.name)),
    };
    let repr = match (found.packed, found.aligned_to_size) {
        (true, _) => "C, packed".to_owned(),
        (false, true) => format!("C, align({alignment})"),
        (false, false) => "C".to_owned(),
    };
    line!(
        out,
        "#[repr({repr})]\n#[derive(Clone, Copy)]\npub struct {} {{",
        found.name
    );
    for field in &found.fields {
        line!(out, "    pub {}: {},", safe(&field.name), field_type(field));
    }
    line!(
        out,
        "}}\nconst _: () = assert!(core::mem::size_of::<{}>() == {size});",
        found.name
    );
    Ok(())
}

fn field_type(field: &Field) -> String {
    let kind = primitive(&field.kind).map_or(field.kind.as_str(), |(rust, _)| rust);
    let kind = if field.pointer {
        format!("*mut {kind}")
    } else {
        kind.to_owned()
    };
    field
        .length
        .map_or(kind.clone(), |length| format!("[{kind}; {length}]"))
}

/// Bitfield types: one structure for each block, constants for the tags of unions.
pub fn bitfields(out: &mut String, bitfields: &Bitfields) {
    for block in &bitfields.blocks {
        let union = bitfields.unions.iter().find_map(|union| {
            let member = union.members.iter().find(|(name, _)| *name == block.name)?;
            Some((union, member.1))
        });
        match union {
            Some((union, value)) => {
                let name = format!("{}_{}", union.name, block.name);
                line!(out, "pub const {name}_tag: u64 = {value};");
                bitfield(out, &name, block, Some((&union.tag, value)));
            }
            None => bitfield(out, &block.name, block, None),
        }
    }
    for union in &bitfields.unions {
        for (member, value) in &union.members {
            line!(out, "pub const {}_{member}: u64 = {value};", union.name);
        }
        // The type under which the interface files know the union.
        let words = bitfields
            .blocks
            .iter()
            .find(|block| union.members.iter().any(|(name, _)| *name == block.name));
        if let Some(block) = words {
            let words = block.words;
            line!(
                out,
                "#[repr(transparent)]\n#[derive(Clone, Copy, Debug, PartialEq, Eq)]"
            );
            line!(out, "pub struct {}_t {{ pub words: [u64; {words}] }}", union.name);
            for (member, _) in &union.members {
                line!(out, "impl From<{0}_{member}> for {0}_t {{", union.name);
                line!(
                    out,
                    "    fn from(block: {}_{member}) -> Self {{ Self {{ words: block.words }} }}\n}}",
                    union.name
                );
            }
        }
    }
}

fn bitfield(out: &mut String, name: &str, block: &Block, tag: Option<(&str, u64)>) {
    let words = block.words;
    line!(
        out,
        "#[repr(transparent)]\n#[derive(Clone, Copy, Debug, PartialEq, Eq)]"
    );
    line!(out, "pub struct {name} {{ pub words: [u64; {words}] }}");
    if tag.is_none() {
        line!(out, "pub type {name}_t = {name};");
    }
    line!(out, "impl {name} {{");
    let free: Vec<_> = block
        .fields
        .iter()
        .filter(|field| Some(field.name.as_str()) != tag.map(|(name, _)| name))
        .collect();
    let parameters: Vec<_> = free.iter().map(|field| format!("{}: u64", safe(&field.name))).collect();
    line!(
        out,
        "    #[inline(always)]\n    pub const fn new({}) -> Self {{",
        parameters.join(", ")
    );
    line!(out, "        let mut words = [0; {words}];");
    for field in &block.fields {
        let value = match tag {
            Some((tag, value)) if tag == field.name => value.to_string(),
            _ => safe(&field.name),
        };
        let (word, shift, mask) = position(field.offset, field.width);
        line!(out, "        words[{word}] |= ({value} & {mask:#x}) << {shift};");
    }
    line!(out, "        Self {{ words }}\n    }}");
    for field in &block.fields {
        let (word, shift, mask) = position(field.offset, field.width);
        line!(
            out,
            "    #[inline(always)]\n    pub const fn get_{}(&self) -> u64 {{",
            field.name
        );
        line!(out, "        (self.words[{word}] >> {shift}) & {mask:#x}\n    }}");
    }
    line!(out, "}}");
}

fn position(offset: u32, width: u32) -> (u32, u32, u64) {
    (offset / 64, offset % 64, u64::MAX >> (64 - width))
}

/// System call numbers.
pub fn syscalls(out: &mut String, syscalls: &[(String, i64)]) {
    for (name, number) in syscalls {
        line!(out, "pub const seL4_Sys{name}: i64 = {number};");
    }
    line!(
        out,
        "/// All of them, to ask for one that this kernel may not have.\npub const SYSCALLS: &[(&str, i64)] = &["
    );
    for (name, number) in syscalls {
        line!(out, "    ({name:?}, {number}),");
    }
    line!(out, "];");
}

/// Invocation labels and one function for each invocation.
///
/// # Errors
/// A parameter of unknown type.
pub fn invocations(out: &mut String, types: &Types<'_>) -> Result<(), String> {
    line!(out, "pub mod invocation_label {{");
    for method in &types.interfaces.methods {
        line!(out, "    pub const {}: u64 = {};", method.label_name, method.label);
    }
    line!(out, "}}");
    for method in &types.interfaces.methods {
        stub(out, types, method).map_err(|reason| format!("{}_{}: {reason}", method.interface, method.name))?;
    }
    Ok(())
}

fn stub(out: &mut String, types: &Types<'_>, method: &Method) -> Result<(), String> {
    let message = place(method, types)?;
    let mut arguments = format!("service: {}", method.interface);
    for parameter in method.parameters.iter().filter(|parameter| !parameter.output) {
        let kind = match types.transport(&parameter.kind) {
            Some(Transport::Bool) => "bool".to_owned(),
            Some(Transport::Words(_)) => format!("&{}", parameter.kind),
            _ => rust_type(&parameter.kind),
        };
        let _ = write!(arguments, ", {}: {kind}", safe(&parameter.name));
    }
    let results = message.outputs.iter().map(|(parameter, transport, _)| match transport {
        Transport::Bool => "bool".to_owned(),
        _ => rust_type(&parameter.kind),
    });
    let results: Vec<_> = results.collect();
    let result = if results.len() == 1 {
        results.concat()
    } else {
        format!("({})", results.join(", "))
    };

    let mut words = vec![Vec::new(); message.input_words() as usize];
    for (parameter, transport, place) in &message.inputs {
        let name = safe(&parameter.name);
        let first = place.word as usize;
        match transport {
            Transport::Words(_) => {
                for (i, member) in members(types, &parameter.kind).iter().enumerate() {
                    words[first + i].push(format!("{name}.{}", safe(member)));
                }
            }
            Transport::Bitfield => words[first].push(format!("{name}.words[0]")),
            Transport::Bool => words[first].push(shifted(&format!("{name} as u64"), place.bit)),
            Transport::Integer(64) | Transport::Capability => words[first].push(name),
            Transport::Integer(bits) => {
                let masked = format!("{name} as u64 & {:#x}", u64::MAX >> (64 - bits));
                words[first].push(shifted(&masked, place.bit));
            }
        }
    }
    let words: Vec<_> = words.iter().map(|parts| parts.join(" | ")).collect();
    let capabilities: Vec<_> = message
        .capabilities
        .iter()
        .map(|parameter| safe(&parameter.name))
        .collect();

    line!(
        out,
        "#[inline(always)]\npub fn {}_{}({arguments}) -> Result<{result}, crate::Failure> {{",
        method.interface,
        method.name
    );
    let reply = if results.is_empty() { "" } else { "let reply = " };
    let (capabilities, words) = (capabilities.join(", "), words.join(", "));
    line!(
        out,
        "    {reply}crate::invoke(service, invocation_label::{}, [{capabilities}], [{words}])?;",
        method.label_name
    );
    let values = message.outputs.iter();
    let values: Vec<_> = values
        .map(|(parameter, transport, place)| output(types, &parameter.kind, *transport, *place))
        .collect();
    line!(
        out,
        "    Ok({})\n}}",
        if values.len() == 1 {
            values.concat()
        } else {
            format!("({})", values.join(", "))
        }
    );
    Ok(())
}

fn output(types: &Types<'_>, kind: &str, transport: Transport, place: Place) -> String {
    let word = format!("reply.word({})", place.word);
    let part = if place.bit == 0 {
        word.clone()
    } else {
        format!("({word} >> {})", place.bit)
    };
    match transport {
        Transport::Bool => format!("{part} & 1 != 0"),
        Transport::Integer(64) | Transport::Capability => word,
        Transport::Integer(_) => format!("{part} as {}", rust_type(kind)),
        Transport::Bitfield => format!("{kind} {{ words: [{word}] }}"),
        Transport::Words(_) => {
            let members = members(types, kind);
            let members = members.iter().zip(place.word..);
            let members: Vec<_> = members
                .map(|(member, i)| format!("{}: reply.word({i})", safe(member)))
                .collect();
            format!("{kind} {{ {} }}", members.join(", "))
        }
    }
}

fn members<'a>(types: &'a Types<'_>, kind: &str) -> &'a [String] {
    types
        .interfaces
        .structs
        .iter()
        .find(|(name, _)| name == kind)
        .map_or(&[], |(_, members)| members)
}

fn rust_type(kind: &str) -> String {
    primitive(kind).map_or(kind, |(rust, _)| rust).to_owned()
}

fn shifted(value: &str, by: u32) -> String {
    if by == 0 {
        format!("({value})")
    } else {
        format!("(({value}) << {by})")
    }
}

/// A name that Rust accepts.
fn safe(name: &str) -> String {
    match name {
        "type" | "ref" | "in" | "move" | "fn" | "self" | "use" | "mod" | "loop" | "match" | "final" | "priv" => {
            format!("{name}_")
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_with_two_values_is_refused() {
        let twice = |second| [("A".to_owned(), 1), ("A".to_owned(), second)];
        let mut out = String::new();
        assert_eq!(constants(&mut out, &twice(1)), Ok(()));
        assert_eq!(out, "pub const A: u64 = 0x1;\n");
        assert!(constants(&mut out, &twice(2)).is_err());
    }

    #[test]
    fn negative_constants_are_signed() {
        let mut out = String::new();
        constants(&mut out, &[("A".to_owned(), -1)]).unwrap();
        assert_eq!(out, "pub const A: i64 = -1;\n");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How large is a C type of the interface, and how does Rust call it?

use crate::bitfield::Bitfields;
use crate::header::{Declarations, Struct};
use crate::interface::Interfaces;

/// How a value of a type travels in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// As an extra capability.
    Capability,
    /// As one bit.
    Bool,
    /// As an integer of so many bits.
    Integer(u32),
    /// As a word that a bitfield type wraps.
    Bitfield,
    /// As so many words, the members of a structure.
    Words(u32),
}

/// All types of a build.
pub struct Types<'a> {
    /// From the headers.
    pub declarations: &'a Declarations,
    /// From the bitfield files.
    pub bitfields: &'a Bitfields,
    /// From the interface files.
    pub interfaces: &'a Interfaces,
}

impl Types<'_> {
    /// How a value of type `kind` travels; `None` if the type is not known.
    pub fn transport(&self, kind: &str) -> Option<Transport> {
        if let Some((_, members)) = self.interfaces.structs.iter().find(|(name, _)| name == kind) {
            return Some(Transport::Words(members.len() as u32));
        }
        if let Some(name) = kind.strip_suffix("_t")
            && self.is_one_word_bitfield(name)
        {
            return Some(Transport::Bitfield);
        }
        match kind {
            "seL4_CPtr" => Some(Transport::Capability),
            // libsel4 sends one bit, whatever its type in C.
            "seL4_Bool" => Some(Transport::Bool),
            _ if self.declarations.enums.iter().any(|name| name == kind) => Some(Transport::Integer(64)),
            _ => match self.alias(kind) {
                Some(target) => self.transport(target),
                None => primitive(kind).map(|(_, bytes)| Transport::Integer(bytes * 8)),
            },
        }
    }

    fn is_one_word_bitfield(&self, name: &str) -> bool {
        let block = |name: &str| self.bitfields.blocks.iter().find(|block| block.name == name);
        let first = self
            .bitfields
            .unions
            .iter()
            .find(|union| union.name == name)
            .and_then(|union| union.members.first());
        let block = first.map_or_else(|| block(name), |(member, _)| block(member));
        block.is_some_and(|block| block.words == 1)
    }

    /// What `typedef` says that `name` is.
    pub fn alias(&self, name: &str) -> Option<&str> {
        self.declarations
            .aliases
            .iter()
            .find(|(alias, _)| alias == name)
            .map(|(_, kind)| kind.as_str())
    }

    /// Size and alignment of a type in bytes.
    pub fn layout(&self, kind: &str) -> Option<(u64, u64)> {
        if let Some(found) = self.declarations.structs.iter().find(|found| found.name == kind) {
            return self.struct_layout(found);
        }
        match self.transport(kind)? {
            Transport::Bitfield | Transport::Capability => Some((8, 8)),
            Transport::Bool => Some((1, 1)),
            Transport::Integer(bits) => Some((u64::from(bits / 8), u64::from(bits / 8))),
            Transport::Words(words) => Some((u64::from(words) * 8, 8)),
        }
    }

    /// Size and alignment of a structure in bytes, by the C rules.
    pub fn struct_layout(&self, found: &Struct) -> Option<(u64, u64)> {
        let (mut end, mut alignment) = (0u64, 1u64);
        for field in &found.fields {
            let (size, align) = if field.pointer {
                (8, 8)
            } else {
                self.layout(&field.kind)?
            };
            let align = if found.packed { 1 } else { align };
            alignment = alignment.max(align);
            end = end.next_multiple_of(align) + size * field.length.unwrap_or(1);
        }
        end = end.next_multiple_of(alignment);
        Some(if found.aligned_to_size {
            (end, end)
        } else {
            (end, alignment)
        })
    }
}

/// Rust's name and the size in bytes of a type that C itself has, on x86_64.
pub fn primitive(kind: &str) -> Option<(&'static str, u32)> {
    Some(match kind {
        "char" | "unsigned char" => ("u8", 1),
        "signed char" => ("i8", 1),
        "unsigned short" => ("u16", 2),
        "signed short" | "short" => ("i16", 2),
        "unsigned int" => ("u32", 4),
        "signed int" | "int" => ("i32", 4),
        "unsigned long" | "unsigned long long" => ("u64", 8),
        "signed long" | "long" | "long long" => ("i64", 8),
        _ => return None,
    })
}

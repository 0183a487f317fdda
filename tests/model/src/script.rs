// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can happen to a guest, and how is it written down? One step a line: a word and its named values.

use crate::oracle::{Controls, Paging, Who};
use std::fmt;
use std::str::FromStr;

/// A line that is no step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine(pub String);

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no step: {}", self.0)
    }
}

impl std::error::Error for BadLine {}

/// A value of a step.
trait Field: Sized {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
    fn read(text: &str) -> Option<Self>;
}

macro_rules! number_fields {
    ($($t:ty),*) => { $(impl Field for $t {
        fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{self:#x}")
        }
        fn read(text: &str) -> Option<Self> {
            match text.strip_prefix("0x") {
                Some(hex) => Self::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        }
    })* };
}
number_fields!(u8, u16, u32, u64);

macro_rules! word_fields {
    ($($t:ty { $($value:path = $word:literal),* })*) => { $(impl Field for $t {
        fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self { $($value => $word),* })
        }
        fn read(text: &str) -> Option<Self> {
            match text { $($word => Some($value),)* _ => None }
        }
    })* };
}
word_fields! {
    Paging {
        Paging::Off = "off", Paging::TwoLevel = "two-level", Paging::Pae = "pae",
        Paging::FourLevel = "four-level", Paging::FiveLevel = "five-level"
    }
    Who { Who::User = "user", Who::Supervisor = "supervisor", Who::SupervisorAc = "supervisor-ac" }
    Engine { Engine::Ept = "ept", Engine::Shadow = "shadow" }
}

impl Field for Controls {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter_names().map(|(name, _)| name.to_lowercase()).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join("+"))
    }
    fn read(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::empty()),
            _ => text
                .split('+')
                .map(|name| Self::from_name(&name.to_uppercase()))
                .collect(),
        }
    }
}

/// How the MMU translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// The guest's tables are walked by the processor, below them an EPT.
    Ept,
    /// The processor walks shadows of the guest's tables.
    Shadow,
}

macro_rules! lines {
    ($(#[$outer:meta])* pub enum $name:ident {
        $($(#[$doc:meta])* $variant:ident $word:literal { $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? })*
    }) => {
        $(#[$outer])*
        pub enum $name { $($(#[$doc])* $variant { $($(#[$field_doc])* $field: $ty),* }),* }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Self::$variant { $($field),* } => {
                    f.write_str($word)?;
                    $(write!(f, " {}=", stringify!($field))?; $field.write(f)?;)*
                    Ok(())
                })* }
            }
        }

        impl FromStr for $name {
            type Err = BadLine;
            fn from_str(line: &str) -> Result<Self, BadLine> {
                let bad = || BadLine(line.to_string());
                let mut words = line.split_whitespace();
                let word = words.next().ok_or_else(bad)?;
                #[allow(unused_variables, reason = "not every step has values")]
                let values: Vec<(&str, &str)> = words.map(|w| w.split_once('=')).collect::<Option<_>>().ok_or_else(bad)?;
                $(if word == $word {
                    return Ok(Self::$variant { $($field: {
                        let value = values.iter().find(|(name, _)| *name == stringify!($field)).ok_or_else(bad)?;
                        <$ty>::read(value.1).ok_or_else(bad)?
                    }),* });
                })*
                Err(bad())
            }
        }
    };
}

lines! {
    /// One thing that the guest or the host does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Step {
        /// A guest reads 8 bytes.
        Read "read" {
            /// The processor.
            vcpu: u8,
            /// A multiple of 8.
            gva: u64,
            /// Its rights.
            who: Who
        }
        /// A guest fetches 8 bytes.
        Fetch "fetch" {
            /// The processor.
            vcpu: u8,
            /// A multiple of 8.
            gva: u64,
            /// Its rights.
            who: Who
        }
        /// A guest writes.
        Write "write" {
            /// The processor.
            vcpu: u8,
            /// With `bytes` in one word of 8.
            gva: u64,
            /// Its rights.
            who: Who,
            /// 1, 2, 4 or 8.
            bytes: u8,
            /// The low `bytes` bytes count.
            value: u64
        }
        /// A guest loads cr3, and cr0, cr4 and efer before as far as they differ.
        Load "load" {
            /// The processor.
            vcpu: u8,
            /// The mode.
            paging: Paging,
            /// Other bits.
            controls: Controls,
            /// The root.
            cr3: u64
        }
        /// A guest forgets the translation of one address.
        Invlpg "invlpg" {
            /// The processor.
            vcpu: u8,
            /// The address.
            gva: u64
        }
        /// A slot is created, moved or gets other flags.
        Slot "slot" {
            /// Which.
            id: u16,
            /// First gfn.
            base: u64,
            /// 4K pages; 0 deletes.
            npages: u32,
            /// Backing.
            backing: u16,
            /// First page there.
            first: u32,
            /// Bits of the flags.
            flags: u8
        }
        /// The dirty log of a slot is taken and cleared.
        TakeLog "take-log" {
            /// Which.
            id: u16
        }
        /// The dirty log of a slot is taken; pages are cleared later.
        ReadLog "read-log" {
            /// Which.
            id: u16
        }
        /// Pages that were read from the log are cleared in it.
        ClearLog "clear-log" {
            /// Which slot.
            id: u16,
            /// First page of the slot.
            first: u32,
            /// How many.
            npages: u32
        }
        /// A device of the vmm writes 8 bytes.
        Device "device" {
            /// A multiple of 8.
            gpa: u64,
            /// What.
            value: u64
        }
        /// A range of a backing is aged.
        Age "age" {
            /// Which.
            backing: u16,
            /// First page.
            first: u32,
            /// How many.
            npages: u32
        }
        /// The host begins to change a range of a backing: no mapping of it until it ends.
        InvalidateStart "invalidate-start" {
            /// Which.
            backing: u16,
            /// First page.
            first: u32,
            /// How many.
            npages: u32
        }
        /// The host has ended the oldest change that it began.
        InvalidateEnd "invalidate-end" {}
        /// The host takes frames away, until the guest needs them.
        Reclaim "reclaim" {
            /// Which backing.
            backing: u16,
            /// First page.
            first: u32,
            /// How many.
            npages: u32
        }
        /// The guest may only read these frames, until it has to write.
        Protect "protect" {
            /// Which backing.
            backing: u16,
            /// First page.
            first: u32,
            /// How many.
            npages: u32
        }
        /// The 2M frames of a slot that is logged are broken into small ones, so that no fault has to.
        SplitForLog "split-for-log" {
            /// Which.
            id: u16
        }
        /// The host breaks a 2M frame into small ones.
        Split "split" {
            /// Which backing.
            backing: u16,
            /// A page in it.
            first: u32
        }
        /// The host puts a 2M frame in the place of small ones.
        Collapse "collapse" {
            /// Which backing.
            backing: u16,
            /// A page in it.
            first: u32
        }
        /// At most so many tables from now on.
        Limit "limit" {
            /// Tables.
            tables: u32
        }
        /// Tables that were not used of late are reclaimed.
        Shrink "shrink" {
            /// At most so many.
            tables: u32
        }
        /// Everything is zapped.
        ZapAll "zap-all" {}
        /// One batch of background work.
        Background "background" {}
    }
}

lines! {
    /// What a script runs on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Header {
        /// A machine.
        Machine "machine" {
            /// The MMU's mode.
            engine: Engine,
            /// The mode in which the processors start.
            paging: Paging,
            /// Processors.
            vcpus: u8,
            /// Tables that the MMU has.
            tables: u32,
            /// The first memslot generation.
            generation: u32
        }
    }
}

/// A machine and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The machine.
    pub header: Header,
    /// What happens.
    pub steps: Vec<Step>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.header)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl FromStr for Script {
    type Err = BadLine;
    /// Lines that are empty or begin with `#` are comments.
    fn from_str(text: &str) -> Result<Self, BadLine> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let header = lines.next().ok_or_else(|| BadLine(String::new()))?.parse()?;
        let steps = lines.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { header, steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_back() {
        let text = "machine engine=shadow paging=pae vcpus=0x2 tables=0x20 generation=0x7fffb\n\
            read vcpu=0x1 gva=0x1000 who=supervisor-ac\n\
            load vcpu=0x0 paging=four-level controls=wp+smep cr3=0x6000\n\
            load vcpu=0x0 paging=off controls=none cr3=0x0\n\
            zap-all\n";
        let script: Script = text.parse().unwrap();
        assert_eq!(script.steps.len(), 4);
        assert_eq!(script.to_string(), text);
        assert!("machine engine=shadow".parse::<Script>().is_err());
        assert!("fly vcpu=0".parse::<Step>().is_err());
    }
}

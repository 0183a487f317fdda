// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which system is booted? `root-task/system.toml`, with the guest, the machine and the caller's wishes put in.

use anyhow::{Context, Result, anyhow, bail};
use std::path::Path;
use toml::{Table, Value};
use umbra_description::System;
use umbra_description::compile::{Error, Errors, compile};

/// A description that can be changed before it is compiled.
#[derive(Clone, Debug)]
pub struct Description {
    /// Where it comes from, for messages.
    origin: String,
    table: Table,
}

impl Description {
    /// Reads a `system.toml`. The whole file must compile as it is.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// The same from text; `origin` names it in messages.
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        compile(text).map_err(|errors| anyhow!("{origin} is refused:\n{errors}"))?;
        let table = text.parse::<Table>().with_context(|| origin.to_owned())?;
        Ok(Self {
            origin: origin.to_owned(),
            table,
        })
    }

    /// Sets a key of the top level.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.table.insert(key.to_owned(), value.into());
    }

    /// Merges `wishes` into the top level: tables are merged key by key, anything else is replaced.
    pub fn merge(&mut self, wishes: &Table) {
        merge(&mut self.table, wishes);
    }

    /// Merges `wishes` into every VM.
    pub fn merge_into_vms(&mut self, wishes: &Table) {
        for vm in self
            .table
            .get_mut("vm")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Value::Table(vm) = vm {
                merge(vm, wishes);
            }
        }
    }

    /// Leaves only the first VM, and returns it to be changed.
    pub fn only_vm(&mut self) -> Result<&mut Table> {
        match self.table.get_mut("vm") {
            Some(Value::Array(vms)) if !vms.is_empty() => {
                vms.truncate(1);
                match &mut vms[0] {
                    Value::Table(vm) => Ok(vm),
                    other => bail!("{}: a vm is {}, not a table", self.origin, other.type_str()),
                }
            }
            Some(_) | None => bail!("{}: there is no [[vm]]", self.origin),
        }
    }

    /// The TOML text as it stands.
    pub fn text(&self) -> Result<String> {
        toml::to_string(&self.table).with_context(|| self.origin.clone())
    }

    /// Compiles it.
    pub fn compile(&self) -> Result<System> {
        let text = self.text()?;
        // The text was made here, so its line numbers mean nothing without the lines.
        let quoted = |errors: Errors| {
            let quote = |error: &Error| {
                let line = text.lines().nth(error.line.saturating_sub(1)).unwrap_or_default();
                format!("\n  {error}\n    {line}")
            };
            errors.0.iter().map(quote).collect::<String>()
        };
        compile(&text).map_err(|errors| anyhow!("the system made from {} is refused:{}", self.origin, quoted(errors)))
    }
}

/// Puts `wishes` into `table`: tables are merged key by key, anything else is replaced.
pub fn merge(table: &mut Table, wishes: &Table) {
    for (key, wish) in wishes {
        match (table.get_mut(key), wish) {
            (Some(Value::Table(have)), Value::Table(wish)) => merge(have, wish),
            _ => {
                table.insert(key.clone(), wish.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = include_str!("../../../root-task/system.toml");

    #[test]
    fn the_default_system_compiles_and_takes_another_guest() {
        let mut description = Description::parse("system.toml", SYSTEM).unwrap();
        description.set("power-off", "qemu");
        let vm = description.only_vm().unwrap();
        vm.insert("name".into(), "other".into());
        merge(vm, &"memory = '64M'\n[boot]\nkernel = 'k'".parse().unwrap());
        let system = description.compile().unwrap();
        assert_eq!(system.vms.len(), 1);
        assert_eq!(
            (system.vms[0].name.as_str(), system.vms[0].boot.kernel.as_str()),
            ("other", "k")
        );
        assert_eq!(system.power_off, umbra_description::PowerOff::Qemu);
    }

    #[test]
    fn a_wrong_wish_is_refused_with_the_reason() {
        let mut description = Description::parse("system.toml", SYSTEM).unwrap();
        description
            .only_vm()
            .unwrap()
            .insert("memory".into(), "12 apples".into());
        let text = format!("{:#}", description.compile().unwrap_err());
        assert!(text.contains("12 apples") && text.contains("system.toml"), "{text}");
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        let text = SYSTEM.replace("log = \"com2\"", "log = \"com9\"");
        let error = format!("{:#}", Description::parse("my.toml", &text).unwrap_err());
        assert!(
            error.contains("my.toml is refused") && error.contains("com9"),
            "{error}"
        );
    }
}

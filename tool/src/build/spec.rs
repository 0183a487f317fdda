// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which VMs with which guests make up a system, and what must be in its payload?

use super::description::{Description, merge};
use super::image::PayloadFile;
use anyhow::Result;
use toml::{Table, Value};

/// A guest's files, and how it likes to be started.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Its name; also the VM's unless that is given another.
    pub name: String,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// Multiboot modules: content and command line.
    pub modules: Vec<(Vec<u8>, String)>,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM, as in `system.toml`.
    pub memory: String,
    /// A regular expression for its prompt.
    pub prompt: Option<String>,
    /// It ends through the test-exit port.
    pub test_exit: bool,
}

/// One VM of a system.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// What it runs.
    pub guest: Guest,
    /// Keys of `[[vm]]` to set beyond what the guest says.
    pub wishes: Table,
}

impl Guest {
    fn files(&self) -> Vec<PayloadFile> {
        let file = |what: String, content: &[u8]| PayloadFile {
            name: format!("{}.{what}", self.name),
            content: content.to_vec(),
        };
        let mut files = vec![file("kernel".into(), &self.kernel)];
        files.extend(self.initrd.iter().map(|initrd| file("initrd".into(), initrd)));
        files.extend(
            self.modules
                .iter()
                .enumerate()
                .map(|(i, (content, _))| file(format!("module{i}"), content)),
        );
        files
    }

    /// The keys of `[[vm]]` that it sets.
    fn keys(&self) -> Table {
        let named = |what: &str| Value::String(format!("{}.{what}", self.name));
        let mut boot = Table::new();
        boot.insert("kernel".into(), named("kernel"));
        boot.insert("cmdline".into(), self.cmdline.clone().into());
        if self.initrd.is_some() {
            boot.insert("initrd".into(), named("initrd"));
        }
        let modules: Vec<Value> = (self.modules.iter().enumerate())
            .map(|(i, (_, cmdline))| {
                let mut module = Table::new();
                module.insert("image".into(), named(&format!("module{i}")));
                module.insert("cmdline".into(), cmdline.clone().into());
                module.into()
            })
            .collect();
        if !modules.is_empty() {
            boot.insert("module".into(), modules.into());
        }
        let mut vm = Table::new();
        vm.insert("name".into(), self.name.clone().into());
        vm.insert("memory".into(), self.memory.clone().into());
        vm.insert("test-exit".into(), self.test_exit.into());
        vm.insert("boot".into(), boot.into());
        vm
    }
}

/// The description of a system with these VMs, each made from `base`'s first one, and the files for its payload.
pub fn describe(mut base: Description, vms: &[VmSpec], top: &Table) -> Result<(Description, Vec<PayloadFile>)> {
    let template = base.only_vm()?.clone();
    let mut tables = Vec::new();
    let mut files: Vec<PayloadFile> = Vec::new();
    for (index, spec) in vms.iter().enumerate() {
        let mut vm = template.clone();
        // What the template boots is nobody else's.
        vm.remove("boot");
        merge(&mut vm, &spec.guest.keys());
        if index > 0 {
            // There is one console; the first VM has it.
            vm.insert("console".into(), "none".into());
        }
        if spec.wishes.contains_key("slot") {
            vm.remove("memory");
        }
        merge(&mut vm, &spec.wishes);
        tables.push(Value::Table(vm));
        for file in spec.guest.files() {
            if files.iter().all(|have| have.name != file.name) {
                files.push(file);
            }
        }
    }
    base.set("vm", tables);
    base.merge(top);
    Ok((base, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Description {
        Description::parse("system.toml", include_str!("../../../root-task/system.toml")).unwrap()
    }

    fn guest(name: &str) -> Guest {
        Guest {
            name: name.into(),
            kernel: vec![1],
            memory: "64M".into(),
            cmdline: "quiet".into(),
            ..Guest::default()
        }
    }

    #[test]
    fn a_guest_brings_its_files_memory_and_command_line() {
        let guest = Guest {
            initrd: Some(vec![2]),
            modules: vec![(vec![3], "m".into())],
            ..guest("g")
        };
        let spec = VmSpec {
            guest,
            wishes: "memory = '32M'".parse().unwrap(),
        };
        let (description, files) = describe(base(), &[spec], &"power-off = 'halt'".parse().unwrap()).unwrap();
        let system = description.compile().unwrap();
        let vm = &system.vms[0];
        assert_eq!(
            (vm.name.as_str(), vm.boot.kernel.as_str(), vm.boot.cmdline.as_str()),
            ("g", "g.kernel", "quiet")
        );
        assert_eq!(vm.boot.initrd.as_deref(), Some("g.initrd"));
        assert_eq!(vm.boot.modules[0].image, "g.module0");
        assert_eq!(
            vm.slots.iter().map(|slot| slot.gpa + slot.len).max(),
            Some(32 << 20),
            "the wish beats the guest"
        );
        assert_eq!(system.power_off, umbra_description::PowerOff::Halt);
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["g.kernel", "g.initrd", "g.module0"]);
    }

    #[test]
    fn two_vms_share_files_of_the_same_guest_but_not_the_console() {
        let spec = |name: &str| VmSpec {
            guest: guest("g"),
            wishes: format!("name = '{name}'").parse().unwrap(),
        };
        let (description, files) = describe(base(), &[spec("a"), spec("b")], &Table::new()).unwrap();
        let system = description.compile().unwrap();
        assert_eq!(system.vms.len(), 2);
        assert!(system.vms[0].console.is_some() && system.vms[1].console.is_none());
        assert_eq!(files.len(), 1);
    }
}

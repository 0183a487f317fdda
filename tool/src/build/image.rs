// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do kernel, root task, components, description and guest files become something that boots?

use super::description::Description;
use super::program::{Programs, read};
use super::{Builder, Kernel, write_if_changed};
use crate::sim::{Boot, Disk, Machine, Pace, Sim};
use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};
use umbra_description::{System, attach::attach_bundle, bundle_write, layout};
use umbra_images::disk::BootImage;
use umbra_images::loader::Loader;

/// Which serial ports the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// COM1 for the guest's console, COM2 for the system log.
    Two,
    /// COM1 for both.
    One,
}

impl Ports {
    /// The kernel's command line: its own messages go where the system log goes.
    pub fn kernel_cmdline(self) -> &'static str {
        match self {
            Ports::Two => "console_port=0x2f8 debug_port=0x2f8",
            Ports::One => "console_port=0x3f8 debug_port=0x3f8",
        }
    }
}

/// The package of the root task.
pub const ROOT_TASK: &str = "umbra-root-task";
/// RAM beside VMs and payload, in bytes: kernel, root task, components, and the hole in the memory map.
const OWN_MEMORY: u64 = 96 << 20;

/// A file in the payload, by the name that the description uses.
#[derive(Clone, Debug)]
pub struct PayloadFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Something that boots.
#[derive(Clone, Debug)]
pub struct SystemImage {
    folder: PathBuf,
    kernel32: PathBuf,
    has_payload: bool,
    /// RAM that it needs, in MiB.
    pub memory_mib: u32,
}

impl SystemImage {
    /// The disk image.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// What `sim` is to boot: a disk with shortcuts in Bochs, multiboot in QEMU where there is no payload.
    pub fn boot(&self, sim: Sim) -> Boot {
        match sim {
            Sim::Bochs => Boot::Disk(Disk {
                image: self.disk(),
                option_rom: Some(self.folder.join("option-rom")),
            }),
            Sim::Qemu | Sim::QemuKvm if !self.has_payload => Boot::Multiboot {
                kernel: self.kernel32.clone(),
                root_task: self.folder.join("root-task"),
            },
            Sim::Qemu | Sim::QemuKvm => Boot::Disk(self.plain_disk()),
        }
    }

    /// The machine that boots it; `plain`: from the disk image as a PC would, in every simulator.
    pub fn machine(&self, sim: Sim, plain: bool, pace: Pace) -> Machine {
        Machine {
            boot: if plain {
                Boot::Disk(self.plain_disk())
            } else {
                self.boot(sim)
            },
            memory_mib: self.memory_mib,
            pace,
        }
    }

    /// Removes its files.
    pub fn remove(&self) {
        // Left-overs only cost space.
        let _ = std::fs::remove_dir_all(&self.folder);
    }

    /// The disk image as a PC boots it, without shortcuts.
    fn plain_disk(&self) -> Disk {
        Disk {
            image: self.disk(),
            option_rom: None,
        }
    }
}

/// Packages that a system is made of: the root task, then the components.
pub fn packages(system: &System) -> Vec<&str> {
    let mut packages = vec![ROOT_TASK];
    for component in &system.components {
        if !packages.contains(&component.image.as_str()) {
            packages.push(&component.image);
        }
    }
    packages
}

/// Puts kernel, programs, description and guest files together in `target/umbra/images/<label>.<process>/`.
pub fn system(
    builder: &Builder,
    kernel: &Kernel,
    programs: &Programs,
    description: Description,
    payload: &[u8],
    ports: Ports,
    label: &str,
) -> Result<SystemImage> {
    system_with_policy(builder, kernel, programs, (description, None), payload, ports, label)
}

/// The same; the root task's audit compares with the second description if there is one.
pub fn system_with_policy(
    builder: &Builder,
    kernel: &Kernel,
    programs: &Programs,
    (mut description, mut policy): (Description, Option<Description>),
    payload: &[u8],
    ports: Ports,
    label: &str,
) -> Result<SystemImage> {
    if !payload.is_empty() {
        let length = i64::try_from(payload.len()).context("the guest files are too large")?;
        for description in [Some(&mut description), policy.as_mut()].into_iter().flatten() {
            description.set(
                "payload",
                toml::Table::from_iter([("length".to_owned(), length.into())]),
            );
        }
    }
    let system = description.compile()?;
    let system_bytes = postcard::to_allocvec(&system).context("the compiled system")?;
    let mut entries = vec![("system", &system_bytes[..])];
    let policy = policy.map(|policy| policy.compile()).transpose()?;
    let policy_bytes = policy
        .as_ref()
        .map(postcard::to_allocvec)
        .transpose()
        .context("the compiled policy")?;
    entries.extend(policy_bytes.iter().map(|bytes| ("policy", &bytes[..])));
    let packages = packages(&system);
    for package in &packages[1..] {
        entries.push((package, programs.get(package)?));
    }
    let bundle = bundle_write::write(&entries)?;
    let root_task =
        attach_bundle(programs.get(packages[0])?, &bundle).map_err(|error| anyhow!("{ROOT_TASK}: {error}"))?;

    let folder = builder.paths.own_image(label);
    write_if_changed(&folder.join("system.toml"), description.text()?.as_bytes())?;
    let memory_mib = machine_memory_mib(&system, payload.len() as u64)?;
    assemble(kernel, &folder, &root_task, payload, ports)?;
    Ok(SystemImage {
        folder,
        kernel32: kernel.elf32(),
        has_payload: !payload.is_empty(),
        memory_mib,
    })
}

/// The guest files as one bundle; empty without files.
pub fn payload(files: &[PayloadFile]) -> Result<Vec<u8>> {
    let contents: Vec<(&str, &[u8])> = files
        .iter()
        .map(|file| (file.name.as_str(), &file.content[..]))
        .collect();
    if contents.is_empty() {
        Ok(Vec::new())
    } else {
        Ok(bundle_write::write(&contents)?)
    }
}

/// Something that boots one root task which needs no bundle (test suites).
pub fn root_task(builder: &Builder, kernel: &Kernel, program: &[u8], label: &str) -> Result<SystemImage> {
    let folder = builder.paths.images().join(label);
    assemble(kernel, &folder, program, &[], Ports::Two)?;
    Ok(SystemImage {
        folder,
        kernel32: kernel.elf32(),
        has_payload: false,
        memory_mib: 512,
    })
}

fn assemble(kernel: &Kernel, folder: &Path, root_task: &[u8], payload: &[u8], ports: Ports) -> Result<()> {
    let loader = Loader::assemble(&folder.join("loader"))?;
    let kernel_elf = read(&kernel.elf())?;
    let image = BootImage {
        kernel: &kernel_elf,
        root_task,
        payload,
        payload_paddr: layout::PAYLOAD_PADDR,
        cmdline: ports.kernel_cmdline(),
    };
    let disk = image.build(&loader).context("laying out the disk image")?;
    write_if_changed(&folder.join("root-task"), root_task)?;
    write_if_changed(&folder.join("option-rom"), &loader.option_rom)?;
    write_if_changed(&folder.join("disk.img"), &disk.bytes)?;
    Ok(())
}

/// RAM for a machine that runs `system`, in MiB; a multiple of 64.
fn machine_memory_mib(system: &System, payload: u64) -> Result<u32> {
    let guests: u64 = system
        .vms
        .iter()
        .map(|vm| vm.slots.iter().map(|slot| slot.len).sum::<u64>() + vm.table_memory)
        .sum();
    let components: u64 = system
        .components
        .iter()
        .map(|component| component.stack + component.heap)
        .sum();
    let own = OWN_MEMORY + components * system.vms.len().max(1) as u64;
    let bytes = (guests + payload + own).next_multiple_of(64 << 20).max(256 << 20);
    let mib = u32::try_from(bytes >> 20).ok().filter(|&mib| mib <= 3072);
    mib.with_context(|| {
        format!(
            "the system needs {} MiB of RAM; the simulators have at most 3072",
            bytes >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_covers_guests_and_has_a_limit() {
        let text = include_str!("../../../root-task/system.toml");
        let memory = |wish: &str| {
            let mut description = Description::parse("system.toml", text).unwrap();
            description.only_vm().unwrap().insert("memory".into(), wish.into());
            machine_memory_mib(&description.compile().unwrap(), 20 << 20)
        };
        assert_eq!(memory("128M").unwrap(), 256);
        assert_eq!(memory("512M").unwrap(), 640);
        assert!(memory("3G").is_err());
    }
}

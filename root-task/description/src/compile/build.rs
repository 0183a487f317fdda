// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which tables and keys a `system.toml` has, and what they become.

use super::{
    error::{Reason, Sink, position},
    limits,
    reader::{At, Table, check_name},
};
use crate::{
    ComPort, Component, GuestBoot, Mode, Module, Payload, PowerOff, RamPages, Slot, SlotKind, System, Vm, bundle,
    layout,
};
use std::{borrow::ToOwned, string::String, vec, vec::Vec};
use toml::de::DeTable;

const PAGE: u64 = 4096;
const PORTS: [(&str, ComPort); 2] = [("com1", ComPort::Com1), ("com2", ComPort::Com2)];
const PAGES: [(&str, RamPages); 2] = [("auto", RamPages::Auto), ("small", RamPages::Small)];

/// Who has which serial port, and where that is said.
type PortOwners = Vec<(ComPort, String, usize)>;

/// Builds the system; where something is missing or wrong it is reported and replaced by anything.
pub(super) fn system(text: &str, document: &DeTable<'_>, sink: &mut Sink) -> System {
    let mut top = Table::new("the top level", 0, document);
    let name = top.line("name", limits::MAX_NAME, sink).map_or("umbra", |n| n.value);
    let log = top.choice("log", &PORTS, sink);
    let power_off = top.choice(
        "power-off",
        &[
            ("bochs", PowerOff::Bochs),
            ("qemu", PowerOff::Qemu),
            ("halt", PowerOff::Halt),
        ],
        sink,
    );
    let payload = top
        .table("payload", "[payload]", sink)
        .and_then(|table| payload(table, sink));
    let (components, component_names) = components(&mut top, sink);

    let log_port = log.map_or(ComPort::Com2, |p| p.value);
    let mut owners: PortOwners = vec![(log_port, "the system log".to_owned(), log.map_or(0, |p| p.at))];
    let mut vms: Vec<Vm> = Vec::new();
    let mut vm_names: Vec<At<&str>> = Vec::new();
    let tables = top.tables("vm", "[[vm]]", sink);
    if tables.is_empty() {
        sink.push(text.len(), Reason::NoVm);
    }
    for (i, table) in tables.into_iter().enumerate() {
        if i == limits::MAX_VMS {
            sink.push(
                table.at,
                Reason::TooMany {
                    what: "VMs",
                    max: limits::MAX_VMS,
                },
            );
        }
        let mut reader = VmReader {
            text,
            components: &component_names,
            owners: &mut owners,
            sink: &mut *sink,
        };
        let (vm, name) = reader.vm(table);
        vms.push(vm);
        if let Some(name) = name {
            if let Some(first) = vm_names.iter().find(|n| n.value == name.value) {
                let first = position(text, first.at).0;
                sink.push(
                    name.at,
                    Reason::Duplicate {
                        what: "VMs",
                        name: name.value.to_owned(),
                        first,
                    },
                );
            }
            vm_names.push(name);
        }
    }
    top.finish(sink);
    System {
        name: name.to_owned(),
        log: log_port,
        power_off: power_off.map_or(PowerOff::Halt, |p| p.value),
        payload,
        components,
        vms,
    }
}

fn payload(mut table: Table<'_>, sink: &mut Sink) -> Option<Payload> {
    let paddr = table
        .size("address", (1 << 20, 1 << 40), 2 << 20, sink)
        .map_or(layout::PAYLOAD_PADDR, |a| a.value);
    let len = table.size("length", (bundle::HEADER_LEN as u64, limits::MAX_PAYLOAD), 1, sink);
    let len = table.required("length", len, sink);
    table.finish(sink);
    Some(Payload { paddr, len: len?.value })
}

fn components<'t>(top: &mut Table<'t>, sink: &mut Sink) -> (Vec<Component>, Vec<&'t str>) {
    let mut components = Vec::new();
    let mut names = Vec::new();
    for (name, mut table) in top.named("component", sink) {
        check_name("component", name, limits::MAX_NAME, sink);
        let image = table.file("image", sink);
        let image = table.required("image", image, sink);
        let stack = table
            .size("stack", limits::STACK, PAGE, sink)
            .map_or(64 << 10, |s| s.value);
        let heap = table
            .size("heap", limits::HEAP, PAGE, sink)
            .map_or(1 << 20, |s| s.value);
        let priority = table.integer("priority", limits::PRIORITY.0, limits::PRIORITY.1, sink);
        let priority = table.required("priority", priority, sink);
        table.finish(sink);
        names.push(name.value);
        components.push(Component {
            name: name.value.to_owned(),
            image: image.map_or("", |i| i.value).to_owned(),
            stack,
            heap,
            priority: priority.map_or(1, |p| p.value as u8),
        });
    }
    (components, names)
}

struct VmReader<'a> {
    text: &'a str,
    components: &'a [&'a str],
    owners: &'a mut PortOwners,
    sink: &'a mut Sink,
}

impl VmReader<'_> {
    fn vm<'t>(&mut self, mut table: Table<'t>) -> (Vm, Option<At<&'t str>>) {
        let name = table.name("name", limits::MAX_NAME, self.sink);
        let name = table.required("name", name, self.sink);
        let mode = table
            .choice("mode", &[("ept", Mode::Ept)], self.sink)
            .map_or(Mode::Ept, |m| m.value);
        let vmm = self.component(&mut table, "vmm");
        let mmu = self.component(&mut table, "mmu");
        let slots = self.memory(&mut table);
        let boot = match table.table("boot", "[vm.boot]", self.sink) {
            Some(boot) => self.boot(boot),
            None => {
                let _: Option<()> = table.required("boot", None, self.sink);
                GuestBoot {
                    kernel: String::new(),
                    initrd: None,
                    modules: Vec::new(),
                    cmdline: String::new(),
                }
            }
        };
        let console = self.console(&mut table, name.map_or("?", |n| n.value));
        let test_exit = table.boolean("test-exit", self.sink).is_some_and(|t| t.value);
        let first_generation = table.integer("first-generation", 0, limits::MAX_GENERATION, self.sink);
        let table_memory = table.size("table-memory", limits::TABLE_MEMORY, PAGE, self.sink);
        table.finish(self.sink);
        let vm = Vm {
            name: name.map_or("", |n| n.value).to_owned(),
            mode,
            vmm,
            mmu,
            table_memory: table_memory.map_or_else(|| default_table_memory(&slots), |t| t.value),
            slots,
            boot,
            console,
            test_exit,
            first_generation: first_generation.map(|g| g.value as u32),
        };
        (vm, name)
    }

    /// Index of the component that `key` names; the key may be left out where the component has the key's name.
    fn component(&mut self, table: &mut Table<'_>, key: &'static str) -> u16 {
        let (name, at) = match table.string(key, self.sink) {
            Some(name) => (name.value, name.at),
            None if table.has(key) => return 0,
            None => (key, table.at),
        };
        match self.components.iter().position(|c| *c == name) {
            Some(index) => index as u16,
            None => {
                let known = self.components.iter().map(|c| (*c).to_owned()).collect();
                self.sink.push(
                    at,
                    Reason::UnknownComponent {
                        name: name.to_owned(),
                        known,
                    },
                );
                0
            }
        }
    }

    fn console(&mut self, table: &mut Table<'_>, vm: &str) -> Option<ComPort> {
        let shares_log = table.boolean("shares-log", self.sink);
        let word = table.string("console", self.sink)?;
        if word.value == "none" {
            return None;
        }
        let Some((name, port)) = PORTS.iter().find(|(name, _)| *name == word.value) else {
            let known = PORTS.iter().map(|(name, _)| *name).collect();
            self.sink.push(
                word.at,
                Reason::UnknownDevice {
                    name: word.value.to_owned(),
                    known,
                },
            );
            return None;
        };
        let with_log = self.owners[0].0 == *port;
        match shares_log {
            Some(At { value: true, at }) if !with_log => self.sink.push(at, Reason::NothingShared),
            Some(_) | None => {}
        }
        let may_share = shares_log.is_some_and(|s| s.value);
        let mut others = self.owners.iter().enumerate().filter(|(_, (p, _, _))| p == port);
        if let Some((_, (_, owner, at))) = others.find(|(i, _)| *i != 0 || !may_share) {
            let line = position(self.text, *at).0;
            self.sink.push(
                word.at,
                Reason::PortTaken {
                    port: name,
                    owner: owner.clone(),
                    line,
                },
            );
        }
        self.owners.push((*port, std::format!("VM '{vm}'"), word.at));
        Some(*port)
    }

    fn memory(&mut self, table: &mut Table<'_>) -> Vec<Slot> {
        let memory = table.size("memory", (limits::MIN_MEMORY, limits::MAX_MEMORY), PAGE, self.sink);
        let pages = table.choice("pages", &PAGES, self.sink);
        let slots = table.tables("slot", "[[vm.slot]]", self.sink);
        if slots.is_empty() {
            let pages = pages.map_or(RamPages::Auto, |p| p.value);
            if !table.has("memory") && !table.has("slot") {
                self.sink.push(table.at, Reason::NoMemory);
            }
            return memory.map_or_else(Vec::new, |m| pc_layout(m.value, pages));
        }
        if let Some(memory) = memory {
            self.sink.push(memory.at, Reason::MemoryAndSlots { key: "memory" });
        }
        if let Some(pages) = pages {
            self.sink.push(pages.at, Reason::MemoryAndSlots { key: "pages" });
        }
        self.slots(table.at, slots)
    }

    fn slots(&mut self, vm_at: usize, tables: Vec<Table<'_>>) -> Vec<Slot> {
        let mut slots: Vec<At<Slot>> = Vec::new();
        let mut complete = true;
        for (i, table) in tables.into_iter().enumerate() {
            let at = table.at;
            if i == limits::MAX_SLOTS {
                self.sink.push(
                    at,
                    Reason::TooMany {
                        what: "slots",
                        max: limits::MAX_SLOTS,
                    },
                );
            }
            let Some(slot) = self.slot(table) else {
                complete = false;
                continue;
            };
            for other in &slots {
                let common = slot.gpa.max(other.value.gpa);
                if common < (slot.gpa + slot.len).min(other.value.gpa + other.value.len) {
                    let other = position(self.text, other.at).0;
                    self.sink.push(at, Reason::SlotOverlap { gpa: common, other });
                }
            }
            slots.push(At { value: slot, at });
        }
        if complete && !slots.iter().any(|s| s.value.gpa == 0 && s.value.kind == SlotKind::Ram) {
            self.sink.push(vm_at, Reason::NoLowRam);
        }
        slots.into_iter().map(|s| s.value).collect()
    }

    fn slot(&mut self, mut table: Table<'_>) -> Option<Slot> {
        let gpa = table.size("gpa", (0, u64::MAX), PAGE, self.sink);
        let gpa = table.required("gpa", gpa, self.sink);
        let len = table.size("length", (PAGE, u64::MAX), PAGE, self.sink);
        let len = table.required("length", len, self.sink);
        let kind = table.choice("kind", &[("ram", SlotKind::Ram), ("rom", SlotKind::Rom)], self.sink);
        let pages = table
            .choice("pages", &PAGES, self.sink)
            .map_or(RamPages::Auto, |p| p.value);
        let at = table.at;
        table.finish(self.sink);
        let (gpa, len) = (gpa?.value, len?.value);
        let end = gpa.saturating_add(len);
        if end > limits::GPA_LIMIT {
            self.sink.push(
                at,
                Reason::SlotBeyond {
                    end,
                    limit: limits::GPA_LIMIT,
                },
            );
            return None;
        }
        Some(Slot {
            gpa,
            len,
            kind: kind.map_or(SlotKind::Ram, |k| k.value),
            pages,
        })
    }

    fn boot(&mut self, mut table: Table<'_>) -> GuestBoot {
        let kernel = table.file("kernel", self.sink);
        let kernel = table.required("kernel", kernel, self.sink);
        let initrd = table.file("initrd", self.sink);
        let cmdline = table.line("cmdline", limits::MAX_CMDLINE, self.sink);
        let mut modules = Vec::new();
        for (i, mut module) in table
            .tables("module", "[[vm.boot.module]]", self.sink)
            .into_iter()
            .enumerate()
        {
            if i == limits::MAX_MODULES {
                self.sink.push(
                    module.at,
                    Reason::TooMany {
                        what: "modules",
                        max: limits::MAX_MODULES,
                    },
                );
            }
            let image = module.file("image", self.sink);
            let image = module.required("image", image, self.sink);
            let cmdline = module.line("cmdline", limits::MAX_CMDLINE, self.sink);
            module.finish(self.sink);
            let text = |t: Option<At<&str>>| t.map_or("", |t| t.value).to_owned();
            modules.push(Module {
                image: text(image),
                cmdline: text(cmdline),
            });
        }
        table.finish(self.sink);
        GuestBoot {
            kernel: kernel.map_or("", |k| k.value).to_owned(),
            initrd: initrd.map(|i| i.value.to_owned()),
            modules,
            cmdline: cmdline.map_or("", |c| c.value).to_owned(),
        }
    }
}

/// Memory as a PC has it: RAM up to 640 KiB, ROM below 1 MiB (where the loader puts tables), RAM above.
fn pc_layout(memory: u64, pages: RamPages) -> Vec<Slot> {
    vec![
        Slot {
            gpa: 0,
            len: 0xa_0000,
            kind: SlotKind::Ram,
            pages,
        },
        Slot {
            gpa: 0xc_0000,
            len: 0x4_0000,
            kind: SlotKind::Rom,
            pages,
        },
        Slot {
            gpa: 0x10_0000,
            len: memory - 0x10_0000,
            kind: SlotKind::Ram,
            pages,
        },
    ]
}

/// Enough for 4K mappings everywhere, with a capability (64 bytes, with the table that holds it) for each page, twice:
/// for a slot that goes while its successor comes.
fn default_table_memory(slots: &[Slot]) -> u64 {
    let (mut tables, mut caps) = (0, 0);
    for slot in slots {
        tables += slot.len.div_ceil(2 << 20) + 2;
        caps += match slot.pages {
            RamPages::Small => slot.len / PAGE,
            RamPages::Auto => slot.len / (2 << 20) + 1024,
        };
    }
    (2 * (tables * PAGE + caps * 64) + (256 << 10))
        .next_multiple_of(64 << 10)
        .min(limits::TABLE_MEMORY.1)
}

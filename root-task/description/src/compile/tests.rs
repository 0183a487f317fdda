// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every way to be wrong, with the line where it must be reported; and what right files become.

use super::*;
use crate::{ComPort, Mode, Payload, PowerOff, RamPages, Slot, SlotKind};
use std::{format, string::String, string::ToString, vec::Vec};

/// A right file: line 1 is `name`, the numbers of the others are asserted below where they matter.
const GOOD: &str = r#"name = "test"
log = "com2"
power-off = "qemu"
[payload]
length = "48M"
[component.vmm]
image = "vmm.elf"
priority = 100
[component.mmu]
image = "mmu.elf"
stack = "32K"
heap = 0x200000
priority = 101
[[vm]]
name = "a"
memory = "128M"
console = "com1"
[vm.boot]
kernel = "kernel"
initrd = "initrd"
cmdline = "console=ttyS0"
[[vm]]
name = "b"
vmm = "vmm"
mmu = "mmu"
test-exit = true
first-generation = 0x7fff0
table-memory = "1M"
[[vm.slot]]
gpa = 0
length = "16M"
pages = "small"
[[vm.slot]]
gpa = 0xf0000000
length = 4096
kind = "rom"
[vm.boot]
kernel = "k2"
[[vm.boot.module]]
image = "m1"
cmdline = "m1 arg"
[[vm.boot.module]]
image = "m2"
"#;

#[test]
fn a_right_file_becomes_tables() {
    let system = compile(GOOD).unwrap();
    assert_eq!(
        (system.name.as_str(), system.log, system.power_off),
        ("test", ComPort::Com2, PowerOff::Qemu)
    );
    assert_eq!(
        system.payload,
        Some(Payload {
            paddr: 0x200_0000,
            len: 48 << 20
        })
    );
    let component = |name| system.components.iter().position(|c| c.name == name).unwrap() as u16;
    let mmu = &system.components[component("mmu") as usize];
    assert_eq!(
        (mmu.image.as_str(), mmu.stack, mmu.heap, mmu.priority),
        ("mmu.elf", 32 << 10, 2 << 20, 101)
    );

    let [a, b] = &system.vms[..] else { panic!("two VMs") };
    assert_eq!((a.vmm, a.mmu, a.mode), (component("vmm"), component("mmu"), Mode::Ept));
    assert_eq!(
        (a.console, a.test_exit, a.first_generation),
        (Some(ComPort::Com1), false, None)
    );
    assert_eq!(
        (a.boot.initrd.as_deref(), a.boot.cmdline.as_str()),
        (Some("initrd"), "console=ttyS0")
    );
    let slot = |gpa, len, kind, pages| Slot { gpa, len, kind, pages };
    assert_eq!(
        a.slots,
        [
            slot(0, 0xa_0000, SlotKind::Ram, RamPages::Auto),
            slot(0xc_0000, 0x4_0000, SlotKind::Rom, RamPages::Auto),
            slot(0x10_0000, (128 << 20) - 0x10_0000, SlotKind::Ram, RamPages::Auto),
        ]
    );
    assert_eq!(
        b.slots,
        [
            slot(0, 16 << 20, SlotKind::Ram, RamPages::Small),
            slot(0xf000_0000, 4096, SlotKind::Rom, RamPages::Auto)
        ]
    );
    assert_eq!(
        (b.console, b.test_exit, b.first_generation, b.table_memory),
        (None, true, Some(0x7fff0), 1 << 20)
    );
    let modules: Vec<_> = b
        .boot
        .modules
        .iter()
        .map(|m| (m.image.as_str(), m.cmdline.as_str()))
        .collect();
    assert_eq!(modules, [("m1", "m1 arg"), ("m2", "")]);
}

#[test]
fn the_tables_survive_the_wire() {
    let system = compile(GOOD).unwrap();
    let bytes = postcard::to_allocvec(&system).unwrap();
    assert_eq!(postcard::from_bytes::<crate::System>(&bytes).unwrap(), system);
}

#[test]
fn the_default_system_compiles() {
    let text = include_str!("../../../system.toml");
    let system = compile(text).unwrap_or_else(|errors| panic!("system.toml:\n{errors}"));
    assert_eq!(system.vms[0].name, "debian-amd64");
}

/// Replaces the only occurrence of `from` in `GOOD`.
fn changed(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "'{from}'");
    GOOD.replace(from, to)
}

/// (replace this, by this, line, start of the message)
#[rustfmt::skip]
const WRONG: &[(&str, &str, usize, &str)] = &[
    // Text.
    ("name = \"test\"", "name = ", 1, ""),
    ("[component.vmm]", "[component.vmm", 6, ""),
    ("priority = 100", "priority = 100\npriority = 100", 9, "duplicate key"),
    // Keys.
    ("log = \"com2\"", "loga = \"com2\"", 2, "the top level has no key 'loga'; known: name, log"),
    ("stack = \"32K\"", "stak = \"32K\"", 11, "[component.mmu] has no key 'stak'; known: image, stack"),
    ("name = \"b\"", "nome = \"b\"", 22, "[[vm]] lacks the key 'name'"),
    ("length = \"48M\"", "", 4, "[payload] lacks the key 'length'"),
    ("image = \"vmm.elf\"", "", 6, "[component.vmm] lacks the key 'image'"),
    ("priority = 100", "", 6, "[component.vmm] lacks the key 'priority'"),
    ("kernel = \"kernel\"", "", 18, "[vm.boot] lacks the key 'kernel'"),
    ("[vm.boot]\nkernel = \"kernel\"\ninitrd = \"initrd\"\ncmdline = \"console=ttyS0\"\n", "", 14, "[[vm]] lacks the key 'boot'"),
    ("image = \"m2\"", "", 42, "[[vm.boot.module]] lacks the key 'image'"),
    ("gpa = 0\n", "\n", 29, "[[vm.slot]] lacks the key 'gpa'"),
    ("length = 4096", "", 33, "[[vm.slot]] lacks the key 'length'"),
    // Types.
    ("name = \"test\"", "name = 1", 1, "'name' must be a string, not an integer"),
    ("priority = 101", "priority = \"101\"", 13, "'priority' must be a non-negative integer, not a string"),
    ("priority = 101", "priority = -1", 13, "'priority' must be a non-negative integer, not a negative integer"),
    ("priority = 101", "priority = 1.5", 13, "'priority' must be a non-negative integer, not a floating-point number"),
    ("test-exit = true", "test-exit = 1", 26, "'test-exit' must be true or false, not an integer"),
    ("memory = \"128M\"", "memory = true", 16, "'memory' must be a size, not a boolean"),
    ("[payload]\nlength = \"48M\"\n", "payload = 1\n\n", 4, "'payload' must be a table, not an integer"),
    ("initrd = \"initrd\"", "initrd = 2026-11-21", 20, "'initrd' must be a string, not a date"),
    ("image = \"m2\"", "image = [\"m2\"]", 43, "'image' must be a string, not an array"),
    // Sizes and ranges.
    ("\"128M\"", "\"128Q\"", 16, "'128Q' is no size"),
    ("\"128M\"", "\"M\"", 16, "'M' is no size"),
    ("\"128M\"", "\"99999999999G\"", 16, "'99999999999G' is no size"),
    ("\"128M\"", "\"1M\"", 16, "'memory' is 1048576 (0x100000), possible is 2097152"),
    ("\"128M\"", "\"4G\"", 16, "'memory' is 4294967296"),
    ("\"128M\"", "134217729", 16, "'memory' is 0x8000001, which is no multiple of 0x1000"),
    ("stack = \"32K\"", "stack = \"2M\"", 11, "'stack' is 2097152"),
    ("stack = \"32K\"", "stack = 5000", 11, "'stack' is 0x1388, which is no multiple"),
    ("heap = 0x200000", "heap = \"1G\"", 12, "'heap' is 1073741824"),
    ("priority = 101", "priority = 255", 13, "'priority' is 255 (0xff), possible is 1 (0x1) to 254"),
    ("priority = 101", "priority = 0", 13, "'priority' is 0 "),
    ("0x7fff0", "0x80000", 27, "'first-generation' is 524288 (0x80000), possible is 0 (0x0) to 524287"),
    ("table-memory = \"1M\"", "table-memory = \"4K\"", 28, "'table-memory' is 4096"),
    ("length = \"48M\"", "length = \"2G\"", 5, "'length' is 2147483648"),
    ("[payload]", "[payload]\naddress = 0x2001000", 5, "'address' is 0x2001000, which is no multiple of 0x200000"),
    // Words and names.
    ("log = \"com2\"", "log = \"com3\"", 2, "'log' cannot be 'com3'; possible: com1, com2"),
    ("\"qemu\"", "\"acpi\"", 3, "'power-off' cannot be 'acpi'; possible: bochs, qemu, halt"),
    ("pages = \"small\"", "pages = \"huge\"", 32, "'pages' cannot be 'huge'; possible: auto, small"),
    ("kind = \"rom\"", "kind = \"flash\"", 36, "'kind' cannot be 'flash'; possible: ram, rom"),
    ("test-exit = true", "mode = \"shadow\"", 26, "'mode' cannot be 'shadow'; possible: ept"),
    ("name = \"b\"", "name = \"B 1\"", 23, "'name' cannot be 'B 1'"),
    ("name = \"b\"", "name = \"\"", 23, "'name' is empty"),
    ("priority = 101", "priority = 101\n[component.\"m mu\"]\nimage = \"m\"\npriority = 1", 14, "'component' cannot be 'm mu'"),
    ("kernel = \"k2\"", "kernel = \"\"", 38, "'kernel' is empty"),
    ("kernel = \"k2\"", "kernel = \"012345678901234567890123456789012345678901234567\"", 38, "'kernel' has 48 bytes, at most 47"),
    ("\"m1 arg\"", "\"m1\\narg\"", 41, "'cmdline' contains a control character"),
    // Things against each other.
    ("vmm = \"vmm\"", "vmm = \"vm\"", 24, "no component is called 'vm'; described: vmm, mmu"),
    ("mmu = \"mmu\"", "mmu = \"mm\"", 25, "no component is called 'mm'; described: vmm, mmu"),
    ("name = \"b\"", "name = \"a\"", 23, "two VMs are called 'a'; the first is in line 15"),
    ("test-exit = true", "console = \"com1\"", 26, "com1 already belongs to VM 'a' (line 17)"),
    ("test-exit = true", "console = \"com2\"", 26, "com2 already belongs to the system log (line 2)"),
    ("test-exit = true", "console = \"com9\"", 26, "the system has no device 'com9'; it has: com1, com2"),
    ("console = \"com1\"", "console = \"com1\"\nshares-log = true", 18, "'shares-log' is set, but"),
    ("memory = \"128M\"", "", 14, "the VM has no memory"),
    ("test-exit = true", "memory = \"4M\"", 26, "'memory' cannot stand beside [[vm.slot]]"),
    ("test-exit = true", "pages = \"auto\"", 26, "'pages' cannot stand beside [[vm.slot]]"),
    ("gpa = 0xf0000000", "gpa = 0xfff000", 33, "the slot overlaps the slot of line 29 at guest-physical address 0xfff000"),
    ("gpa = 0xf0000000", "gpa = 0xffffffff", 34, "'gpa' is 0xffffffff, which is no multiple of 0x1000"),
    ("gpa = 0xf0000000", "gpa = 0x1000000000", 33, "the slot ends at 0x1000001000; guest-physical addresses end at 0x1000000000"),
    ("gpa = 0xf0000000", "gpa = 0x7ffffffffffff000", 33, "the slot ends at 0x8000000000000000"),
    ("gpa = 0\n", "gpa = 0x1000\n", 22, "no RAM slot begins at guest-physical address 0"),
];

#[test]
fn every_mistake_is_reported_once_in_its_line() {
    for (from, to, line, message) in WRONG {
        let text = changed(from, to);
        let Err(Errors(errors)) = compile(&text) else {
            panic!("'{to}' was accepted")
        };
        let right = |e: &&Error| e.line == *line && e.reason.to_string().starts_with(message);
        assert_eq!(
            errors.iter().filter(right).count(),
            1,
            "'{from}' -> '{to}':\n{}",
            Errors(errors.clone())
        );
        // Nothing follows from the mistake but the unknown key that a misspelt required key is, too.
        let extra = errors
            .iter()
            .filter(|e| !right(e) && !matches!(e.reason, Reason::UnknownKey { .. }))
            .count();
        assert_eq!(extra, 0, "'{from}' -> '{to}':\n{}", Errors(errors));
    }
}

#[test]
fn columns_are_counted_in_characters() {
    let errors = compile("name = \"ä\"\n  log = \"ü\" # ö").unwrap_err();
    let log = &errors
        .0
        .iter()
        .find(|e| matches!(e.reason, Reason::BadChoice { .. }))
        .unwrap();
    assert_eq!((log.line, log.column), (2, 9));
    assert_eq!(
        log.to_string(),
        "line 2, column 9: 'log' cannot be 'ü'; possible: com1, com2"
    );
}

#[test]
fn all_mistakes_are_reported_in_the_order_of_lines() {
    let text = changed("log = \"com2\"", "log = 2")
        .replace("\"128M\"", "\"x\"")
        .replace("kernel = \"k2\"", "");
    let lines: Vec<_> = compile(&text).unwrap_err().0.iter().map(|e| e.line).collect();
    assert_eq!(lines, [2, 16, 37]);
}

#[test]
fn a_vm_without_the_key_uses_the_component_of_that_name() {
    let errors = compile(&changed("[component.mmu]", "[component.mmx]")).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.starts_with("line 14, column 1: no component is called 'mmu'; described: vmm, mmx\nline 25, "),
        "{text}"
    );
}

#[test]
fn an_empty_file_has_no_vm() {
    let errors = compile("").unwrap_err();
    assert!(
        errors.0.iter().any(|e| e.reason == Reason::NoVm && e.line == 1),
        "{errors}"
    );
}

#[test]
fn too_many_vms_slots_and_modules_are_refused() {
    let vm = |i| format!("[[vm]]\nname = \"v{i}\"\nmemory = \"4M\"\nboot.kernel = \"k\"\n");
    let head = &GOOD[..GOOD.find("[[vm]]").unwrap()];
    let vms = |n| head.to_string() + &(0..n).map(vm).collect::<String>();
    assert!(compile(&vms(limits::MAX_VMS)).is_ok());
    let errors = compile(&vms(limits::MAX_VMS + 1)).unwrap_err();
    assert_eq!(
        errors.0[0].reason,
        Reason::TooMany {
            what: "VMs",
            max: limits::MAX_VMS
        }
    );
    assert_eq!(errors.0[0].line, 14 + 4 * limits::MAX_VMS);

    let slot = |i| format!("[[vm.slot]]\ngpa = {}\nlength = 4096\n", i * 8192);
    let slots = |n| {
        format!(
            "{head}[[vm]]\nname = \"v\"\nboot.kernel = \"k\"\n{}",
            (0..n).map(slot).collect::<String>()
        )
    };
    assert!(compile(&slots(limits::MAX_SLOTS)).is_ok());
    let errors = compile(&slots(limits::MAX_SLOTS + 1)).unwrap_err();
    assert_eq!(
        errors.0[0].reason,
        Reason::TooMany {
            what: "slots",
            max: limits::MAX_SLOTS
        }
    );

    let module = "[[vm.boot.module]]\nimage = \"m\"\n";
    let modules = |n| format!("{}{}", vms(1), module.repeat(n));
    assert!(compile(&modules(limits::MAX_MODULES)).is_ok());
    let errors = compile(&modules(limits::MAX_MODULES + 1)).unwrap_err();
    assert_eq!(
        errors.0[0].reason,
        Reason::TooMany {
            what: "modules",
            max: limits::MAX_MODULES
        }
    );
}

#[test]
fn console_and_log_share_a_port_only_on_request() {
    let text = changed("log = \"com2\"", "log = \"com1\"");
    let errors = compile(&text).unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("com1 already belongs to the system log (line 2)"),
        "{errors}"
    );
    let text = text.replace("console = \"com1\"", "console = \"com1\"\nshares-log = true");
    assert_eq!(compile(&text).unwrap().vms[0].console, Some(ComPort::Com1));
    // Two VMs cannot share it, whatever they say.
    let text = text.replace("test-exit = true", "console = \"com1\"\nshares-log = true");
    let errors = compile(&text).unwrap_err();
    assert_eq!(errors.0.len(), 1);
    assert!(
        errors.to_string().contains("com1 already belongs to VM 'a'"),
        "{errors}"
    );
}

#[test]
fn sizes_have_units() {
    for (text, size) in [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65536),
        ("64KiB", 65536),
        ("3 MiB", 3 << 20),
        ("2G", 2 << 30),
    ] {
        assert_eq!(parse_size(text), Some(size), "{text}");
    }
    for text in [
        "",
        "K",
        "1.5M",
        "-1",
        "1m",
        "1MB",
        "0x10",
        "18446744073709551616",
        "17179869184G",
    ] {
        assert_eq!(parse_size(text), None, "{text}");
    }
}

/// Files cut off or with a line missing are refused or right, and errors name a line of the file.
#[test]
fn damaged_files_never_panic() {
    let lines = GOOD.lines().count();
    let check = |text: &str| {
        if let Err(Errors(errors)) = compile(text) {
            assert!(!errors.is_empty());
            assert!(
                errors
                    .iter()
                    .all(|e| (1..=lines + 1).contains(&e.line) && e.column >= 1)
            );
        }
    };
    for end in 0..GOOD.len() {
        check(&GOOD[..end]);
    }
    for skip in 0..lines {
        let kept: Vec<_> = GOOD
            .lines()
            .enumerate()
            .filter(|(i, _)| *i != skip)
            .map(|(_, l)| l)
            .collect();
        check(&kept.join("\n"));
    }
    for at in 0..GOOD.len() {
        for by in ["\"", "[", "]", "=", "-", "\n"] {
            let mut text = GOOD.to_string();
            text.replace_range(at..at + 1, by);
            if let Err(Errors(errors)) = compile(&text) {
                assert!(!errors.is_empty());
            }
        }
    }
}

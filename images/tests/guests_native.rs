// SPDX-License-Identifier: MIT OR Apache-2.0
//! Are the test guests right themselves? What they ask of a machine, QEMU and Bochs answer without Umbra, as far as those
//! machines are alike.

mod simulators;

use std::fs;
use umbra_images::{disk::BootImage, guests::Images, loader::Loader, test_guests::build_test_guest};

/// RAM that stands in for a place without memory, where the machine has none that reads as ones.
const RAM: &str = "mmio=a00000";

fn qemu(name: &str, cmdline: &str) -> (String, Option<i32>) {
    let work = simulators::folder("guests-qemu", name);
    let kernel = work.join("kernel");
    build_test_guest(Images::own_folder(), name, &kernel).unwrap();
    simulators::qemu(&work, 48, &["-kernel", kernel.to_str().unwrap(), "-append", cmdline])
}

fn bochs(name: &str, cmdline: &str) -> String {
    let work = simulators::folder("guests-bochs", name);
    let kernel = work.join("kernel");
    build_test_guest(Images::own_folder(), name, &kernel).unwrap();
    let loader = Loader::assemble(&work).unwrap();
    let kernel = fs::read(kernel).unwrap();
    // The loader wants a root task; a guest does not look at it.
    let image = BootImage {
        kernel: &kernel,
        root_task: b"\x7fELF",
        payload: &[],
        payload_paddr: 0,
        cmdline,
    };
    let disk = image.build(&loader).unwrap();
    fs::write(work.join("rom.bin"), &loader.option_rom).unwrap();
    fs::write(work.join("disk.img"), &disk.bytes).unwrap();
    simulators::bochs(&work, disk.cylinders, 48, true)
}

#[test]
fn pass_in_qemu() {
    for name in [
        "hello",
        "memory",
        "rom-write",
        "halt-timer",
        "time",
        "rtc",
        "uart",
        "exceptions",
        "paging",
        "fpu",
        "long-mode",
    ] {
        let (text, _) = qemu(name, RAM);
        assert!(text.ends_with("guest: passed\n"), "{name}:\n{text}");
    }
    for name in ["mmio-forms", "mmio-forms-64", "bench"] {
        let (text, _) = qemu(name, RAM);
        assert!(text.ends_with("guest: passed\n"), "{name}:\n{text}");
    }
}

#[test]
fn pass_in_bochs() {
    for name in [
        "hello",
        "memory",
        "rom-write",
        "halt-timer",
        "time",
        "rtc",
        "uart",
        "exceptions",
        "paging",
        "fpu",
        "long-mode",
        "real-mode",
        "mmio-forms",
        "mmio-forms-64",
        "bench",
    ] {
        let text = bochs(name, "");
        assert!(text.ends_with("guest: passed\n"), "{name}:\n{text}");
    }
}

#[test]
fn end_as_they_say() {
    assert_eq!(qemu("test-exit", "value=15").1, Some(2 * 0x15 + 1));
    for name in ["reset-i8042", "reset-cf9", "triple-fault", "hostile-triple"] {
        let (text, status) = qemu(name, ""); // -no-reboot: a reset ends QEMU
        assert_eq!(status, Some(0));
        assert!(
            text.starts_with("guest: ") && !text.contains("FAILED"),
            "{name}:\n{text}"
        );
    }
}

#[test]
fn a_failed_check_is_seen() {
    // QEMU reads zeroes where nothing is.
    let (text, _) = qemu("mmio-absent", "mmio=d0000000");
    assert!(
        text.contains("guest: FAILED ") && text.contains("guest: failed checks: "),
        "{text}"
    );
}

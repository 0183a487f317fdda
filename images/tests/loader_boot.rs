// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the boot loader hand over a machine as multiboot promises, in Bochs and in QEMU? (Needs nasm and the simulators.)

mod simulators;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use umbra_images::{disk::BootImage, loader::Loader};

const PAYLOAD_PADDR: u64 = 0x200_0000;

fn probe(work: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/loader-probe.asm");
    let out = work.join("probe.elf");
    assert!(
        Command::new("nasm")
            .args(["-f", "bin", "-o"])
            .arg(&out)
            .arg(source)
            .status()
            .unwrap()
            .success()
    );
    fs::read(out).unwrap()
}

fn sample(len: usize, seed: u8) -> Vec<u8> {
    // Not periodic: a simulator that puts blocks in the wrong order must be noticed.
    let mut state = u64::from(seed) + 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| byte()).collect()
}

/// What the probe computes.
fn sum(data: &[u8]) -> u32 {
    data.iter().zip(1u32..).fold(0, |sum, (byte, place)| {
        sum.wrapping_add(u32::from(*byte).wrapping_mul(place))
    })
}

struct Case {
    work: PathBuf,
    disk: umbra_images::disk::Disk,
    root_task: Vec<u8>,
    payload: Vec<u8>,
}

fn case(name: &str, payload_len: usize) -> Case {
    let work = simulators::folder("loader", name);
    let loader = Loader::assemble(&work).unwrap();
    let mut root_task = sample(700_001, 3);
    root_task[..4].copy_from_slice(b"\x7fELF");
    let mut payload = sample(payload_len, 9);
    if payload_len > 0 {
        payload[8..12].copy_from_slice(&(payload_len as u32).to_le_bytes());
    }
    let kernel = probe(&work);
    let image = BootImage {
        kernel: &kernel,
        root_task: &root_task,
        payload: &payload,
        payload_paddr: PAYLOAD_PADDR,
        cmdline: "console_port=0x2f8 a \"b\"",
    };
    let disk = image.build(&loader).unwrap();
    fs::write(work.join("rom.bin"), &loader.option_rom).unwrap();
    fs::write(work.join("disk.img"), &disk.bytes).unwrap();
    Case {
        work,
        disk,
        root_task,
        payload,
    }
}

fn qemu(case: &Case, megabytes: u32) -> String {
    let drive = format!("format=raw,file={}", case.work.join("disk.img").display());
    simulators::qemu(&case.work, megabytes, &["-drive", &drive]).0
}

fn bochs(case: &Case, megabytes: u32, rom: bool) -> String {
    simulators::bochs(&case.work, case.disk.cylinders, megabytes, rom)
}

/// The number that the probe printed under this name.
fn value(text: &str, name: &str) -> u32 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    u32::from_str_radix(line.unwrap_or_else(|| panic!("no {name} in:\n{text}")), 16).unwrap()
}

/// Looks at everything that the probe printed.
fn check(case: &Case, text: &str) {
    let value = |name| value(text, name);
    assert_eq!(value("magic"), 0x2bad_b002);
    assert_eq!(value("flags") & 0x4d, 0x4d);
    assert!((600..=640).contains(&value("lower")));
    assert!(text.contains("\ncmdline console_port=0x2f8 a \"b\"\n"), "{text}");
    assert_eq!(u64::from(value("module")), case.disk.module.start);
    assert_eq!(u64::from(value("module-end")), case.disk.module.end);
    assert_eq!(value("module-sum"), sum(&case.root_task));
    assert_eq!(value("zero"), 0);
    assert_eq!(value("second"), sum(&[7; 100]));
    assert!(text.ends_with("done\n"), "{text}");

    let numbers: Vec<u64> = text
        .lines()
        .filter(|line| ["map ", " from ", " len "].iter().any(|start| line.starts_with(start)))
        .map(|line| u64::from_str_radix(line.rsplit(' ').next().unwrap(), 16).unwrap())
        .collect();
    let map: Vec<(u64, u64, u64)> = numbers
        .chunks(5)
        .map(|e| (e[0], e[2] << 32 | e[1], e[4] << 32 | e[3]))
        .collect();
    for ram in map.iter().filter(|entry| entry.0 == 1) {
        let (start, end) = (ram.1, ram.1 + ram.2);
        assert!(
            end <= case.disk.hole.start || start >= case.disk.hole.end || case.disk.hole.is_empty(),
            "{map:x?}"
        );
    }
    let above: u64 = map
        .iter()
        .filter(|entry| entry.0 == 1 && entry.1 >= 1 << 20)
        .map(|entry| entry.2)
        .sum();
    assert!(above > 50 << 20, "RAM is missing: {map:x?}");
    if case.payload.is_empty() {
        assert_eq!(map.iter().filter(|entry| entry.1 == PAYLOAD_PADDR).count(), 0);
    } else {
        assert!(
            map.contains(&(2, PAYLOAD_PADDR, case.disk.hole.end - PAYLOAD_PADDR)),
            "{map:x?}"
        );
        assert_eq!(value("payload-sum"), sum(&case.payload));
    }
}

#[test]
fn qemu_boots_the_image_without_payload() {
    let case = case("qemu-plain", 0);
    check(&case, &qemu(&case, 128));
}

#[test]
fn qemu_boots_the_image_with_payload() {
    let case = case("qemu-payload", 20_000_123);
    check(&case, &qemu(&case, 128));
    check(&case, &qemu(&case, 4096)); // RAM above 4 GiB too
}

#[test]
fn qemu_boots_the_image_from_a_usb_stick() {
    let case = case("qemu-usb", 10_000_000);
    let drive = format!(
        "if=none,id=stick,format=raw,file={}",
        case.work.join("disk.img").display()
    );
    let usb = [
        "-device",
        "qemu-xhci",
        "-device",
        "usb-storage,drive=stick,removable=on",
        "-drive",
        &drive,
    ];
    let (text, _) = simulators::qemu(&case.work, 128, &usb);
    check(&case, &text);
}

/// A drive that fails as `rules` says (QEMU's blkdebug).
fn failing_drive(case: &Case, rules: &str) -> String {
    let config = case.work.join("blkdebug");
    fs::write(&config, rules).unwrap();
    let image = case.work.join("disk.img");
    // An error of a direct read, not of one into a cache that holds more.
    let drive = format!(
        "file=blkdebug:{}:{},format=raw,if=ide,rerror=report",
        config.display(),
        image.display()
    );
    simulators::qemu(&case.work, 128, &["-drive", &drive]).0
}

#[test]
fn a_drive_that_fails_at_first_is_asked_again() {
    let case = case("flaky", 3_000_000);
    let sector = 3000;
    let once = format!("[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"{sector}\"\nonce = \"on\"\n");
    check(&case, &failing_drive(&case, &once));
}

#[test]
fn a_bad_sector_is_named() {
    let case = case("bad-sector", 3_000_000);
    let rules = "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"3001\"\n";
    let text = failing_drive(&case, rules);
    assert_eq!(
        text.trim(),
        "umbra loader: the disk cannot be read at sector 0x00000BB9, BIOS status 0x0000000C"
    );
}

#[test]
fn bochs_boots_the_image_from_disk() {
    let case = case("bochs-disk", 5_000_123);
    let text = bochs(&case, 128, true);
    check(&case, &text);
    println!(
        "power-on to kernel entry with 5 MB of payload from disk: {} ticks",
        value(&text, "tsc")
    );
    check(&case, &bochs(&case, 128, false));
}

#[test]
fn bochs_start_is_fast() {
    let case = case("bochs-fast", 30_000_000);
    let text = bochs(&case, 128, true);
    check(&case, &text);
    let ticks = value(&text, "tsc");
    println!("power-on to kernel entry with 30 MB of payload: {ticks} ticks");
    assert!(ticks < 30_000_000, "{ticks} ticks from power-on to kernel entry");
}

#[test]
fn too_little_ram_is_said() {
    let case = case("small-ram", 5_000_000);
    let text = bochs(&case, 32, true);
    assert!(
        text.contains("umbra loader: not enough RAM for the guest images: they need 0x02000000 to 0x02600000"),
        "{text}"
    );
}

#[test]
fn a_truncated_image_is_said() {
    let mut case = case("truncated", 5_000_000);
    let cylinder = 16 * 63 * 512;
    fs::write(case.work.join("disk.img"), &case.disk.bytes[..4 * cylinder]).unwrap();
    case.disk.cylinders = 4;
    let text = bochs(&case, 128, true);
    assert!(
        text.contains("umbra loader: the disk cannot be read at sector 0x"),
        "{text}"
    );
    let mut bytes = case.disk.bytes.clone();
    bytes[9 * 512..10 * 512].fill(0);
    fs::write(case.work.join("disk.img"), bytes).unwrap();
    let text = bochs(&case, 128, true);
    assert!(text.contains("umbra loader: this image has no table"), "{text}");
}

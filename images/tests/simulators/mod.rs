// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do this crate's tests run something in a simulator until it ends by itself?

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A folder of a test's own.
pub fn folder(suite: &str, name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(suite).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// The loader's last words on a machine that does not end.
const LOADER_STOPPED: &str = "umbra loader: ";

/// Runs a simulator until it ends or the loader has given up; the text on COM1 and the exit status.
pub fn run(mut command: Command, serial: &Path) -> (String, Option<i32>) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let text = fs::read(serial).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if text
            .split_once(LOADER_STOPPED)
            .is_some_and(|(_, words)| words.ends_with("\r\n"))
        {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!(
                "no end after 60 s; COM1:\n{}",
                fs::read_to_string(serial).unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = String::from_utf8_lossy(&fs::read(serial).unwrap_or_default()).replace('\r', "");
    (text, status.code())
}

/// QEMU with `more` options; a write of v to port 0xf4 ends it with status 2v + 1.
pub fn qemu(work: &Path, megabytes: u32, more: &[&str]) -> (String, Option<i32>) {
    let serial = work.join("qemu.serial");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-display",
            "none",
            "-no-reboot",
            "-device",
            "isa-debug-exit,iobase=0xf4",
        ])
        .args(more);
    command.arg("-m").arg(megabytes.to_string());
    command.arg("-serial").arg(format!("file:{}", serial.display()));
    run(command, &serial)
}

/// Bochs with the disk `disk.img` of the folder, and its option ROM `rom.bin` if wanted; "Shutdown" on port 0x8900 ends it.
pub fn bochs(work: &Path, cylinders: usize, megabytes: u32, rom: bool) -> String {
    let serial = work.join("bochs.serial");
    let folder = work.display();
    let rom = if rom {
        format!("optromimage1: file={folder}/rom.bin, address=0xd0000\n")
    } else {
        String::new()
    };
    let config = format!(
        "megs: {megabytes}\nromimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         cpu: model=corei7_haswell_4770, count=1, ips=50000000, reset_on_triple_fault=0\n\
         com1: enabled=1, mode=file, dev={folder}/bochs.serial\nlog: {folder}/bochs.log\n\
         display_library: rfb, options=\"timeout=0\"\npanic: action=fatal\nerror: action=report\ninfo: action=report\n\
         clock: sync=none\nboot: disk\n\
         ata0-master: type=disk, path={folder}/disk.img, mode=flat, cylinders={cylinders}, heads=16, spt=63\n{rom}",
    );
    fs::write(work.join("bochsrc"), config).unwrap();
    fs::write(work.join("rc"), "c\n").unwrap();
    let mut command = Command::new("bochs-bin");
    command
        .arg("-q")
        .arg("-f")
        .arg(work.join("bochsrc"))
        .arg("-rc")
        .arg(work.join("rc"));
    run(command, &serial).0
}

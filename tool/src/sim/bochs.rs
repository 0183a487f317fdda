// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is Bochs configured and started?

use super::{Boot, Disk, Machine, Pace};
use crate::process::{Group, dies_with_us};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

/// The processor: the oldest of Bochs' models with EPT, VPID, unrestricted guest and the preemption timer.
const CPU: &str = "corei7_haswell_4770";
/// Emulated instructions per second of the guest's clock: the TSC's frequency.
pub const IPS: u32 = 50_000_000;
/// A date for runs that must repeat: seconds since 1970.
const FIXED_DATE: u64 = 1_700_000_000;
/// Disk geometry that Bochs wants for flat images.
const HEADS: u64 = 16;
const SECTORS: u64 = 63;
/// Bytes in a cylinder of that geometry.
pub const CYLINDER: u64 = HEADS * SECTORS * 512;

/// Starts Bochs in `folder` with its two serial ports connected to the TCP ports `console` and `log`.
pub fn start(machine: &Machine, folder: &Path, console: u16, log: u16) -> Result<Group> {
    let Boot::Disk(disk) = &machine.boot else {
        bail!("Bochs has no multiboot loader: it boots disk images");
    };
    let length = folder
        .join(&disk.image)
        .metadata()
        .with_context(|| format!("the disk image {}", disk.image.display()))?
        .len();
    let config = configuration(machine, disk, length, console, log)?;
    std::fs::write(folder.join("bochsrc"), config).context("writing Bochs' configuration")?;
    // Debian's Bochs has the debugger: it starts stopped and reads its first command from here.
    std::fs::write(folder.join("debugger"), "c\n").context("writing Bochs' configuration")?;
    let screen = Screen::open(&folder.join("simulator.txt"))?;
    Group::start_on(
        dies_with_us("bochs-bin")
            .arg("-q")
            .arg("-f")
            .arg(folder.join("bochsrc"))
            .arg("-rc")
            .arg(folder.join("debugger"))
            .current_dir(folder)
            .env("TERM", "linux")
            .stdout(screen.try_clone()?)
            .stderr(screen.try_clone()?),
        screen.into(),
    )
}

/// A terminal that nobody sees. Bochs insists on a display: its `rfb` would listen on the network, its `term` wants a
/// terminal. Nothing of interest appears on it, as the machine speaks through its serial ports.
struct Screen(OwnedFd);

impl Screen {
    /// Opens one; the first output (a complaint about the configuration, say) is kept in `file`.
    fn open(file: &Path) -> Result<Self> {
        use rustix::fs::{Mode, OFlags, open};
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        const WHAT: &str = "a terminal for Bochs";
        const KEPT: usize = 64 << 10;
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context(WHAT)?;
        grantpt(&master).and_then(|()| unlockpt(&master)).context(WHAT)?;
        let name = ptsname(&master, Vec::new()).context(WHAT)?;
        let slave = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).context(WHAT)?;
        let mut file = File::create(file).context(WHAT)?;
        std::thread::Builder::new()
            .name("screen".into())
            .spawn(move || {
                let mut kept = 0;
                let mut buffer = [0; 4096];
                // Reading ends with an error when Bochs has closed its side.
                while let Ok(count @ 1..) = rustix::io::read(&master, &mut buffer) {
                    if kept < KEPT {
                        kept += count;
                        let _ = file.write_all(&buffer[..count]);
                    }
                }
            })
            .context(WHAT)?;
        Ok(Self(slave))
    }

    fn try_clone(&self) -> Result<Stdio> {
        Ok(self.0.try_clone().context("a terminal for Bochs")?.into())
    }
}

impl From<Screen> for Stdio {
    fn from(screen: Screen) -> Self {
        screen.0.into()
    }
}

fn configuration(machine: &Machine, disk: &Disk, disk_length: u64, console: u16, log: u16) -> Result<String> {
    if disk_length == 0 || !disk_length.is_multiple_of(CYLINDER) {
        bail!("the disk image has {disk_length} bytes, not a whole number of cylinders ({CYLINDER} bytes)");
    }
    let mut rc = String::new();
    let clock = match machine.pace {
        Pace::Batch => format!("sync=none, time0={FIXED_DATE}, rtc_sync=0"),
        Pace::Interactive => "sync=slowdown, time0=utc, rtc_sync=1".to_owned(),
    };
    let lines = [
        format!("megs: {}", machine.memory_mib),
        "romimage: file=/usr/share/bochs/BIOS-bochs-latest".to_owned(),
        "vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest".to_owned(),
        // A triple fault of the machine itself must end the run, not restart it.
        format!("cpu: model={CPU}, count=1, ips={IPS}, reset_on_triple_fault=0"),
        format!("clock: {clock}"),
        // With realtime=0 the screen's refresh counts instructions: runs repeat.
        "vga: extension=vbe, update_freq=5, realtime=0".to_owned(),
        format!("com1: enabled=1, mode=socket-client, dev=127.0.0.1:{console}"),
        format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{log}"),
        "log: bochs.log".to_owned(),
        "display_library: term".to_owned(),
        "sound: waveoutdrv=dummy".to_owned(),
        "pci: enabled=1, chipset=i440fx".to_owned(),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
        "info: action=report".to_owned(),
        format!(
            "ata0-master: type=disk, path={}, mode=flat, cylinders={}, heads={HEADS}, spt={SECTORS}",
            disk.image.display(),
            disk_length / CYLINDER
        ),
        "boot: disk".to_owned(),
    ];
    for line in lines {
        rc.push_str(&line);
        rc.push('\n');
    }
    if let Some(rom) = &disk.option_rom {
        // Writing to a String cannot fail.
        let _ = writeln!(rc, "optromimage1: file={}, address=0xd0000", rom.display());
    }
    Ok(rc)
}

/// The lines with which Bochs gave up, from its log.
pub fn panic_lines(folder: &Path) -> Option<String> {
    let log = std::fs::read(folder.join("bochs.log")).ok()?;
    panics_in(&String::from_utf8_lossy(&log))
}

fn panics_in(log: &str) -> Option<String> {
    // A line of Bochs' log: ticks, a letter for the severity, the device, the text: `00012345678p[CPU0  ] >>PANIC<< ...`.
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| {
            let severity = line.trim_start_matches(|c: char| c.is_ascii_digit()).chars().next();
            line.contains(">>PANIC<<") || severity == Some('p') && line.contains('[')
        })
        .take(4)
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn disk() -> Disk {
        Disk {
            image: PathBuf::from("/x/disk.img"),
            option_rom: Some(PathBuf::from("/x/rom")),
        }
    }

    fn config(disk: &Disk, pace: Pace, length: u64) -> Result<String> {
        let machine = Machine {
            boot: Boot::Disk(disk.clone()),
            memory_mib: 512,
            pace,
        };
        configuration(&machine, disk, length, 4001, 4002)
    }

    #[test]
    fn the_configuration_names_ports_memory_and_disk() {
        let rc = config(&disk(), Pace::Batch, CYLINDER * 3).unwrap();
        for line in [
            "megs: 512",
            "com1: enabled=1, mode=socket-client, dev=127.0.0.1:4001",
            "com2: enabled=1, mode=socket-client, dev=127.0.0.1:4002",
            "ata0-master: type=disk, path=/x/disk.img, mode=flat, cylinders=3, heads=16, spt=63",
            "optromimage1: file=/x/rom, address=0xd0000",
            "clock: sync=none, time0=1700000000, rtc_sync=0",
        ] {
            assert!(rc.lines().any(|have| have == line), "{line} is not in\n{rc}");
        }
    }

    #[test]
    fn interactive_time_is_held_back() {
        assert!(
            config(&disk(), Pace::Interactive, CYLINDER)
                .unwrap()
                .contains("clock: sync=slowdown")
        );
    }

    #[test]
    fn odd_disks_are_refused() {
        assert!(config(&disk(), Pace::Batch, CYLINDER + 512).is_err());
        assert!(config(&disk(), Pace::Batch, 0).is_err());
    }

    #[test]
    fn panics_are_found_in_the_log() {
        let log = "00000000000i[      ] Bochs x86 Emulator 2.7\n00012345678e[CPU0  ] WARNING: HLT with IF=0!\n\
                   00012345679p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n";
        assert!(panics_in(log).unwrap().contains("3rd (13)"));
        assert_eq!(panics_in("00000000000i[      ] ppp [x]\n"), None);
    }
}

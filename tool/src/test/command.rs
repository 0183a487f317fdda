// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does `umbra run` behave as a command? On a terminal: raw while it runs, keys to the guest at once, restored whatever
//! ends it. In a pipe: lines typed at the prompt, the console on standard output, an exit status that tells.

use super::case::plain;
use super::verdict::Verdict;
use crate::build::Builder;
use crate::process::Group;
use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Time for the session to come up, and to end.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The escape key.
    Key,
    /// SIGTERM.
    Signal,
    /// The guest.
    Guest,
    /// The guest; there is no terminal, lines come from a file.
    PipedGuest,
    /// The timeout, in the same way.
    PipedTimeout,
    /// The guest, which is the caller's own: kernel, initrd, command line and memory are named.
    OwnFiles,
}

impl End {
    /// All of them.
    pub const ALL: [End; 6] = [
        End::Key,
        End::Signal,
        End::Guest,
        End::PipedGuest,
        End::PipedTimeout,
        End::OwnFiles,
    ];

    /// The test's name.
    pub fn name(self) -> &'static str {
        match self {
            End::Key => "terminal-escape-key",
            End::Signal => "terminal-signal",
            End::Guest => "terminal-guest-ends",
            End::PipedGuest => "pipe-guest-ends",
            End::PipedTimeout => "pipe-timeout",
            End::OwnFiles => "pipe-own-files",
        }
    }

    fn exit_status(self) -> i32 {
        match self {
            End::Key => 23,
            End::Signal => 128 + Signal::TERM.as_raw(),
            End::Guest | End::PipedGuest | End::OwnFiles => 0,
            End::PipedTimeout => 10,
        }
    }
}

/// Runs a guest that echoes keys on a terminal of its own, and ends it by `end`.
pub fn judge(builder: &Builder, end: End) -> Verdict {
    let played = match end {
        End::Key | End::Signal | End::Guest => on_a_terminal(builder, end),
        End::PipedGuest => in_a_pipe(builder, end, &["--guest", ECHO], "ab\nq\n", &["[q]"]),
        End::PipedTimeout => in_a_pipe(builder, end, &["--guest", ECHO, "--timeout", "20"], "ab\n", &["[b]"]),
        End::OwnFiles => with_own_files(builder),
    };
    match played {
        Ok(()) => Verdict::Passed,
        Err(error) => Verdict::failed(format!("{error:#}"), ""),
    }
}

/// The prompt is not told, and found all the same.
fn with_own_files(builder: &Builder) -> Result<()> {
    let folder = builder.paths.new_run("own-files")?;
    let guest = crate::guests::load(builder, "debian-i386", false)?;
    let file = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).with_context(|| path.display().to_string())?;
        path.into_os_string()
            .into_string()
            .ok()
            .context("a path that is no text")
    };
    let kernel = file("my kernel", &guest.kernel)?;
    let initrd = file("my initrd", &guest.initrd.context("the guest has no initrd")?)?;
    let append = format!("{} umbra.mark=4711", guest.cmdline);
    let arguments = [
        "--kernel", &kernel, "--initrd", &initrd, "--append", &append, "--memory", "80M",
    ];
    let lines = "cat /proc/cmdline\nhead -1 /proc/meminfo\npoweroff -f\n";
    // The kernel keeps some of the 81920 kB for itself.
    in_a_pipe(
        builder,
        End::OwnFiles,
        &arguments,
        lines,
        &["umbra.mark=4711", "MemTotal:          6"],
    )
}

/// The lines are typed, and `wanted` is on standard output.
fn in_a_pipe(builder: &Builder, end: End, arguments: &[&str], lines: &str, wanted: &[&str]) -> Result<()> {
    let folder = builder.paths.new_run(end.name())?;
    let (input, output) = (folder.join("input"), folder.join("output"));
    std::fs::write(&input, lines).context("the input")?;
    let mut command = umbra_run(builder, arguments)?;
    command.stdout(File::create(&output).context("the output")?);
    command.stderr(File::create(folder.join("messages")).context("the messages")?);
    let mut child = Group::start_on(&mut command, File::open(&input).context("the input")?.into())?;
    let status = child.wait_for(LIMIT)?.context("it does not end")?;
    let console = plain(&std::fs::read(&output).context("the output")?);
    ensure!(
        status.code() == Some(end.exit_status()),
        "exit status {status}, not {}:\n{console}",
        end.exit_status()
    );
    for wanted in wanted {
        ensure!(console.contains(wanted), "no {wanted} on standard output:\n{console}");
    }
    ensure!(
        !console.contains("umbra:"),
        "messages of the tool belong on standard error:\n{console}"
    );
    Ok(())
}

/// A guest that echoes what is typed.
const ECHO: &str = "uart-echo";

/// This command.
fn umbra_run(builder: &Builder, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program")?);
    command
        .arg("run")
        .args(arguments)
        .env("UMBRA_ROOT", builder.paths.root());
    Ok(command)
}

fn on_a_terminal(builder: &Builder, end: End) -> Result<()> {
    let (master, slave) = terminal().context("a terminal")?;
    let before = settings(&slave)?;
    let mut command = umbra_run(builder, &["--guest", ECHO])?;
    let copy = || slave.try_clone().context("a terminal");
    command.stdout(copy()?).stderr(copy()?);
    let mut child = Group::start_on(&mut command, copy()?.into())?;
    let mut screen = Screen {
        output: reader(master.try_clone().context("a terminal")?)?,
        seen: Vec::new(),
    };
    let type_in = |keys: &[u8]| rustix::io::write(&master, keys).context("typing").map(drop);

    screen.wait_for("guest: type> ", LIMIT)?;
    let during = settings(&slave)?;
    ensure!(
        !during.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO),
        "the terminal is not raw"
    );
    ensure!(
        !during.local_modes.contains(LocalModes::ISIG),
        "Ctrl-C would not reach the guest"
    );
    // Without an end of line: keys go at once, each by itself.
    type_in(b"a")?;
    screen.wait_for("[a]", LIMIT)?;
    match end {
        End::Key => type_in(&[crate::run::session::ESCAPE_KEY])?,
        End::Signal => {
            let pid = Pid::from_raw(child.id().cast_signed()).context("a process")?;
            kill_process(pid, Signal::TERM).context("SIGTERM")?;
        }
        End::Guest | End::PipedGuest | End::PipedTimeout | End::OwnFiles => type_in(b"q")?,
    }
    let status = child.wait_for(LIMIT)?.context("it does not end")?;
    ensure!(
        status.code() == Some(end.exit_status()),
        "exit status {status}, not {}",
        end.exit_status()
    );
    let after = settings(&slave)?;
    let same = before.local_modes == after.local_modes
        && before.input_modes == after.input_modes
        && before.output_modes == after.output_modes;
    ensure!(same, "the terminal was not restored");
    Ok(())
}

fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((master, slave))
}

fn settings(terminal: &OwnedFd) -> Result<Termios> {
    tcgetattr(terminal).context("the terminal's settings")
}

/// What the person at the terminal would see.
struct Screen {
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Screen {
    fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while !plain(&self.seen).contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else {
                anyhow::bail!("{text:?} did not appear; the screen:\n{}", plain(&self.seen));
            };
            self.seen.extend(bytes);
        }
        Ok(())
    }
}

fn reader(master: OwnedFd) -> Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = channel();
    let read = move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = rustix::io::read(&master, &mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("screen".into())
        .spawn(read)
        .context("starting a thread")?;
    Ok(receiver)
}

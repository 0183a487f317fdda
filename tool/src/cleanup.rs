// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be undone however the tool ends: child processes that run, and a terminal in raw mode.

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{OptionalActions, Termios, tcsetattr};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Live {
    groups: BTreeSet<i32>,
    terminal: Option<Termios>,
}

static LIVE: Mutex<Live> = Mutex::new(Live {
    groups: BTreeSet::new(),
    terminal: None,
});

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes signals and panics undo everything before the process ends. Call once, first.
pub fn install() -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            undo();
            eprintln!("umbra: ended by signal {signal}");
            std::process::exit(128 + signal);
        }
    })?;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore_terminal();
        // `umbra guests | head -1`: nobody reads on, which is no fault of ours.
        let text = info.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            exit(1);
        }
        usual(info);
    }));
    Ok(())
}

/// Ends the process after undoing everything.
pub fn exit(code: i32) -> ! {
    undo();
    std::process::exit(code)
}

fn undo() {
    restore_terminal();
    let groups: Vec<i32> = live().groups.iter().copied().collect();
    for group in groups {
        end_group(group);
    }
}

/// Remembers a process group that has to end with the tool.
pub fn watch_group(leader: i32) {
    live().groups.insert(leader);
}

/// Forgets a process group: its leader was waited for.
pub fn forget_group(leader: i32) {
    live().groups.remove(&leader);
}

/// Kills every process of the group whose leader this tool started.
pub fn end_group(leader: i32) {
    if let Some(pid) = Pid::from_raw(leader) {
        // A group that is gone already is what we want.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// Remembers how the terminal on standard input was, to put it back.
pub fn remember_terminal(settings: Termios) {
    live().terminal = Some(settings);
}

/// Puts the terminal back as it was, if it was changed.
pub fn restore_terminal() {
    if let Some(settings) = live().terminal.take() {
        // The terminal may be gone (hang-up): nothing to restore then.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &settings);
    }
}

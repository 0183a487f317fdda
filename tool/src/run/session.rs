// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens between power-on and the end: console out, lines or keys in, the system log followed, the time watched.

use super::outcome::{Outcome, Story};
use super::prompt::Watcher;
use crate::sim::Running;
use anyhow::{Context, Result};
use regex::Regex;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// The key that ends an interactive session: Ctrl-].
pub const ESCAPE_KEY: u8 = 0x1d;
/// After the verdict, time for the machine to switch itself off and for the last output to arrive.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often the simulator is looked at when nothing happens.
const LOOK: Duration = Duration::from_millis(100);

/// What is typed at the guest.
#[derive(Debug)]
pub enum Input {
    /// These lines, each when the guest shows its prompt.
    Lines(Vec<String>),
    /// The lines of standard input, each when the guest shows its prompt.
    StdinLines,
    /// Every key, at once, until the escape key. The terminal is in raw mode.
    StdinKeys,
}

/// How a session is to go.
#[derive(Debug)]
pub struct Plan {
    /// What is typed.
    pub input: Input,
    /// A regular expression for the guest's prompt.
    pub prompt: String,
    /// When to give up.
    pub timeout: Option<Duration>,
    /// A regular expression for a line of console or system log at which all is seen: the machine is then ended.
    pub until: Option<String>,
}

/// Where output goes while it arrives.
pub trait Show {
    /// Bytes of the guest's console.
    fn console(&mut self, bytes: &[u8]) -> Result<()>;
    /// A line of the system log.
    fn log(&mut self, line: &str) -> Result<()>;
}

/// What is left of a session.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Everything that the guest's console printed.
    pub console: Vec<u8>,
    /// The system log.
    pub log: Vec<String>,
    /// What the system log told.
    pub story: Story,
    /// Real time from start to end.
    pub took: Duration,
    /// The run's folder, with `console.txt` and `system.txt`.
    pub folder: PathBuf,
}

enum Event {
    Console(Vec<u8>),
    ConsoleEnd,
    Log(String),
    LogEnd,
    Line(String),
    Keys(Vec<u8>),
    InputEnd,
}

/// Follows `running` to its end.
pub fn follow(mut running: Running, plan: Plan, show: &mut dyn Show) -> Result<Report> {
    let started = Instant::now();
    let mut watcher = Watcher::new(&plan.prompt)?;
    let until = plan
        .until
        .as_deref()
        .map(Regex::new)
        .transpose()
        .context("the pattern to wait for")?;
    let awaited = |line: &str| until.as_ref().is_some_and(|until| until.is_match(line));
    let (sender, events) = channel();
    read_console(running.console.try_clone().context("the console")?, sender.clone())?;
    read_log(running.log.try_clone().context("the system log")?, sender.clone())?;
    let mut lines = VecDeque::new();
    match plan.input {
        Input::Lines(all) => lines.extend(all),
        Input::StdinLines => read_lines(sender)?,
        Input::StdinKeys => read_keys(sender)?,
    }

    let mut files = (
        File::create(running.folder.join("console.txt")).context("the run's folder")?,
        File::create(running.folder.join("system.txt")).context("the run's folder")?,
    );
    let mut console = Vec::new();
    let mut log = Vec::new();
    let mut story = Story::default();
    let mut open = 2;
    let mut over_at: Option<Instant> = None;
    let mut end: Option<Outcome> = None;
    loop {
        match next(&events) {
            Some(Event::Console(bytes)) => {
                files.0.write_all(&bytes).context("the run's folder")?;
                show.console(&bytes)?;
                watcher.console(&bytes);
                let from = console.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
                console.extend(bytes);
                if String::from_utf8_lossy(&console[from..]).lines().any(awaited) {
                    end.get_or_insert(Outcome::Seen);
                }
            }
            Some(Event::Log(line)) => {
                writeln!(files.1, "{line}").context("the run's folder")?;
                show.log(&line)?;
                story.line(&line);
                if line.ends_with("halting...") && !story.is_over() {
                    end.get_or_insert(Outcome::NoVerdict(format!("the kernel stopped: {line}")));
                }
                if awaited(&line) {
                    end.get_or_insert(Outcome::Seen);
                }
                log.push(line);
            }
            Some(Event::ConsoleEnd | Event::LogEnd) => open -= 1,
            Some(Event::Line(line)) => lines.push_back(line),
            Some(Event::Keys(keys)) => {
                let escape = keys.iter().position(|&key| key == ESCAPE_KEY);
                send(&mut running.console, &keys[..escape.unwrap_or(keys.len())]);
                if escape.is_some() {
                    end.get_or_insert(Outcome::Escape);
                }
            }
            Some(Event::InputEnd) | None => {}
        }
        if watcher.at_prompt()
            && let Some(line) = lines.pop_front()
        {
            watcher.typed();
            send(&mut running.console, format!("{line}\n").as_bytes());
        }
        if open == 0 || end.is_some() {
            break;
        }
        if story.is_over() && over_at.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS {
            break;
        }
        if let Some(limit) = plan.timeout
            && !story.is_over()
            && started.elapsed() > limit
        {
            end = Some(Outcome::Timeout(limit));
            break;
        }
    }

    let took = started.elapsed();
    let outcome = match end {
        Some(end @ (Outcome::Escape | Outcome::Seen)) => end,
        other => {
            let silence = || other.unwrap_or_else(|| ended_silently(&mut running));
            story.outcome(silence)
        }
    };
    Ok(Report {
        outcome,
        console,
        log,
        story,
        took,
        folder: running.folder.clone(),
    })
}

fn next(events: &Receiver<Event>) -> Option<Event> {
    match events.recv_timeout(LOOK) {
        Ok(event) => Some(event),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            // All readers have ended; their last events were taken. Keep the loop's pace.
            std::thread::sleep(LOOK);
            None
        }
    }
}

/// Both serial lines are closed, and there was no verdict.
fn ended_silently(running: &mut Running) -> Outcome {
    let mut what = match running.process.wait_for(LAST_WORDS) {
        Ok(Some(status)) => format!("the simulator ended ({status})"),
        Ok(None) => "the simulator closed its serial ports".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    if let Some(words) = running.own_words() {
        what.push_str(", it said:\n");
        what.push_str(&words);
    }
    Outcome::NoVerdict(what)
}

/// A machine that is gone does not read: its end is noticed elsewhere.
fn send(console: &mut TcpStream, bytes: &[u8]) {
    let _ = console.write_all(bytes);
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .context("starting a thread")
        .map(drop)
}

fn read_console(mut stream: TcpStream, events: Sender<Event>) -> Result<()> {
    spawn("console", move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if events.send(Event::Console(buffer[..count].to_vec())).is_err() {
                return;
            }
        }
        let _ = events.send(Event::ConsoleEnd);
    })
}

fn read_log(stream: TcpStream, events: Sender<Event>) -> Result<()> {
    spawn("system log", move || {
        let mut stream = BufReader::new(stream);
        let mut bytes = Vec::new();
        while let Ok(1..) = stream.read_until(b'\n', &mut bytes) {
            let line = String::from_utf8_lossy(&bytes)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            bytes.clear();
            if events.send(Event::Log(line)).is_err() {
                return;
            }
        }
        let _ = events.send(Event::LogEnd);
    })
}

fn read_lines(events: Sender<Event>) -> Result<()> {
    spawn("input", move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if events.send(Event::Line(line)).is_err() {
                return;
            }
        }
        let _ = events.send(Event::InputEnd);
    })
}

fn read_keys(events: Sender<Event>) -> Result<()> {
    spawn("keys", move || {
        let mut buffer = [0; 256];
        // Not `Stdin`: its buffer would hold keys back from nobody, but its lock would outlive the session.
        while let Ok(count @ 1..) = rustix::io::read(std::io::stdin(), &mut buffer[..]) {
            if events.send(Event::Keys(buffer[..count].to_vec())).is_err() {
                return;
            }
        }
        let _ = events.send(Event::InputEnd);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Group;
    use std::net::{Ipv4Addr, TcpListener};
    use std::process::Command;
    use umbra_description::supervisor::StopReason;

    /// The simulator's ends of the two serial lines.
    struct Played {
        console: TcpStream,
        log: TcpStream,
    }

    impl Played {
        fn log(&mut self, line: &str) {
            self.log.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        }

        /// What is typed, up to the end of a line.
        fn typed(&mut self) -> String {
            let mut line = Vec::new();
            let mut byte = [0];
            while !line.ends_with(b"\n") {
                self.console.read_exact(&mut byte).unwrap();
                line.push(byte[0]);
            }
            String::from_utf8(line).unwrap()
        }
    }

    struct Nothing;

    impl Show for Nothing {
        fn console(&mut self, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn log(&mut self, _: &str) -> Result<()> {
            Ok(())
        }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Plays a machine and follows it.
    fn play(name: &str, lines: &[&str], limit: Duration, machine: impl FnOnce(Played) + Send + 'static) -> Report {
        let folder = std::env::temp_dir().join(format!("umbra-session-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let ((console, their_console), (log, their_log)) = (pair(), pair());
        let process = Group::start(Command::new("sleep").arg("20")).unwrap();
        let player = std::thread::spawn(move || {
            machine(Played {
                console: their_console,
                log: their_log,
            })
        });
        let plan = Plan {
            input: Input::Lines(lines.iter().map(|line| (*line).to_owned()).collect()),
            prompt: r"^\$ $".to_owned(),
            timeout: Some(limit),
            until: Some("awaited$".to_owned()),
        };
        let running = Running::played(process, console, log, folder.clone());
        let report = follow(running, plan, &mut Nothing).unwrap();
        player.join().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        report
    }

    const LONG: Duration = Duration::from_secs(15);

    #[test]
    fn each_line_waits_for_a_prompt_of_its_own() {
        let report = play("dialogue", &["one", "two"], LONG, |mut machine| {
            machine.console.write_all(b"hello\r\n$ ").unwrap();
            assert_eq!(machine.typed(), "one\n");
            machine.console.write_all(b"one\r\nfirst answer\r\n").unwrap();
            machine
                .console
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            assert!(machine.console.read(&mut [0]).is_err(), "typed without a prompt");
            machine.console.set_read_timeout(None).unwrap();
            machine.console.write_all(b"$ ").unwrap();
            assert_eq!(machine.typed(), "two\n");
            machine.log("umbra: vm g stopped: power-off");
            machine.log("umbra: done status=0");
        });
        assert_eq!(report.outcome, Outcome::Clean);
        assert!(String::from_utf8_lossy(&report.console).contains("first answer"));
        assert_eq!(report.log.last().unwrap(), "umbra: done status=0");
    }

    #[test]
    fn a_machine_that_goes_silent_is_a_timeout() {
        let report = play("silent", &[], Duration::from_millis(300), |mut machine| {
            machine.console.write_all(b"last words").unwrap();
            std::thread::sleep(Duration::from_millis(900));
        });
        assert_eq!(report.outcome, Outcome::Timeout(Duration::from_millis(300)));
        assert_eq!(report.console, b"last words");
    }

    #[test]
    fn a_bad_stop_beats_the_silence_after_it() {
        let report = play("fault", &[], Duration::from_millis(300), |mut machine| {
            machine.log("umbra: vm g stopped: triple-fault rip=0x10");
            std::thread::sleep(Duration::from_millis(900));
        });
        assert!(matches!(
            report.outcome,
            Outcome::GuestStopped {
                reason: StopReason::TripleFault,
                ..
            }
        ));
    }

    #[test]
    fn an_awaited_line_ends_the_run_even_when_it_comes_in_pieces() {
        let report = play("until", &[], LONG, |mut machine| {
            machine.console.write_all(b"first\r\nwhat was awa").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            machine.console.write_all(b"ited").unwrap();
            std::thread::sleep(Duration::from_millis(600));
        });
        assert_eq!(report.outcome, Outcome::Seen);
    }

    #[test]
    fn a_simulator_that_ends_without_a_verdict_is_no_success() {
        let report = play("ended", &[], LONG, |mut machine| {
            machine.log("umbra: ready vms=1 ticks=1")
        });
        assert!(matches!(report.outcome, Outcome::NoVerdict(_)));
    }

    #[test]
    fn a_kernel_that_stops_is_noticed_at_once() {
        let report = play("kernel", &[], LONG, |mut machine| {
            machine.log("halting...");
            std::thread::sleep(Duration::from_millis(300));
        });
        assert!(matches!(report.outcome, Outcome::NoVerdict(text) if text.contains("halting")));
    }
}

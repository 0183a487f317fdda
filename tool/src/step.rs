// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a long step shown while it runs, and its output when it fails?

use crate::paths::Paths;
use crate::process::Group;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where steps are shown: a spinner with the step's last line of output on a terminal, plain lines elsewhere.
#[derive(Clone, Debug)]
pub struct Steps {
    logs: PathBuf,
    terminal: bool,
    quiet: bool,
}

impl Steps {
    /// Shows steps on standard error.
    pub fn new(paths: &Paths) -> Self {
        Self {
            logs: paths.logs(),
            terminal: std::io::stderr().is_terminal(),
            quiet: false,
        }
    }

    /// Steps that are shown by somebody else.
    pub fn quiet(&self) -> Self {
        Self {
            logs: self.logs.clone(),
            terminal: false,
            quiet: true,
        }
    }

    /// Runs `command`; its output goes to a log file and, if it fails, to standard error.
    pub fn run(&self, what: &str, command: &mut Command) -> Result<()> {
        self.capture(what, command).map(drop)
    }

    /// Like `run`, and returns the output (both streams, in order).
    pub fn capture(&self, what: &str, command: &mut Command) -> Result<String> {
        let (status, output) = self.attempt(what, command)?;
        if status.success() {
            return Ok(output);
        }
        show_output(&output);
        bail!(
            "{what} failed ({status}): {}\nits output is in {}",
            describe(command),
            self.log(what).display()
        )
    }

    /// Runs `command` and returns how it ended and its output, which is also kept in a log file.
    pub fn attempt(&self, what: &str, command: &mut Command) -> Result<(ExitStatus, String)> {
        let shown = self.begin(what);
        let (reader, writer) = std::io::pipe().context("a pipe for the output")?;
        command
            .stdout(writer.try_clone().context("a pipe for the output")?)
            .stderr(writer);
        let started = Group::start(command);
        // The command holds our copies of the pipe's write end: give them up, or reading would never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut group = started?;

        let mut output = String::new();
        let mut input = BufReader::new(reader);
        let mut bytes = Vec::new();
        while input.read_until(b'\n', &mut bytes).context("the output of a step")? > 0 {
            let text = String::from_utf8_lossy(&bytes);
            shown.progress(text.trim());
            output.push_str(&text);
            bytes.clear();
        }
        let status = group.wait()?;
        let written = std::fs::create_dir_all(&self.logs)
            .and_then(|()| std::fs::write(self.log(what), format!("$ {}\n{output}", describe(command))));
        written.with_context(|| format!("writing {}", self.log(what).display()))?;
        if status.success() {
            shown.done();
        } else {
            shown.failed();
        }
        Ok((status, output))
    }

    /// Where the output of the step `what` is kept.
    pub fn log(&self, what: &str) -> PathBuf {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        self.logs
            .join(format!("{}.log", what.chars().map(plain).collect::<String>()))
    }

    /// Runs `work`, showing `what` meanwhile; `work` may report lines.
    pub fn work<T>(&self, what: &str, work: impl FnOnce(&Shown) -> Result<T>) -> Result<T> {
        let shown = self.begin(what);
        let result = work(&shown);
        match &result {
            Ok(_) => shown.done(),
            Err(_) => shown.failed(),
        }
        result.with_context(|| what.to_owned())
    }

    fn begin(&self, what: &str) -> Shown {
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Shown {
            what: what.to_owned(),
            bar,
            quiet: self.quiet,
            started: Instant::now(),
        }
    }
}

/// A step that is being shown.
#[derive(Debug)]
pub struct Shown {
    what: String,
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
}

impl Shown {
    /// The latest that is known of the step.
    pub fn progress(&self, line: &str) {
        if let Some(bar) = &self.bar
            && !line.is_empty()
        {
            bar.set_message(line.to_owned());
        }
    }

    fn done(&self) {
        let took = self.started.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        // Steps that had nothing to do are not worth a line.
        if took > Duration::from_secs(2) && !self.quiet {
            eprintln!("umbra: {} ({:.1} s)", self.what, took.as_secs_f64());
        }
    }

    fn failed(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !self.quiet {
            eprintln!(
                "umbra: {} FAILED ({:.1} s)",
                self.what,
                self.started.elapsed().as_secs_f64()
            );
        }
    }
}

/// The command as a person would type it.
pub fn describe(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={}",
                name.to_string_lossy(),
                quote(&value.to_string_lossy())
            ));
        }
    }
    words.push(quote(&command.get_program().to_string_lossy()));
    words.extend(command.get_args().map(|arg| quote(&arg.to_string_lossy())));
    words.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The end of a failed step's output.
fn show_output(output: &str) {
    const LINES: usize = 200;
    let all: Vec<&str> = output.lines().collect();
    let first = all.len().saturating_sub(LINES);
    let mut stderr = std::io::stderr().lock();
    if first > 0 {
        let _ = writeln!(stderr, "  | ... {first} lines before");
    }
    for line in &all[first..] {
        let _ = writeln!(stderr, "  | {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> Steps {
        Steps {
            logs: std::env::temp_dir().join(format!("umbra-steps-{}", std::process::id())),
            terminal: false,
            quiet: false,
        }
    }

    #[test]
    fn output_of_both_streams_is_captured() {
        let mut command = Command::new("sh");
        let output = steps()
            .capture("test step", command.args(["-c", "echo one; echo two >&2"]))
            .unwrap();
        assert_eq!(output, "one\ntwo\n");
    }

    #[test]
    fn a_failed_step_names_command_and_log() {
        let mut command = Command::new("sh");
        let error = steps()
            .run("doomed step", command.args(["-c", "exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("sh -c 'exit 3'"),
            "{error}"
        );
        assert!(error.contains("doomed-step.log"), "{error}");
    }

    #[test]
    fn commands_are_quoted_for_the_shell() {
        let mut command = Command::new("tool");
        command.args(["it's", "a b", "plain=1", ""]).env("KEY", "a b");
        assert_eq!(describe(&command), r"KEY='a b' tool 'it'\''s' 'a b' plain=1 ''");
    }
}

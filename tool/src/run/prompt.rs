// SPDX-License-Identifier: MIT OR Apache-2.0
//! When does a guest wait for input? When the last line of its console looks like its prompt.

use anyhow::{Context, Result};
use regex::Regex;

/// A prompt for guests of which nothing is known: what shells and monitors usually end their prompts with.
pub const USUAL: &str = r"[#$>] ?$";

/// Longest line that is looked at, in bytes; the rest of a longer one is dropped from the front.
const LONGEST: usize = 4096;

/// Follows a console and says when a line can be typed.
#[derive(Debug)]
pub struct Watcher {
    prompt: Regex,
    line: Vec<u8>,
    escape: Escape,
    /// A prompt was shown and not yet used; a kernel message after it does not take it back.
    shown: bool,
    /// Lines that are complete count too; not for `USUAL`, which output may look like.
    whole_lines: bool,
}

/// Where in a terminal's escape sequence the console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Csi,
}

impl Watcher {
    /// For prompts that `pattern` matches; it sees the last line without escape sequences.
    pub fn new(pattern: &str) -> Result<Self> {
        let prompt = Regex::new(pattern).with_context(|| format!("the prompt pattern {pattern:?}"))?;
        Ok(Self {
            prompt,
            line: Vec::new(),
            escape: Escape::None,
            shown: false,
            whole_lines: pattern != USUAL,
        })
    }

    /// Takes in what the console printed.
    pub fn console(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match (self.escape, byte) {
                (Escape::Begun, b'[') => self.escape = Escape::Csi,
                (Escape::Begun, _) | (Escape::Csi, 0x40..=0x7e) => self.escape = Escape::None,
                (Escape::Csi, _) => {}
                (Escape::None, 0x1b) => self.escape = Escape::Begun,
                (Escape::None, b'\n' | b'\r') => {
                    // Guests that do not prompt say in a line of its own that they are ready.
                    if self.whole_lines {
                        self.look();
                    }
                    self.line.clear();
                }
                (Escape::None, _) => {
                    if self.line.len() >= LONGEST {
                        self.line.drain(..LONGEST / 2);
                    }
                    self.line.push(byte);
                }
            }
        }
        self.look();
    }

    fn look(&mut self) {
        self.shown |= !self.line.is_empty() && self.prompt.is_match(&String::from_utf8_lossy(&self.line));
    }

    /// Whether the guest has shown its prompt since a line was typed.
    pub fn at_prompt(&self) -> bool {
        self.shown
    }

    /// A line was typed: the prompt on the screen is used up.
    pub fn typed(&mut self) {
        self.line.clear();
        self.shown = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_used_once() {
        let mut watcher = Watcher::new(r"^/ # $").unwrap();
        watcher.console(b"Welcome\r\n/ # ");
        assert!(watcher.at_prompt());
        watcher.typed();
        assert!(!watcher.at_prompt());
        watcher.console(b"uname -a\r\nLinux x\r\n");
        assert!(!watcher.at_prompt());
        watcher.console(b"/ ");
        assert!(!watcher.at_prompt());
        watcher.console(b"# ");
        assert!(watcher.at_prompt());
    }

    #[test]
    fn a_guest_may_say_in_a_whole_line_that_it_is_ready() {
        let mut watcher = Watcher::new("^guest: type").unwrap();
        watcher.console(b"guest: type\r\n");
        assert!(watcher.at_prompt());
        let mut usual = Watcher::new(USUAL).unwrap();
        usual.console(b"Copyright (C) <someone>\r\n");
        assert!(!usual.at_prompt());
    }

    #[test]
    fn a_kernel_message_does_not_take_a_prompt_back() {
        let mut watcher = Watcher::new(r"^/ # $").unwrap();
        watcher.console(b"/ # ");
        watcher.console(b"[    1.2] random: crng init done\r\n");
        assert!(watcher.at_prompt());
        watcher.typed();
        assert!(!watcher.at_prompt());
    }

    #[test]
    fn escape_sequences_do_not_count() {
        let mut watcher = Watcher::new(r"^/ # $").unwrap();
        // busybox asks for the cursor position behind its prompt; it arrives in pieces.
        for piece in [&b"\x1b[1;32m/"[..], b"\x1b", b"[0m # \x1b[", b"6n"] {
            watcher.console(piece);
        }
        assert!(watcher.at_prompt());
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let mut watcher = Watcher::new(USUAL).unwrap();
        watcher.console(&vec![b'x'; 3 * LONGEST]);
        assert!(watcher.line.len() <= LONGEST);
        watcher.console(b"$ ");
        assert!(watcher.at_prompt());
    }

    #[test]
    fn a_bad_pattern_is_quoted() {
        assert!(Watcher::new("(").unwrap_err().to_string().contains("\"(\""));
    }
}

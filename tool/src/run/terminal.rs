// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is the terminal put into raw mode, and restored whatever happens?

use crate::cleanup;
use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::io::IsTerminal;

/// The terminal is raw as long as this lives; signals and panics restore it too (see `cleanup`).
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Every key goes to the guest, also Ctrl-C.
    pub fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("the terminal's settings")?;
        cleanup::remember_terminal(before.clone());
        let mut raw = before;
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw).context("the terminal's settings")?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        cleanup::restore_terminal();
    }
}

/// Whether a person sits there: keys come from a terminal and the console goes to one.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

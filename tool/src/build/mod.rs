// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is built, from which sources, in which order?

pub mod description;
pub mod image;
pub mod kernel;
pub mod program;
pub mod spec;

pub use crate::paths::write_if_changed;
pub use kernel::Kernel;

use crate::paths::Paths;
use crate::step::Steps;
use anyhow::{Context, Result};
use std::fs::{File, TryLockError};

/// What every build step needs.
#[derive(Clone, Debug)]
pub struct Builder {
    /// Where everything is.
    pub paths: Paths,
    /// Where steps are shown.
    pub steps: Steps,
}

impl Builder {
    /// For the project at `paths`.
    pub fn new(paths: Paths) -> Self {
        let steps = Steps::new(&paths);
        Self { paths, steps }
    }

    /// The same, for work whose steps somebody else shows.
    pub fn quiet(&self) -> Self {
        Self {
            paths: self.paths.clone(),
            steps: self.steps.quiet(),
        }
    }

    /// Waits until nobody else builds in this project folder: CMake, ninja and what is read after cargo has ended do not
    /// expect another command there. The turn ends when the result is dropped.
    pub fn turn(&self) -> Result<Turn> {
        let path = self.paths.target().join("umbra/build.lock");
        let opened = std::fs::create_dir_all(self.paths.target().join("umbra")).and_then(|()| File::create(&path));
        let file = opened.with_context(|| format!("writing {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("umbra: another command builds in this folder: waiting for it");
                file.lock().with_context(|| format!("locking {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        Ok(Turn(file))
    }
}

/// The right to build, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Turn(#[expect(dead_code, reason = "the lock ends when the file is closed")] File);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn one_builds_at_a_time() {
        let root = std::env::temp_dir().join(format!("umbra-turn-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let builder = Builder::new(Paths::at(&root).unwrap());
        let first = builder.turn().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _turn = builder.turn().unwrap();
                assert!(over.load(Ordering::SeqCst), "two turns at once");
            });
            std::thread::sleep(Duration::from_millis(200));
            over.store(true, Ordering::SeqCst);
            drop(first);
            second.join().unwrap();
        });
        std::fs::remove_dir_all(root).unwrap();
    }
}

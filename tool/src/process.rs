// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are child processes started so that none outlives the tool?

use crate::cleanup;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A child that leads its own process group; the group is killed when this is dropped, on signals and on panics.
#[derive(Debug)]
pub struct Group {
    child: Child,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` without standard input.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_on(command, Stdio::null())
    }

    /// Starts `command` with that as its standard input.
    pub fn start_on(command: &mut Command, input: Stdio) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(input)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}: is it installed? (./umbra doctor)"))?;
        cleanup::watch_group(child.id().cast_signed());
        Ok(Self { child, status: None })
    }

    /// The process id, which is also the group's.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("waiting for a child process")?;
        }
        Ok(self.status)
    }

    /// Waits until it has ended, at most `limit`.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.poll()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = self.child.wait().context("waiting for a child process")?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.child.id().cast_signed();
        // The leader is not reaped before this unless it has ended by itself, so the id is still ours; its own
        // children may still run.
        if self.status.is_none() {
            cleanup::end_group(leader);
            let _ = self.child.wait();
        }
        cleanup::forget_group(leader);
    }
}

/// A command that the kernel kills when the thread that starts it ends, even by SIGKILL.
/// Uses util-linux's `setpriv` where there is one.
pub fn dies_with_us(program: &str) -> Command {
    if find_program("setpriv").is_some() {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    } else {
        Command::new(program)
    }
}

/// `work` on each of `items`, on all processors; the results in the same order, or the first error.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = work(index, item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The file that `name` would run, by `PATH`.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_group_ends_its_grandchildren() {
        let file = std::env::temp_dir().join(format!("umbra-group-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("sleep 60 & echo $! >{}; wait", file.display())]);
        let group = Group::start(&mut command).unwrap();
        let pid = loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Ok(pid) = text.trim().parse::<i32>() {
                break pid;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        drop(group);
        let end = Instant::now() + Duration::from_secs(5);
        // A killed process whose new parent does not reap it stays as a zombie: that is ended as well.
        let running = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while running() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!running());
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn wait_for_gives_up_and_then_sees_the_status() {
        let mut group = Group::start(Command::new("sleep").arg("0.3")).unwrap();
        assert!(group.wait_for(Duration::from_millis(10)).unwrap().is_none());
        assert!(group.wait().unwrap().success());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Group::start(&mut Command::new("umbra-no-such-program")).unwrap_err();
        assert!(format!("{error:#}").contains("umbra-no-such-program"));
    }

    #[test]
    fn results_keep_their_order_and_errors_win() {
        let items: Vec<u32> = (0..50).collect();
        let doubled = in_parallel(&items, |_, item| Ok(item * 2)).unwrap();
        assert!(doubled.iter().zip(&items).all(|(double, item)| *double == item * 2));
        let failed = in_parallel(
            &items,
            |_, item| if *item == 7 { anyhow::bail!("seven") } else { Ok(()) },
        );
        assert_eq!(failed.unwrap_err().to_string(), "seven");
    }
}

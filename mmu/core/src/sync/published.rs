// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a table read without waiting while it is replaced? There are two copies, and an index says which one is out
//! (the role of SRCU and `rcu_assign_pointer`).
//!
//! ```text
//! reader                                  writer
//! ------                                  ------
//! i = active                              change the copy that is not active
//! try to enter copy i as a reader         publish: active = that copy
//! is active still i?                      synchronize: enter the other copy as its writer:
//! read                                            its last reader has left
//! ```
//! A reader that entered copy `i` too late sees the new index, because the writer has been inside that copy between;
//! a reader that entered in time is waited for. A reader that cannot enter copy `i` goes to the other one at once.

use super::atomic::{AtomicUsize, Ordering};
use super::lock::{ReadGuard, RwLock, WriteGuard};
use super::relax;
use core::ops::{Deref, DerefMut};

/// Two copies of a table, one of them published. Writers must keep each other out (by `slots_lock`).
#[derive(Debug)]
pub struct Published<T> {
    copies: [RwLock<T>; 2],
    active: AtomicUsize,
}

/// A read-side section: what it shows does not change until it ends.
#[derive(Debug)]
#[must_use = "the section ends where this is dropped"]
pub struct Reading<'a, T>(ReadGuard<'a, T>);

/// The copy that nobody reads, to be changed. Dropped without [`Edit::publish`], the changes stay there, unseen.
#[derive(Debug)]
pub struct Edit<'a, T> {
    published: &'a Published<T>,
    old: ReadGuard<'a, T>,
    new: WriteGuard<'a, T>,
    at: usize,
}

/// A table was published, but there may be readers of the one before.
#[derive(Debug)]
#[must_use = "readers of the table before may go on until Published::synchronize"]
pub struct Unsynchronized {
    /// The copy that is not active any more.
    old: usize,
}

impl<T> Published<T> {
    /// Publishes `first`; `second` is the copy for the first change.
    pub fn new(first: T, second: T) -> Self {
        Self {
            copies: [RwLock::new(first), RwLock::new(second)],
            active: AtomicUsize::new(0),
        }
    }

    /// Reads the published table. Never waits: when a copy cannot be entered, the other one has been published.
    #[inline]
    pub fn read(&self) -> Reading<'_, T> {
        loop {
            let at = self.active.load(Ordering::Acquire);
            if let Some(guard) = self.copies[at & 1].try_read()
                && self.active.load(Ordering::Acquire) == at
            {
                return Reading(guard);
            }
            relax();
        }
    }

    /// Both copies, the one that is not published to be changed. The writer before has [synchronized]
    /// (Published::synchronize); should it have forgotten, this waits for the readers that it left.
    pub fn edit(&self) -> Edit<'_, T> {
        let at = self.active.load(Ordering::Relaxed) & 1;
        Edit {
            published: self,
            old: self.copies[at].read(),
            new: self.copies[at ^ 1].write(),
            at: at ^ 1,
        }
    }

    /// Waits until the last reader of the table before has left (KVM: `synchronize_srcu`). Must not be called in a
    /// read-side section, which would wait for itself.
    pub fn synchronize(&self, unsynchronized: Unsynchronized) {
        drop(self.copies[unsynchronized.old].write());
    }
}

impl<T> Edit<'_, T> {
    /// The table that is published and the one that will be.
    pub fn split(&mut self) -> (&T, &mut T) {
        (&self.old, &mut self.new)
    }

    /// Publishes the changed copy: sections that begin after this see it.
    pub fn publish(self) -> Unsynchronized {
        let Self {
            published,
            old,
            new,
            at,
        } = self;
        // Readers that see the index can enter.
        drop((old, new));
        published.active.store(at, Ordering::Release);
        Unsynchronized { old: at ^ 1 }
    }
}

impl<T> Deref for Reading<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Deref for Edit<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.new
    }
}

impl<T> DerefMut for Edit<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.new
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is a lock? A spin lock of the machine, or a model checker's lock, with the same few methods.
//!
//! Sections are short and nothing in them sleeps, so waiting is spinning. A lock that is free costs one atomic exchange
//! to take, and one store (one exchange for a reader) to leave.

pub use imp::{Mutex, MutexGuard, ReadGuard, RwLock, WriteGuard};

/// Locks of the machine.
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod imp {
    use crate::sync::atomic::{AtomicU32, Ordering};
    use crate::sync::relax;

    /// Proof that a [`Mutex`] is held.
    pub type MutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;
    /// Proof that an [`RwLock`] is held for reading.
    pub type ReadGuard<'a, T> = spin::RwLockReadGuard<'a, T>;
    /// Proof that an [`RwLock`] is held for writing.
    pub type WriteGuard<'a, T> = spin::RwLockWriteGuard<'a, T>;

    /// A lock with one holder. Waiters get it in no particular order.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(spin::mutex::SpinMutex<T>);

    impl<T> Mutex<T> {
        /// A free lock around `value`.
        pub const fn new(value: T) -> Self {
            Self(spin::mutex::SpinMutex::new(value))
        }
        /// Waits until the lock is free and takes it.
        #[inline]
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock()
        }
        /// Takes the lock if it is free.
        #[inline]
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock()
        }
        /// The value; nobody else can have the lock.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut()
        }
    }

    /// A lock with many readers or one writer, in phases, so that neither side starves:
    /// - a writer announces itself; readers that come after that wait, so it waits only for those that are inside;
    /// - readers that wait are counted; a writer that comes after that lets them in before it announces itself, so
    ///   they wait only for writers that were announced before them.
    #[derive(Debug, Default)]
    pub struct RwLock<T> {
        lock: spin::RwLock<T>,
        /// Writers that are announced and not yet inside.
        writers: AtomicU32,
        /// Readers that wait for writers.
        readers: AtomicU32,
    }

    impl<T> RwLock<T> {
        /// A free lock around `value`.
        pub const fn new(value: T) -> Self {
            Self {
                lock: spin::RwLock::new(value),
                writers: AtomicU32::new(0),
                readers: AtomicU32::new(0),
            }
        }

        /// Waits until no writer is inside or announced, and enters as a reader. A thread that is a reader already must
        /// not come again: it would wait for a writer that waits for it.
        #[inline(always)]
        pub fn read(&self) -> ReadGuard<'_, T> {
            if self.writers.load(Ordering::Relaxed) == 0
                && let Some(guard) = self.lock.try_read()
            {
                return guard;
            }
            self.read_after_writers()
        }

        #[cold]
        fn read_after_writers(&self) -> ReadGuard<'_, T> {
            self.readers.fetch_add(1, Ordering::Relaxed);
            let guard = loop {
                if self.writers.load(Ordering::Relaxed) == 0
                    && let Some(guard) = self.lock.try_read()
                {
                    break guard;
                }
                relax();
            };
            self.readers.fetch_sub(1, Ordering::Relaxed);
            guard
        }

        /// Waits until nobody is inside, and enters as the writer.
        #[inline]
        pub fn write(&self) -> WriteGuard<'_, T> {
            if self.readers.load(Ordering::Relaxed) == 0
                && let Some(guard) = self.lock.try_write()
            {
                return guard;
            }
            self.write_after_readers()
        }

        #[cold]
        fn write_after_readers(&self) -> WriteGuard<'_, T> {
            while self.readers.load(Ordering::Relaxed) != 0 {
                relax();
            }
            self.writers.fetch_add(1, Ordering::Relaxed);
            let guard = self.lock.write();
            self.writers.fetch_sub(1, Ordering::Relaxed);
            guard
        }

        /// Enters as a reader unless a writer is inside.
        #[inline]
        pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
            self.lock.try_read()
        }
        /// Enters as the writer if nobody is inside.
        #[inline]
        pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
            self.lock.try_write()
        }
        /// The value; nobody else can be inside.
        pub fn get_mut(&mut self) -> &mut T {
            self.lock.get_mut()
        }
    }
}

/// Locks of a model checker: each of them is a point where another thread may go on.
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod imp {
    #[cfg(feature = "loom")]
    use loom::sync as checker;
    #[cfg(not(feature = "loom"))]
    use shuttle::sync as checker;

    /// Proof that a [`Mutex`] is held.
    pub type MutexGuard<'a, T> = checker::MutexGuard<'a, T>;
    /// Proof that an [`RwLock`] is held for reading.
    pub type ReadGuard<'a, T> = checker::RwLockReadGuard<'a, T>;
    /// Proof that an [`RwLock`] is held for writing.
    pub type WriteGuard<'a, T> = checker::RwLockWriteGuard<'a, T>;

    // A panic ends the model, so no lock is ever found poisoned.
    const POISONED: &str = "a thread of the model panicked while it held the lock";

    /// A lock with one holder.
    #[derive(Debug)]
    pub struct Mutex<T>(checker::Mutex<T>);

    impl<T> Mutex<T> {
        /// A free lock around `value`.
        pub fn new(value: T) -> Self {
            Self(checker::Mutex::new(value))
        }
        /// Waits until the lock is free and takes it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect(POISONED)
        }
        /// Takes the lock if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
        /// The value; nobody else can have the lock.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().expect(POISONED)
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    /// A lock with many readers or one writer.
    #[derive(Debug)]
    pub struct RwLock<T>(checker::RwLock<T>);

    impl<T> RwLock<T> {
        /// A free lock around `value`.
        pub fn new(value: T) -> Self {
            Self(checker::RwLock::new(value))
        }
        /// Waits until no writer is inside, and enters as a reader.
        pub fn read(&self) -> ReadGuard<'_, T> {
            self.0.read().expect(POISONED)
        }
        /// Waits until nobody is inside, and enters as the writer.
        pub fn write(&self) -> WriteGuard<'_, T> {
            self.0.write().expect(POISONED)
        }
        /// Enters as a reader unless a writer is inside.
        pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
            self.0.try_read().ok()
        }
        /// Enters as the writer if nobody is inside.
        pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
            self.0.try_write().ok()
        }
        /// The value; nobody else can be inside.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().expect(POISONED)
        }
    }

    impl<T: Default> Default for RwLock<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }
}

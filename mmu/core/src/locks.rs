// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may hold which lock, in what order? The order is in the types: a wrong one does not compile.
//!
//! ```text
//! slots_lock ──────────▶ slots_arch_lock ─┐
//!     │                        ▲          │
//!     ▼                        │          ├─▶ mmu_lock ─▶ FreeLeaf: effects, the lists of tables ─▶ LastLeaf: trace
//! read-side section (srcu) ────┴──────────┤
//! active invalidation ─▶ its section ─────┘
//! ```
//! Every lock may be skipped. No leaf lock is taken inside a leaf lock, but for the last.
//! A slot change waits for the readers of the table before (srcu), and for active invalidations: neither of those may
//! take `slots_lock`, and only the first may take `slots_arch_lock`, which is left before the readers are waited for.
//!
//! [`Held`] is where a thread is in that order. A public operation of the MMU begins with [`Held::entry`], and each lock
//! wants a `&mut Held<..>` of a place that comes before it; its guard keeps that borrowed and lends the next one. So a
//! thread has one `Held` that it can use, the innermost. All of that is gone at run time: guards are the locks' own,
//! and `Held` has no size.
//!
//! ```
//! use umbra_mmu_core::locks::{Held, LeafLock, MmuLock, SlotsArchLock, SlotsLock, Srcu};
//! let (slots_lock, arch, srcu) = (SlotsLock::new(0), SlotsArchLock::new(()), Srcu::new([1], [1]));
//! let (mmu_lock, pages, effects) = (MmuLock::new(7), LeafLock::<_>::new(3), LeafLock::<_>::new(0));
//!
//! // A fault: slots are read, mmu_lock is read, one leaf after the other.
//! let mut held = Held::entry();
//! let mut section = srcu.read(&mut held);
//! let (slots, held) = section.split();
//! let mut mmu = mmu_lock.read(held);
//! let (tree, held) = mmu.split();
//! *pages.lock(held) += *tree + slots[0];
//! *effects.lock(held) += 1;
//! drop(mmu);
//! drop(section);
//!
//! // A slot change: the table is published under both locks, and readers are waited for under the first.
//! let mut held = Held::entry();
//! let mut slots = slots_lock.lock(&mut held);
//! let mut arch = arch.lock(slots.held());
//! let mut edit = srcu.edit(arch.held());
//! edit[0] = 2;
//! let unsynchronized = edit.publish();
//! drop(arch);
//! srcu.synchronize(unsynchronized, slots.held());
//! ```
//!
//! `slots_lock` inside a read-side section would wait for itself:
//! ```compile_fail,E0277
//! # use umbra_mmu_core::locks::*;
//! # let (srcu, slots_lock) = (Srcu::new(0, 0), SlotsLock::new(()));
//! # let mut held = Held::entry();
//! let mut section = srcu.read(&mut held);
//! slots_lock.lock(section.held());
//! ```
//! and so would one who waits for readers:
//! ```compile_fail,E0308
//! # use umbra_mmu_core::locks::*;
//! # let (srcu, slots_lock, arch) = (Srcu::new(0, 0), SlotsLock::new(()), SlotsArchLock::new(()));
//! # let mut held = Held::entry();
//! # let mut slots = slots_lock.lock(&mut held);
//! # let mut arch = arch.lock(slots.held());
//! # let unsynchronized = srcu.edit(arch.held()).publish();
//! srcu.synchronize(unsynchronized, arch.held()); // slots_arch_lock is held: a reader may wait for it
//! ```
//! `mmu_lock` inside a leaf lock:
//! ```compile_fail,E0277
//! # use umbra_mmu_core::locks::*;
//! # let (mmu_lock, leaf) = (MmuLock::new(()), LeafLock::<_>::new(()));
//! # let mut held = Held::entry();
//! let mut guard = leaf.lock(&mut held);
//! mmu_lock.read(guard.held());
//! ```
//! A leaf in a leaf:
//! ```compile_fail,E0277
//! # use umbra_mmu_core::locks::*;
//! # let (one, other) = (LeafLock::<_>::new(()), LeafLock::<_>::new(()));
//! # let mut held = Held::entry();
//! let mut guard = one.lock(&mut held);
//! other.lock(guard.held());
//! ```
//! `mmu_lock` twice, and `slots_lock` inside it:
//! ```compile_fail,E0277
//! # use umbra_mmu_core::locks::*;
//! # let mmu_lock = MmuLock::new(());
//! # let mut held = Held::entry();
//! let mut mmu = mmu_lock.read(&mut held);
//! mmu_lock.read(mmu.held());
//! ```
//! ```compile_fail,E0277
//! # use umbra_mmu_core::locks::*;
//! # let (mmu_lock, slots_lock) = (MmuLock::new(()), SlotsLock::new(()));
//! # let mut held = Held::entry();
//! let mut mmu = mmu_lock.write(&mut held);
//! slots_lock.lock(mmu.held());
//! ```
//! An outer place while an inner lock is held:
//! ```compile_fail,E0499
//! # use umbra_mmu_core::locks::*;
//! # let (mmu_lock, slots_lock) = (MmuLock::new(()), SlotsLock::new(()));
//! # let mut held = Held::entry();
//! let mut mmu = mmu_lock.read(&mut held);
//! slots_lock.lock(&mut held);
//! mmu.held();
//! ```
// REQ: LK-1

use crate::sync::{Edit, Mutex, MutexGuard, Published, ReadGuard, Reading, RwLock, Unsynchronized, WriteGuard};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

pub mod names;

mod sealed {
    pub trait Sealed {}
}

/// A place in the lock order.
pub trait Place: sealed::Sealed {}

/// `L` may be taken at this place.
#[diagnostic::on_unimplemented(message = "the lock order forbids `{L}` inside `{Self}`")]
pub trait Before<L>: Place {}

macro_rules! places {
    ($($(#[$doc:meta])* $place:ident before [$($after:ident),*];)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub enum $place {}
            impl sealed::Sealed for $place {}
            impl Place for $place {}
            $(impl Before<$after> for $place {})*
        )*
    };
}

places! {
    /// No lock is held.
    Unlocked before [InSlots, InSlotsArch, InMmu, FreeLeaf, LastLeaf];
    /// Inside `slots_lock`.
    InSlots before [InSlotsArch, InMmu, FreeLeaf, LastLeaf];
    /// Inside `slots_arch_lock`.
    InSlotsArch before [InMmu, FreeLeaf, LastLeaf];
    /// Inside a read-side section of the slot table.
    InSection before [InSlotsArch, InMmu, FreeLeaf, LastLeaf];
    /// Between start and end of an invalidation. Slot changes wait for that with both of their locks held.
    Invalidating before [InMmu, FreeLeaf, LastLeaf];
    /// Inside a read-side section, between start and end of an invalidation.
    InvalidatingSection before [InMmu, FreeLeaf, LastLeaf];
    /// Inside `mmu_lock`, for reading or writing.
    InMmu before [FreeLeaf, LastLeaf];
    /// Inside a leaf lock that needs no other lock.
    FreeLeaf before [LastLeaf];
    /// Inside the last lock of all.
    LastLeaf before [];
}

/// A place from which the slot table can be read.
#[diagnostic::on_unimplemented(message = "the lock order forbids a read-side section inside `{Self}`")]
pub trait ReadsSlots: Place {
    /// The place inside that read-side section.
    type Section: Place;
}
impl ReadsSlots for Unlocked {
    type Section = InSection;
}
impl ReadsSlots for InSlots {
    type Section = InSection;
}
impl ReadsSlots for Invalidating {
    type Section = InvalidatingSection;
}

/// This thread is at the place `P` of the lock order. Guards lend it; it cannot be copied.
#[derive(Debug)]
pub struct Held<P: Place>(PhantomData<P>);

impl<P: Place> Held<P> {
    const NEW: Self = Self(PhantomData);
}

impl Held<Unlocked> {
    /// This thread holds nothing: at the beginning of a public operation, and nowhere else.
    #[inline]
    pub const fn entry() -> Self {
        Self::NEW
    }

    /// The place between start and end of an invalidation, whose count is up for as long as this is used.
    #[inline]
    pub fn invalidating(&mut self) -> Held<Invalidating> {
        Held::NEW
    }
}

/// Proof that `mmu_lock` is held for writing: nobody else changes anything, but for the lock-free repairs of faults.
#[derive(Debug)]
pub struct MmuWrite(Held<InMmu>);

impl Deref for MmuWrite {
    type Target = Held<InMmu>;
    #[inline]
    fn deref(&self) -> &Held<InMmu> {
        &self.0
    }
}

impl DerefMut for MmuWrite {
    #[inline]
    fn deref_mut(&mut self) -> &mut Held<InMmu> {
        &mut self.0
    }
}

/// Declares a guard: a lock's own guard, and the place inside.
macro_rules! guard {
    ($(#[$doc:meta])* $name:ident $(<$param:ident: $bound:ident = $default:ident>)?: $inner:ident, $held:ty) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[must_use = "the lock is free again where this is dropped"]
        pub struct $name<'a, T $(, $param: $bound = $default)?> {
            inner: $inner<'a, T>,
            held: $held,
        }
        impl<T $(, $param: $bound)?> $name<'_, T $(, $param)?> {
            /// The place inside this lock, for locks that come after it.
            #[inline]
            pub fn held(&mut self) -> &mut $held {
                &mut self.held
            }
        }
        impl<T $(, $param: $bound)?> Deref for $name<'_, T $(, $param)?> {
            type Target = T;
            #[inline]
            fn deref(&self) -> &T {
                &self.inner
            }
        }
    };
    (mut $(#[$doc:meta])* $name:ident $(<$param:ident: $bound:ident = $default:ident>)?: $inner:ident, $held:ty) => {
        guard!($(#[$doc])* $name $(<$param: $bound = $default>)?: $inner, $held);
        impl<T $(, $param: $bound)?> $name<'_, T $(, $param)?> {
            /// What is locked, and the place inside.
            #[inline]
            pub fn split(&mut self) -> (&mut T, &mut $held) {
                (&mut self.inner, &mut self.held)
            }
        }
        impl<T $(, $param: $bound)?> DerefMut for $name<'_, T $(, $param)?> {
            #[inline]
            fn deref_mut(&mut self) -> &mut T {
                &mut self.inner
            }
        }
    };
    (ref $(#[$doc:meta])* $name:ident $(<$param:ident: $bound:ident = $default:ident>)?: $inner:ident, $held:ty) => {
        guard!($(#[$doc])* $name $(<$param: $bound = $default>)?: $inner, $held);
        impl<T $(, $param: $bound)?> $name<'_, T $(, $param)?> {
            /// What is locked, and the place inside.
            #[inline]
            pub fn split(&mut self) -> (&T, &mut $held) {
                (&self.inner, &mut self.held)
            }
        }
    };
}

guard! { mut
    /// `slots_lock` is held.
    SlotsGuard: MutexGuard, Held<InSlots>
}
guard! { mut
    /// `slots_arch_lock` is held.
    SlotsArchGuard: MutexGuard, Held<InSlotsArch>
}
guard! { ref
    /// A read-side section of the slot table.
    SrcuRead<S: Place = InSection>: Reading, Held<S>
}
guard! { ref
    /// `mmu_lock` is held for reading.
    MmuReadGuard: ReadGuard, Held<InMmu>
}
guard! { mut
    /// `mmu_lock` is held for writing.
    MmuWriteGuard: WriteGuard, MmuWrite
}
guard! { mut
    /// A leaf lock is held.
    LeafGuard<K: Place = FreeLeaf>: MutexGuard, Held<K>
}

/// `slots_lock`: who holds it changes the slots. Waits for nobody but another change.
#[derive(Debug, Default)]
pub struct SlotsLock<T>(Mutex<T>);

impl<T> SlotsLock<T> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock<'a, P: Before<InSlots>>(&'a self, _: &'a mut Held<P>) -> SlotsGuard<'a, T> {
        SlotsGuard {
            inner: self.0.lock(),
            held: Held::NEW,
        }
    }
}

/// `slots_arch_lock`: who holds it changes what the MMU adds to a slot (reverse maps, large-page counts), and may do so in
/// a read-side section.
#[derive(Debug, Default)]
pub struct SlotsArchLock<T>(Mutex<T>);

impl<T> SlotsArchLock<T> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock<'a, P: Before<InSlotsArch>>(&'a self, _: &'a mut Held<P>) -> SlotsArchGuard<'a, T> {
        SlotsArchGuard {
            inner: self.0.lock(),
            held: Held::NEW,
        }
    }
}

/// The published slot table (KVM: `kvm->srcu` and `kvm->memslots`).
#[derive(Debug)]
pub struct Srcu<T>(Published<T>);

impl<T> Srcu<T> {
    /// Publishes `first`; `second` is the copy for the first change.
    pub fn new(first: T, second: T) -> Self {
        Self(Published::new(first, second))
    }

    /// Begins a read-side section; never waits.
    #[inline]
    pub fn read<'a, P: ReadsSlots>(&'a self, _: &'a mut Held<P>) -> SrcuRead<'a, T, P::Section> {
        SrcuRead {
            inner: self.0.read(),
            held: Held::NEW,
        }
    }

    /// The copy to change, under `slots_lock` and `slots_arch_lock`.
    pub fn edit<'a>(&'a self, _: &'a mut Held<InSlotsArch>) -> Edit<'a, T> {
        self.0.edit()
    }

    /// Waits for the readers of the table before, under `slots_lock` alone: a reader may wait for `slots_arch_lock`.
    pub fn synchronize(&self, unsynchronized: Unsynchronized, _: &mut Held<InSlots>) {
        self.0.synchronize(unsynchronized);
    }
}

/// `mmu_lock`: sptes change under it, for faults in EPT mode under its read side.
///
/// A writer waits for readers that are inside and for writers before it; readers that come later wait for it. It lets
/// readers in that waited before it came, so a fault waits for one batch of a long zap at most. See [`RwLock`].
#[derive(Debug, Default)]
pub struct MmuLock<T>(RwLock<T>);

impl<T> MmuLock<T> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    /// Enters as a reader.
    #[inline]
    pub fn read<'a, P: Before<InMmu>>(&'a self, _: &'a mut Held<P>) -> MmuReadGuard<'a, T> {
        MmuReadGuard {
            inner: self.0.read(),
            held: Held::NEW,
        }
    }

    /// Enters as the writer.
    #[inline]
    pub fn write<'a, P: Before<InMmu>>(&'a self, _: &'a mut Held<P>) -> MmuWriteGuard<'a, T> {
        MmuWriteGuard {
            inner: self.0.write(),
            held: MmuWrite(Held::NEW),
        }
    }

    /// What is locked; nobody else can be inside.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// A leaf lock. `K` says where it may be taken: [`FreeLeaf`] anywhere but inside a leaf lock, [`LastLeaf`] there too.
#[derive(Debug)]
pub struct LeafLock<T, K: Place = FreeLeaf> {
    lock: Mutex<T>,
    kind: PhantomData<fn() -> K>,
}

impl<T, K: Place> LeafLock<T, K> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        Self {
            lock: Mutex::new(value),
            kind: PhantomData,
        }
    }

    /// Takes the lock.
    #[inline]
    pub fn lock<'a, P: Before<K>>(&'a self, _: &'a mut Held<P>) -> LeafGuard<'a, T, K> {
        LeafGuard {
            inner: self.lock.lock(),
            held: Held::NEW,
        }
    }

    /// What is locked; nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut()
    }
}

impl<T: Default, K: Place> Default for LeafLock<T, K> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long does something take?

/// Ticks that `f` takes: the least of several runs.
pub fn ticks(f: impl FnMut()) -> u64 {
    ticks_after(|| {}, f)
}

/// Ticks that `f` takes, each time after `before`.
pub fn ticks_after(mut before: impl FnMut(), mut f: impl FnMut()) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..16 {
        before();
        let start = timestamp();
        f();
        least = least.min(timestamp() - start);
    }
    least
}

/// The time stamp counter: ticks since power-on.
pub fn timestamp() -> u64 {
    // SAFETY: reads a counter, which user programs may.
    unsafe { core::arch::x86_64::_rdtsc() }
}

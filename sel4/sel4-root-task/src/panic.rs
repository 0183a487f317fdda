// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens when an invariant of ours breaks?

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Prints the place and the message, then faults, so that whoever supervises this thread notices.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // A panic inside the sink must not print again.
    if !PANICKED.swap(true, Ordering::Relaxed) {
        match info.location() {
            Some(place) => {
                crate::logger::print(format_args!(
                    "panic: {} ({}:{})",
                    info.message(),
                    place.file(),
                    place.line()
                ));
            }
            None => crate::logger::print(format_args!("panic: {}", info.message())),
        }
    }
    fault()
}

/// Ends the thread by an invalid opcode.
fn fault() -> ! {
    // SAFETY: ud2 raises an exception and does nothing else; the thread never runs again.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// Needed by the precompiled core library, never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    fault()
}

/// Needed by the precompiled core library, never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    fault()
}

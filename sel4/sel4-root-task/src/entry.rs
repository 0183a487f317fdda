// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens between the first instruction and `main`?

pub use crate::stack::Region;
pub use core::arch::naked_asm;
pub use sel4::{BootInfo, BootInfoPtr};

use crate::heap::add_heap;

/// Declares the entry of a root task; see the attribute [`crate::root_task`].
#[macro_export]
macro_rules! declare_root_task {
    (main = $main:path, $(stack_size = $stack:expr)? $(,)?) => {
        $crate::declare_root_task! { @ $main, [$($stack)?], [] }
    };
    (main = $main:path, heap_size = $heap:expr $(,)?) => {
        $crate::declare_root_task! { @ $main, [], [$heap] }
    };
    (main = $main:path, stack_size = $stack:expr, heap_size = $heap:expr $(,)?) => {
        $crate::declare_root_task! { @ $main, [$stack], [$heap] }
    };
    (@ $main:path, [$($stack:expr)?], [$($heap:expr)?]) => {
        const _: () = {
            use $crate::entry::{BootInfo, BootInfoPtr, Region, naked_asm, pages, start_root_task};

            // The lowest page of the stack is its guard: it is unmapped before main.
            const STACK_PAGES: usize = 1 + pages(0 $(+ $stack)?, 0x10000);
            const HEAP_PAGES: usize = pages(0 $(+ $heap)?, 0);
            static STACK: Region<STACK_PAGES> = Region::new();
            static HEAP: Region<HEAP_PAGES> = Region::new();

            extern "C" fn rust_start(bootinfo: *const BootInfo) -> ! {
                // SAFETY: the kernel passes the boot information to _start, which calls this once, on STACK.
                let bootinfo = unsafe { start_root_task(bootinfo, STACK.start(), HEAP.start(), HEAP.len()) };
                let main: fn(&BootInfoPtr) -> ! = $main;
                main(&bootinfo)
            }

            /// The kernel starts the root task here, with the boot information in rdi and no stack.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn _start() -> ! {
                naked_asm!(
                    "lea rsp, [rip + {stack} + {size}]",
                    "xor ebp, ebp",
                    "call {main}",
                    "ud2",
                    stack = sym STACK,
                    size = const STACK_PAGES * 4096,
                    main = sym rust_start,
                )
            }
        };
    };
}

/// Declares the entry of a component.
///
/// ```ignore
/// declare_component! { main = main }
/// fn main(config: &'static [u8]) -> ! { .. }
/// ```
///
/// The loader starts it with the address and length of its configuration in rdi and rsi, the address of its IPC buffer in
/// rdx, its heap in rcx and r8, and its stack in rsp (aligned to 16 bytes).
#[macro_export]
macro_rules! declare_component {
    (main = $main:path $(,)?) => {
        const _: () = {
            use $crate::entry::{naked_asm, start_component};

            extern "C" fn rust_start(
                config: *const u8,
                config_length: usize,
                ipc_buffer: usize,
                heap: *mut u8,
                heap_length: usize,
            ) -> ! {
                // SAFETY: the loader passes these to _start, which calls this once.
                let config = unsafe { start_component(config, config_length, ipc_buffer, heap, heap_length) };
                let main: fn(&'static [u8]) -> ! = $main;
                main(config)
            }

            /// The loader starts the component here.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn _start() -> ! {
        naked_asm!("xor ebp, ebp", "call {main}", "ud2", main = sym rust_start)
            }
        };
    };
}

/// Number of pages for `bytes`, or for `default` bytes if that is 0.
pub const fn pages(bytes: usize, default: usize) -> usize {
    (if bytes == 0 { default } else { bytes }).div_ceil(4096)
}

unsafe extern "C" {
    /// The lowest address of the program, by the linker.
    static __executable_start: u8;
}

/// Sets up a root task.
///
/// # Safety
/// Called once, first of all, with the kernel's boot information; the regions belong to this program, and nobody uses the
/// lowest page of the stack.
pub unsafe fn start_root_task(
    bootinfo: *const BootInfo,
    stack: *mut u8,
    heap: *mut u8,
    heap_length: usize,
) -> BootInfoPtr {
    // SAFETY: passed on.
    let bootinfo = unsafe { BootInfoPtr::new(bootinfo) };
    // SAFETY: a root task starts with one thread.
    unsafe { sel4::IpcBuffer::init_from(&bootinfo) };
    if heap_length > 0 {
        // SAFETY: passed on.
        unsafe { add_heap(heap, heap_length) };
    }
    let image_start = (&raw const __executable_start) as u64;
    let guard = bootinfo.image_frame(image_start, stack as u64);
    // Without the guard the program still works, but an overflow would go unnoticed: refuse to run.
    guard
        .expect("the stack is part of the image")
        .frame_unmap()
        .expect("the stack's guard page is mapped");
    bootinfo
}

/// Sets up a component.
///
/// # Safety
/// Called once, first of all, with what the loader passed: memory that belongs to this program.
pub unsafe fn start_component(
    config: *const u8,
    config_length: usize,
    ipc_buffer: usize,
    heap: *mut u8,
    heap_length: usize,
) -> &'static [u8] {
    // SAFETY: passed on; a component has one thread.
    unsafe { sel4::set_ipc_buffer(core::ptr::with_exposed_provenance_mut(ipc_buffer)) };
    if heap_length > 0 {
        // SAFETY: passed on.
        unsafe { add_heap(heap, heap_length) };
    }
    if config_length == 0 {
        return &[];
    }
    // SAFETY: passed on; the configuration is mapped read-only for the whole run.
    unsafe { core::slice::from_raw_parts(config, config_length) }
}

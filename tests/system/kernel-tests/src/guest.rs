// SPDX-License-Identifier: MIT OR Apache-2.0
//! What do the guests execute? Position-independent code, copied to the guest's memory.

/// Bytes that each piece of code takes.
const SIZE: usize = 192;

macro_rules! guests {
    ($($(#[$doc:meta])* $name:ident: $bits:literal { $($line:literal)* })*) => { $(
        $(#[$doc])*
        pub fn $name() -> &'static [u8] {
            #[unsafe(naked)]
            unsafe extern "C" fn code() -> ! {
                core::arch::naked_asm!(
                    concat!(".code", $bits), "71:", $($line,)* "ud2", ".org 71b + {size}, 0x90", ".code64",
                    size = const SIZE,
                )
            }
            // SAFETY: the function is SIZE bytes of this program's text.
            unsafe { core::slice::from_raw_parts(code as *const u8, SIZE) }
        }
    )* };
}

guests! {
    /// Nothing but exits.
    hypercalls: "32" { "2: vmcall" "jmp 2b" }
    /// Runs for ever, counting its starts at ebx and its turns behind.
    count: "32" { "inc dword ptr [ebx]" "2: inc dword ptr [ebx + 4]" "jmp 2b" }
    /// Reads a word at esi into eax.
    read: "32" { "2: mov eax, [esi]" "vmcall" "jmp 2b" }
    /// Writes eax to esi.
    write: "32" { "mov [esi], eax" "vmcall" }
    /// Takes the FPU.
    use_fpu: "32" { "fninit" "fld1" "vmcall" }
    /// Stores the FPU's control words as they were at the start, at ebx.
    fpu_state: "32" { "fnstcw [ebx]" "stmxcsr [ebx + 4]" "vmcall" }
    /// Reads a port.
    read_port: "32" { "mov edx, 0x80" "in al, dx" "vmcall" }
    /// Sets CR0.CD.
    disable_cache: "32" { "mov eax, cr0" "or eax, 0x40000000" "mov cr0, eax" "vmcall" }
    /// Reads CR2 into eax.
    read_cr2: "32" { "mov eax, cr2" "vmcall" }
    /// Sets DR7 and reads it back after an exit.
    debug_register: "32" { "mov eax, 0x700" "mov dr7, eax" "vmcall" "mov eax, dr7" "vmcall" }
    /// Writes LSTAR and FMASK, and reads LSTAR back after an exit.
    write_lstar: "32" {
        "mov ecx, 0xc0000082" "mov eax, 0x12345678" "mov edx, 0xffff8000" "wrmsr"
        "mov ecx, 0xc0000084" "mov eax, 0x200" "xor edx, edx" "wrmsr"
        "vmcall"
        "mov ecx, 0xc0000082" "rdmsr" "vmcall"
    }
    /// Reads the time stamp counter.
    read_tsc: "32" { "rdtsc" "vmcall" }
    /// An invalid opcode.
    invalid: "32" { "ud2" }
    /// Tells CS, and that a real-mode segment was used.
    real_mode: "16" { "mov ax, cs" "mov bx, 0x1234" "shl ax, 4" "vmcall" }
    /// Fills R8 to R15, and adds them up after an exit.
    high_registers: "64" {
        "mov rax, 0x1000000010000" "mov r8, 8" "mov r9, 9" "mov r10, 10" "mov r11, 11"
        "mov r12, 12" "mov r13, 13" "mov r14, 14" "mov r15, 0xf5f5f5f5f5f5f5f5" "vmcall"
        "lea rax, [r8 + r9]" "add rax, r10" "add rax, r11" "add rax, r12" "add rax, r13" "add rax, r14" "add rax, r15"
        "vmcall"
    }
    /// SWAPGS with both bases in the hands of the guest.
    swap_gs: "64" {
        "mov ecx, 0xc0000102" "mov eax, 0x5000" "xor edx, edx" "wrmsr" "vmcall"
        "swapgs" "mov rax, gs:[0]" "vmcall"
    }
    /// Reads and writes CR8.
    task_priority: "64" { "mov rax, cr8" "vmcall" }
    /// Writes CR8 (with 0).
    set_task_priority: "64" { "xor eax, eax" "mov cr8, rax" "vmcall" }
}

; SPDX-License-Identifier: MIT OR Apache-2.0
; Does debugging work inside the guest? Single steps and INT1 with their reason in DR6, debug registers and alignment checks
; for programs at level 3, and bits of CR4 that stay when other registers are written.
DB_             equ 1
AC              equ 17
USER_CODE       equ 6 * 8 + 3
USER_DATA       equ 7 * 8 + 3
TASK            equ 8 * 8

%macro step 0
    pushfd
    or dword [esp], 1 << 8              ; TF
    popfd                               ; the trap comes after the next instruction
%endmacro

main:
    on DB_, debug
    mov eax, 0xffff0ff0
    mov dr6, eax
    step
    nop
.nop:
    expect "single steps", [traps], 1
    expect "it stopped after", [where], .nop
    expect "DR6 after a single step", [reason], 0xffff4ff0
    step
    cpuid
.cpuid:
    expect "single steps with CPUID", [traps], 2
    expect "it stopped after", [where], .cpuid
    expect "DR6 after CPUID", [reason], 0xffff4ff0
    step
    sti
.sti:
    cli
    expect "single steps with STI", [traps], 3
    expect "it stopped after", [where], .sti
    db 0xf1                             ; INT1
.int1:
    expect "traps with INT1", [traps], 4
    expect "it stopped after", [where], .int1
    expect "DR6 after INT1", [reason], 0xffff0ff0

    ; CR4.OSFXSR stays when EFER is written
    on UD, no_sse
    mov eax, cr4
    or eax, 3 << 9
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    xor eax, 1                          ; SCE
    wrmsr
    movaps xmm0, xmm1
    mov eax, cr4
    and eax, 3 << 9
    expect "bits of CR4", eax, 3 << 9

    ; a program at level 3
    lgdt [.gdt]
    mov eax, TASK
    ltr ax
    mov eax, cr0
    or eax, 1 << 18                     ; AM
    mov cr0, eax
    on GP, general_protection
    on AC, alignment
    on UD, back
    mov [kernel_stack], esp
    mov eax, USER_DATA
    mov ds, ax
    mov es, ax
    push eax
    push user_stack
    push 1 << 18 | 2                    ; AC
    push USER_CODE
    push user
    iret
.back:
    mov esp, [kernel_stack]
    mov eax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    expect "moves to and from debug registers fault", [faults], 2
    expect "DR7", [new_dr7], 0x400
    expect "alignment checks", [checks], 1
    expect "their error code", [error], 0
    ret
.gdt:
    dw user_gdt_end - user_gdt - 1
    dd user_gdt

user:
    mov eax, dr6                        ; 3 bytes
    mov dr7, eax
    mov eax, [user_stack - 3]           ; 5 bytes
    ud2

debug:
    inc dword [traps]
    mov eax, dr6
    mov [reason], eax
    mov eax, 0xffff0ff0
    mov dr6, eax
    mov eax, [esp + FRAME + frame.eip]
    mov [where], eax
    and dword [esp + FRAME + frame.eflags], ~(1 << 8)
    ret
no_sse:
    failed "an SSE instruction is invalid"
    add dword [esp + FRAME + frame.eip], 3
    ret
general_protection:
    inc dword [faults]
    add dword [esp + FRAME + frame.eip], 3
    ret
alignment:
    inc dword [checks]
    mov eax, [esp + FRAME + frame.error]
    mov [error], eax
    add dword [esp + FRAME + frame.eip], 5
    ret
back:
    mov eax, dr7
    mov [new_dr7], eax
    mov dword [esp + FRAME + frame.eip], main.back
    mov dword [esp + FRAME + frame.cs], 8
    and dword [esp + FRAME + frame.eflags], ~(1 << 18)
    ret

align 8
user_gdt:
    dq 0
    dq 0x00cf9a000000ffff
    dq 0x00cf92000000ffff
    dq 0x00009a000000ffff
    dq 0x000092000000ffff
    dq 0x00af9a000000ffff
    dq 0x00cffa000000ffff
    dq 0x00cff2000000ffff
    dw 0x67, (task - $$ + BASE) & 0xffff
    db (task - $$ + BASE) >> 16 & 0xff, 0x89, 0, (task - $$ + BASE) >> 24
user_gdt_end:
task:
    dd 0, level0_stack, 0x10
    times 23 dd 0
traps           dd 0
where           dd 0
reason          dd 0
faults          dd 0
checks          dd 0
error           dd 0
new_dr7         dd 0
kernel_stack    dd 0
    times 64 dd 0
user_stack:
    times 256 dd 0
level0_stack:

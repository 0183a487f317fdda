; SPDX-License-Identifier: MIT OR Apache-2.0
; Does a 64-bit guest work? Registers over exits, segment bases, SYSCALL, SWAPGS, no-execute, an address of the upper half.
HIGH_HALF       equ 0xffff800000000000

; check "what", {comparison}, condition: notes a failure unless the condition holds.
%macro check 2
    j%1 %%good
    mov dword [abs bad], %%text
    jmp leave64
%%text:
    db %2, 0
%%good:
%endmacro

main:
    mov dword [bad], 0
    mov [stack32], esp
    mov eax, code64
    call long_call
    cmp dword [bad], 0
    je .fine
    mov esi, prefix_failed
    call print
    mov esi, [bad]
    call print
    mov al, 10
    call putc
    inc dword [failures]
.fine:
    show "checks done:", [done]
    say "back in 32-bit mode"
    ret

bits 64
default abs
code64:
    mov [stack64], rsp
    lidt [idt64_pointer]
    ; values over exits
    mov r8, 0x8888888888888888
    mov r9, 0x9999999999999999
    mov r10, 0x1010101010101010
    mov r11, 0x1111111111111111
    mov r12, 0x1212121212121212
    mov r13, 0x1313131313131313
    mov r14, 0x1414141414141414
    mov r15, 0x1515151515151515
    mov rbp, 0xbbbbbbbbbbbbbbbb
    mov rsi, 0x5151515151515151
    mov rdi, 0xd1d1d1d1d1d1d1d1
    mov rcx, 100
.exits:
    push rcx
    mov rax, -1
    xor eax, eax
    xor ecx, ecx
    cpuid
    shr rbx, 32
    check z, "cpuid clears the upper half of rbx"
    mov rax, -1
    mov dx, 0x300
    in al, dx
    not rax
    test rax, rax
    check z, "in al keeps the rest of rax"
    mov rax, -1
    in eax, dx
    shr rax, 32
    check z, "in eax clears the upper half of rax"
    pop rcx
    dec rcx
    jnz near .exits
    inc dword [done]
    mov rax, 0x8888888888888888
    cmp rax, r8
    check e, "r8"
    mov rax, 0x9999999999999999
    cmp rax, r9
    check e, "r9"
    mov rax, 0x1010101010101010
    cmp rax, r10
    check e, "r10"
    mov rax, 0x1111111111111111
    cmp rax, r11
    check e, "r11"
    mov rax, 0x1212121212121212
    cmp rax, r12
    check e, "r12"
    mov rax, 0x1313131313131313
    cmp rax, r13
    check e, "r13"
    mov rax, 0x1414141414141414
    cmp rax, r14
    check e, "r14"
    mov rax, 0x1515151515151515
    cmp rax, r15
    check e, "r15"
    mov rax, 0xbbbbbbbbbbbbbbbb
    cmp rax, rbp
    check e, "rbp"
    mov rax, 0x5151515151515151
    cmp rax, rsi
    check e, "rsi"
    mov rax, 0xd1d1d1d1d1d1d1d1
    cmp rax, rdi
    check e, "rdi"
    inc dword [done]

    ; EFER says where we are
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0x500
    cmp eax, 0x500
    check e, "EFER.LME and LMA"
    inc dword [done]

    ; bases by MSR, and the exchange of them
    mov ecx, 0xc0000100                 ; FS
    mov eax, scratch + 8
    xor edx, edx
    wrmsr
    inc ecx                             ; GS
    mov eax, scratch + 16
    wrmsr
    inc ecx                             ; KERNEL_GS
    mov eax, scratch + 24
    wrmsr
    mov rax, 0x0807060504030201
    mov [scratch + 8], rax
    add rax, rax
    mov [scratch + 16], rax
    add rax, rax
    mov [scratch + 24], rax
    xor eax, eax
    xor ecx, ecx
    cpuid                               ; an exit in between
    mov rax, [fs:0]
    cmp rax, [scratch + 8]
    check e, "FS base"
    mov rax, [gs:0]
    cmp rax, [scratch + 16]
    check e, "GS base"
    swapgs
    mov rax, [gs:0]
    cmp rax, [scratch + 24]
    check e, "GS base after SWAPGS"
    xor eax, eax
    xor ecx, ecx
    cpuid
    mov ecx, 0xc0000102
    rdmsr
    cmp eax, scratch + 16
    check e, "KERNEL_GS base after SWAPGS"
    swapgs
    inc dword [done]

    ; SYSCALL to a routine
    mov ecx, 0xc0000080
    rdmsr
    or eax, (1 << 0) | (1 << 11)        ; SCE, NXE
    wrmsr
    mov ecx, 0xc0000081                 ; STAR: kernel selectors CODE64 and the next, user selectors are not used
    xor eax, eax
    mov edx, CODE64
    wrmsr
    mov ecx, 0xc0000082
    mov eax, .called
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 1                          ; FMASK: carry
    wrmsr
    mov ecx, 20
.calls:
    mov ebx, ecx
    xor eax, eax
    xor ecx, ecx
    push rbx
    cpuid
    pop rbx
    stc
    syscall
.not_called:
    mov dword [bad], .text_syscall
    jmp leave64
.text_syscall:
    db "SYSCALL", 0
.called:
    check nc, "FMASK"
    cmp rcx, .not_called
    check e, "SYSCALL's return address"
    mov ecx, ebx
    dec ecx
    jnz near .calls
    mov eax, DATA32                     ; SYSCALL loaded ss with a selector beyond the table
    mov ss, eax
    inc dword [done]

    ; the upper half shows the lower
    mov eax, [page_tables]
    mov [page_tables + 8 * 256], eax
    mov rbx, HIGH_HALF
    mov rax, [rbx + done]
    cmp eax, [done]
    check e, "read through the upper half"
    inc dword [rbx + done]

    ; a page that must not be executed
    mov dword [page_tables + 2 * 4096 + 8 * 100 + 4], 0x80000000
    mov rax, cr3
    mov cr3, rax
    mov dword [fault_error], 0
    mov qword [fault_return], .no_execute
    mov eax, 100 * 0x200000
    jmp rax
.no_execute:
    cmp dword [fault_error], 0x11
    check e, "error code of an instruction fetch"
    inc dword [done]
    ; an address that is none
    mov qword [fault_return], .not_canonical
    mov rbx, 0x0000800000000000
    mov rax, [rbx]
    check nc, "an address that is not canonical faults"
.not_canonical:
    cmp dword [fault_vector], GP
    check e, "an address that is not canonical gives #GP"
    inc dword [done]
leave64:
    mov rsp, [stack64]
    ret

page_fault64:
    mov dword [fault_vector], PF
    jmp fault64
general_protection64:
    mov dword [fault_vector], GP
fault64:
    pop rax
    mov [fault_error], eax
    mov rax, [fault_return]
    mov [rsp], rax
    iretq

align 8
idt64:
    times GP * 2 dq 0
    dw general_protection64 - BASE, CODE64
    db 0, 0x8e
    dw BASE >> 16
    dd 0, 0
    dw page_fault64 - BASE, CODE64
    db 0, 0x8e
    dw BASE >> 16
    dd 0, 0
idt64_pointer:
    dw $ - idt64 - 1
    dq idt64
fault_return    dq 0
stack64         dq 0
fault_error     dd 0
fault_vector    dd 0
stack32         dd 0
bad             dd 0
done            dd 0
default rel
bits 32
%include "long.inc"

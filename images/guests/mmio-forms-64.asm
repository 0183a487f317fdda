; SPDX-License-Identifier: MIT OR Apache-2.0
; Does each instruction do to a device what it does to RAM, in 64-bit mode? As mmio-forms: every form runs on RAM filled
; with ones, then where nothing is; registers, flags, and the RAM around must agree.

; form {instruction}, ...: rsi and r14 are the place, rdi and r15 are RAM, the FS and GS bases are the place.
%macro form 1-*
    %push
    %defstr %$text %1
    call compare_forms
    dd %%text, %%end
%rep %0
    %1
%rotate 1
%endrep
    ret
%%text:
    db %$text, 0
%%end:
    %pop
%endmacro

LEN             equ 64
RESULT          equ 8 * 16 + LEN

main:
    argument "mmio=", NO_DEVICE
    mov [mmio], eax
    mov eax, code64
    call long_call
    mov ebx, bad
.next:
    cmp ebx, [bad_end]
    je .done
    inc dword [failures]
    mov esi, prefix_failed
    call print
    mov esi, [ebx]
    call print
    mov al, ' '
    call putc
    mov eax, [ebx + 4]                  ; where in the result
    call print_decimal
    mov al, 10
    call putc
    add ebx, 8
    jmp .next
.done:
    show "forms:", [forms]
    ret

bits 64
default abs
code64:
    mov [stack64], rsp
    form {mov rax, [rsi]}
    form {mov eax, [rsi + 8]}
    form {mov ax, [rsi + 8]}
    form {mov r8b, [rsi + 1]}
    form {mov sil, [rsi + 1]}, {movzx r13d, sil}, {mov rsi, r14}
    form {mov r11, [r14 + rcx * 8]}
    form {mov [rsi], r9}
    form {mov [r14 + 4], r9d}
    form {mov [rsi], r9w}
    form {mov [rsi], dil}
    form {mov [rsi + 1], ah}
    form {mov qword [rsi], -2}
    form {mov dword [rsi], 0x80000001}
    form {mov rax, [fs:16]}
    form {mov [gs:rcx + 1], r10d}
    form {mov eax, [gs:rcx + 1]}
    form {movzx r8, byte [rsi]}
    form {movzx r8d, word [rsi]}
    form {movsx rax, byte [rsi]}
    form {movsx r9, word [r14]}
    form {movsxd rdx, dword [rsi]}
    form {movnti [rsi], r10}
    form {xchg [rsi], r10}
    form {lock xchg [rsi], r10d}
    form {cmovc r8, [rsi]}
    form {cmovnc r8d, [rsi]}
    form {setc [r14 + 2]}
    form {push qword [rsi]}, {pop rax}
    form {push rdx}, {pop qword [rsi]}
    form {add [rsi], rax}
    form {add r8, [rsi]}
    form {add qword [rsi], 1}
    form {lock add dword [rsi], 1}
    form {adc r9, [rsi]}
    form {adc qword [rsi], 0}
    form {sub [rsi], r10}
    form {sub rdx, [rsi]}
    form {sbb [rsi], r10d}
    form {cmp qword [rsi], -1}
    form {cmp r8, [rsi]}
    form {cmp [rsi], r8b}
    form {inc qword [rsi]}
    form {dec qword [rsi]}
    form {neg qword [rsi]}
    form {not qword [rsi]}
    form {lock xadd [rsi], r9}
    form {cmpxchg [rsi], r8}
    form {mov rax, -1}, {lock cmpxchg [rsi], r8}
    form {lock cmpxchg16b [rsi]}
    form {mov rax, -1}, {mov rdx, -1}, {cmpxchg16b [rsi]}
    form {and r8, [rsi]}, {call no_af}
    form {and [rsi], r8}, {call no_af}
    form {or [rsi], r8d}, {call no_af}
    form {xor r8, [rsi]}, {call no_af}
    form {test [rsi], r8}, {call no_af}
    form {test qword [rsi], 0x100}, {call no_af}
    form {bt qword [rsi], 40}, {call only_cf}
    form {mov eax, 200}, {lock bts [rsi], rax}, {call only_cf}
    form {btr qword [rsi], 63}, {call only_cf}
    form {shl qword [rsi], 1}, {call no_af}
    form {ror qword [rsi], cl}, {call only_cf}
    form {imul r8, [rsi]}, {call only_cf}
    form {mul qword [rsi]}, {call only_cf}
    form {movsq}
    form {rep movsq}
    form {rep movsb}
    form {xchg rsi, rdi}, {rep movsq}, {xchg rsi, rdi}
    form {xchg rsi, rdi}, {stosq}, {xchg rsi, rdi}
    form {xchg rsi, rdi}, {rep stosd}, {xchg rsi, rdi}
    form {lodsq}
    form {xchg rsi, rdi}, {mov rax, -1}, {repe scasq}, {xchg rsi, rdi}
    form {repe cmpsq}
    form {mov eax, [esi]}
    form {a32 rep movsd}
    mov rsp, [stack64]
    ret

no_af:
    pushfq
    and dword [rsp], ~0x10
    jmp set_flags
only_cf:
    pushfq
    and dword [rsp], 1
set_flags:
    or dword [rsp], 2
    popfq
    ret

compare_forms:
    pop rbp
    inc dword [forms]
    mov eax, ram
    mov edi, results
    call run
    mov eax, [mmio]
    mov edi, results + RESULT
    call run
    mov ecx, RESULT / 4
    mov esi, results
    mov edi, results + RESULT
    repe cmpsd
    je .same
    mov eax, [bad_end]
    mov ecx, [rbp]
    mov [rax], ecx
    sub esi, results + 4
    mov [rax + 4], esi
    add dword [bad_end], 8
.same:
    mov ecx, [rbp + 4]
    jmp rcx

run:
    push rbp
    push rdi
    mov [place], rax
    mov rdi, rax
    mov ecx, LEN / 4
.fill:
    mov dword [rdi], -1
    add rdi, 4
    loop .fill
    mov edi, around
    mov ecx, LEN / 4
    mov eax, 0x01020304
    rep stosd
    mov ecx, 0xc0000100
    mov eax, [place]
    xor edx, edx
    wrmsr
    inc ecx
    wrmsr
    lea rax, [rbp + 8]
    mov [code], rax
    mov rax, 0x123456789abcdef0
    mov rbx, 0xfedcba9876543210
    mov ecx, 3
    mov rdx, 0x0f0f55aa33cc6699
    mov rsi, [place]
    mov edi, around
    mov r8, 0x0808080808080808
    mov r9, 0x9999999999999999
    mov r10, 0xa0a0a0a0a0a0a0a0
    mov r11, 0xb1b1b1b1b1b1b1b1
    mov r12, 0xc2c2c2c2c2c2c2c2
    mov r13, 0xd3d3d3d3d3d3d3d3
    mov r14, rsi
    mov r15, rdi
    push qword 3
    popfq
    call [code]
    pushfq
    and qword [rsp], 0xcd5
    pop qword [result_flags]
    cld
    sub rsi, [place]
    sub r14, [place]
    mov rbp, rdi
    pop rdi
    stosq
    mov rax, rbx
    stosq
    mov rax, rcx
    stosq
    mov rax, rdx
    stosq
    mov rax, rsi
    stosq
    mov rax, rbp
    stosq
    mov rax, r8
    stosq
    mov rax, r9
    stosq
    mov rax, r10
    stosq
    mov rax, r11
    stosq
    mov rax, r12
    stosq
    mov rax, r13
    stosq
    mov rax, r14
    stosq
    mov rax, r15
    stosq
    mov rax, [result_flags]
    stosq
    xor eax, eax
    stosq
    mov esi, around
    mov ecx, LEN / 4
    rep movsd
    pop rbp
    ret

align 8
stack64         dq 0
place           dq 0
code            dq 0
result_flags    dq 0
mmio            dd 0
forms           dd 0
bad_end         dd bad
bad             equ free + 16384
ram             equ free
around          equ free + 4096
results         equ free + 8192
default rel
bits 32
%include "long.inc"

; SPDX-License-Identifier: MIT OR Apache-2.0
; Does the guest keep its FPU and SSE state over exits of every kind?
ROUNDS          equ 200
main:
    call pic_setup
    on IRQ0, tick
    mov eax, cr0
    and eax, ~0x0c                      ; no EM, no TS
    or eax, 2                           ; MP
    mov cr0, eax
    mov eax, cr4
    or eax, 0x600                       ; OSFXSR, OSXMMEXCPT
    mov cr4, eax
    fninit
    fldpi
    fld1
    mov esi, pattern
%assign n 0
%rep 8
    movups xmm %+ n, [esi + 16 * n]
%assign n n + 1
%endrep
    mov dword [scratch], 0x1f80 | (3 << 13)
    ldmxcsr [scratch]
    fxsave [state]
    argument "mmio=", NO_DEVICE
    mov edi, eax
    mov ebp, ROUNDS
.round:
    mov ecx, 3000
    call pit_periodic
    mov al, 0xfe
    out 0x21, al
    sti
    hlt
    cli
    xor eax, eax
    cpuid
    mov eax, [edi]
    mov al, 'x'
    mov edx, COM1 + 7
    out dx, al
    fxsave [state + 512]
    push edi
    mov esi, state
    mov edi, state + 512
    mov ecx, 160 / 4                    ; control words and the FPU's registers; then the SSE registers
    repe cmpsd
    jne .differ
    mov esi, state + 160
    mov edi, state + 512 + 160
    mov ecx, 128 / 4
    repe cmpsd
    jne .differ
    pop edi
    dec ebp
    jnz .round
    show "rounds:", ROUNDS
    ret
.differ:
    sub esi, state + 4
    show "offset in the FXSAVE area:", esi
    failed "the state changed"
    pop edi
    ret
tick:
    mov al, 0x20
    out 0x20, al
    ret
align 16
pattern:
%assign n 0
%rep 8
    dd 0x10203040 + n, 0x1ff00000 * n, 0xdeadbeef - n, 0x01010101 * n
%assign n n + 1
%endrep
state           equ free

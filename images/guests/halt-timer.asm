; SPDX-License-Identifier: MIT OR Apache-2.0
; Does the timer wake a halted guest? Ten ticks of 10 ms, each ending a HLT, and the interrupt controller in order.
TICKS           equ 10
main:
    call pic_setup
    on IRQ0, tick
    mov ecx, 11932                      ; 10 ms
    call pit_periodic
    mov al, 0xfe
    out 0x21, al
    xor ecx, ecx
.wait:
    mov ebx, [count]
    sti
    hlt
    cli
    inc ecx
    cmp [count], ebx
    je .spurious
    cmp dword [count], TICKS
    jb .wait
    expect "one wake-up for each tick", ecx, TICKS
    xor eax, eax
    in al, 0x21
    expect "mask", eax, 0xfe
    mov al, 0x0b                        ; in-service register: nothing
    out 0x20, al
    xor eax, eax
    in al, 0x20
    expect "in service", eax, 0
    show "ticks:", [count]
    ret
.spurious:
    failed "woke up without a tick"
    ret
tick:
    inc dword [count]
    mov al, 0x20
    out 0x20, al
    ret
count           dd 0

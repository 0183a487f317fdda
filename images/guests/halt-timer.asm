; SPDX-License-Identifier: MIT OR Apache-2.0
; Does the timer wake a halted guest, and does it sleep until then? Ten ticks of 10 ms, and the interrupt controller in
; order. A few wake-ups without a tick are tolerated: Bochs forgets that a guest is halted when the host takes an interrupt.
TICKS           equ 10
MOST_HALTS      equ 20 * TICKS
main:
    call pic_setup
    on IRQ0, tick
    mov ecx, 11932                      ; 10 ms
    call pit_periodic
    mov al, 0xfe
    out 0x21, al
    xor ecx, ecx
.wait:
    sti
    hlt
    cli
    inc ecx
    cmp dword [count], TICKS
    jb .wait
    show "halts:", ecx
    cmp ecx, MOST_HALTS
    jbe .slept
    failed "HLT does not sleep"
.slept:
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
tick:
    inc dword [count]
    mov al, 0x20
    out 0x20, al
    ret
align 4
count           dd 0

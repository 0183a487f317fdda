; SPDX-License-Identifier: MIT OR Apache-2.0
; Is the serial port a 16550A, as drivers find out? Scratch register, FIFO bits, loop-back of data and modem lines, and the
; interrupt when the transmitter is empty.
main:
    mov edx, COM1 + 7
    mov al, 0x5a
    out dx, al
    xor eax, eax
    in al, dx
    expect "scratch register", eax, 0x5a
    mov edx, COM1 + 2
    mov al, 1
    out dx, al                          ; FIFOs on
    xor eax, eax
    in al, dx
    and eax, 0xc0
    expect "FIFOs are on", eax, 0xc0
    mov edx, COM1 + 3
    in al, dx
    and eax, 0x7f
    expect "line control", eax, 3
    or al, 0x80
    out dx, al
    mov edx, COM1
    xor eax, eax
    in al, dx
    expect "divisor", eax, 1
    mov edx, COM1 + 3
    mov al, 3
    out dx, al

    mov edx, COM1 + 4
    mov al, 0x1a                        ; loop back; RTS, OUT2
    out dx, al
    mov edx, COM1 + 6
    xor eax, eax
    in al, dx
    and eax, 0xf0
    expect "modem lines looped back", eax, 0x90
    mov edx, COM1
    mov al, 'L'
    out dx, al
    mov ecx, 100000
.wait:
    mov edx, COM1 + 5
    in al, dx
    test al, 1
    loopz .wait
    mov edx, COM1
    xor eax, eax
    in al, dx
    mov ebx, eax
    mov edx, COM1 + 4
    mov al, 0x0b
    out dx, al
    expect "data looped back", ebx, 'L'

    call pic_setup
    on IRQ0 + 4, interrupt
    mov al, 0xef
    out 0x21, al
    sti
    mov edx, COM1 + 1
    mov al, 2                           ; transmitter empty: it is, so this interrupts
    out dx, al
    mov ecx, 1000000
.empty:
    cmp dword [empty], 0
    jne .came
    loop .empty
.came:
    cli
    xor eax, eax
    mov edx, COM1 + 1
    out dx, al
    expect "interrupts of the empty transmitter", [empty], 1
    ret
interrupt:
    mov edx, COM1 + 2
    xor eax, eax
    in al, dx
    and eax, 0x0f
    cmp eax, 2                          ; reading it was the acknowledgement
    jne .done
    inc dword [empty]
.done:
    mov al, 0x20
    out 0x20, al
    ret
align 4
empty           dd 0

; SPDX-License-Identifier: MIT OR Apache-2.0
; Do typed characters arrive by interrupt? It echoes them in brackets; `q` ends it.
; prompt: ^guest: type
main:
    call pic_setup
    on IRQ0 + 4, received
    mov edx, COM1 + 4
    mov al, 0x0b                        ; DTR, RTS, OUT2: interrupts reach the controller
    out dx, al
    mov edx, COM1 + 1
    mov al, 1                           ; received data
    out dx, al
    mov al, 0xef
    out 0x21, al
    say "type"
.wait:
    sti
    hlt
    cli
    cmp byte [last], 'q'
    jne .wait
    mov al, 10
    call putc
    show "characters by interrupt:", [characters]
    mov edx, COM1 + 1
    xor eax, eax
    out dx, al
    ret
received:
    mov edx, COM1 + 2
    in al, dx
    test al, 1                          ; nothing pending?
    jnz .spurious
    and al, 0x0e
    cmp al, 0x04                        ; data
    je .data
    cmp al, 0x0c                        ; data that waited
    je .data
    movzx eax, al
    expect "interrupt identification", eax, 4
    jmp .done
.data:
    mov edx, COM1 + 5
    in al, dx
    test al, 1
    jz .done
    mov edx, COM1
    in al, dx
    mov [last], al
    inc dword [characters]
    push eax
    mov al, '['
    call putc
    pop eax
    call putc
    mov al, ']'
    call putc
    jmp .data
.spurious:
    inc dword [scratch]
.done:
    mov al, 0x20
    out 0x20, al
    ret
last            db 0
align 4
characters      dd 0

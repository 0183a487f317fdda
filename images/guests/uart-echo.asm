; SPDX-License-Identifier: MIT OR Apache-2.0
; Do typed characters arrive by interrupt? It prompts for lines and echoes each character in brackets on a line of
; its own; `q` ends it.
; prompt: ^guest: type> $
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
.prompt:
    mov byte [last], 0
    mov byte [fresh], 1
    mov esi, text_prompt
    call print
.wait:
    sti
    hlt
    cli
    cmp byte [quit], 0
    jne .end
    cmp byte [last], 13
    je .prompt
    cmp byte [last], 10
    je .prompt
    jmp .wait
.end:
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
    cmp al, 'q'
    sete ah
    or [quit], ah
    cmp byte [fresh], 0                 ; the prompt's line is the prompt's
    je .echo
    mov byte [fresh], 0
    push eax
    mov al, 10
    call putc
    pop eax
.echo:
    push eax
    mov al, '['
    call putc
    pop eax
    cmp al, ' '
    jb .control
    call putc
    jmp .close
.control:
    mov al, '.'
    call putc
.close:
    mov al, ']'
    call putc
    cmp byte [last], ' '                ; the end of a line
    jae .data
    mov al, 10
    call putc
    jmp .data
.spurious:
    inc dword [scratch]
.done:
    mov al, 0x20
    out 0x20, al
    ret
text_prompt     db "guest: type> ", 0
last            db 0
quit            db 0
fresh           db 0
align 4
characters      dd 0

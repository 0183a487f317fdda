; SPDX-License-Identifier: MIT OR Apache-2.0
; How does Bochs start without its BIOS's wait for the boot key? This option ROM boots the first hard disk at once.
%include "table.inc"
bits 16
org 0
    db 0x55, 0xaa, 1                    ; signature, length in 512-byte blocks
    push es
    pusha
    xor ax, ax
    mov es, ax
    sti
    mov ax, 0x0201                      ; read 1 sector
    mov cx, 1                           ; cylinder 0, sector 1
    mov dx, 0x0080                      ; head 0, first hard disk
    mov bx, 0x7c00
    int 0x13
    jc .go_on
    cmp word [es:0x7dfe], 0xaa55
    jne .go_on
    mov ebx, FROM_ROM
    mov dl, 0x80
    jmp 0:0x7c00
.go_on:                                 ; no such disk: the BIOS goes on as usual
    popa
    pop es
    retf
    times 511 - ($ - $$) db 0
    db 0                                ; checksum: src/loader.rs

; SPDX-License-Identifier: MIT OR Apache-2.0
; What does a guest find at ports where nothing is? All ones; writes are lost. Also by string instructions, which must
; leave their registers as the processor does.
main:
    mov esi, ports
.next:
    movzx edx, word [esi]
    add esi, 2
    test edx, edx
    jz .strings
    xor eax, eax
    in al, dx
    expect "byte", eax, 0xff
    xor eax, eax
    in ax, dx
    expect "word", eax, 0xffff
    xor eax, eax
    in eax, dx
    expect "doubleword", eax, -1
    mov eax, 0x12345678
    out dx, al
    out dx, ax
    out dx, eax
    in eax, dx
    expect "after writes", eax, -1
    jmp .next
.strings:
    mov edx, 0x300
    mov edi, scratch
    mov ecx, 10
    rep insb
    expect "rep insb: count", ecx, 0
    expect "rep insb: edi", edi, scratch + 10
    expect "rep insb: data", [scratch + 6], 0xffffffff
    mov ecx, 5
    mov edi, scratch + 200
    std
    rep insd
    cld
    expect "rep insd downwards: edi", edi, scratch + 180
    expect "rep insd downwards: data", [scratch + 184], -1
    mov esi, scratch
    mov ecx, 7
    rep outsw
    expect "rep outsw: esi", esi, scratch + 14
    expect "rep outsw: count", ecx, 0
    xor ecx, ecx
    rep outsb
    expect "rep outsb of nothing: esi", esi, scratch + 14
    mov edi, scratch
    mov ax, 0x0102
    insw
    expect "insw: edi", edi, scratch + 2
    ; a port of the other kind: a printed line, by outsb
    mov esi, text
    mov ecx, text_end - text
    mov edx, COM1
    rep outsb
    expect "rep outsb to the serial port: esi", esi, text_end
    ret
ports:
    dw 0x2f0, 0x300, 0x510, 0x5658, 0x1000, 0xafe0, 0xc000, 0xe0e0, 0
text:
    db "guest: outsb", 10
text_end:

; SPDX-License-Identifier: MIT OR Apache-2.0
; What does a guest find where nothing is? All ones on reads of any size; writes are lost; nothing else happens.
; mmio= (hexadecimal) limits the search to one page, for machines that have devices.
main:
    argument "mmio=", 0
    test eax, eax
    jz .everywhere
    mov edi, eax
    call try
    jmp .count
.everywhere:
    ; the usual places of devices
    mov esi, places
.place:
    lodsd
    test eax, eax
    jz .stride
    mov edi, eax
    call try
    jmp .place
.stride:                                ; and every 2 MiB above RAM, each in a table of its own
    call ram_end
    mov edi, eax
    add edi, 0x1fffff
    and edi, 0xffe00000
.next:
    call try
    add edi, 0x200000
    jnz .next
.count:
    show "places:", [scratch]
    ret

; Everything that can be done with the address in edi.
try:
    inc dword [scratch]
    call read
    mov byte [edi], 0x12
    mov word [edi + 2], 0x3456
    mov dword [edi + 4], 0x789abcde
    call read
    ; unaligned, and across two pages
    cmp dword [edi + 3], -1
    jne .bad
    cmp dword [edi + 0xffe], -1
    jne .bad
    mov dword [edi + 0xffd], 0
    cmp dword [edi + 0xffd], -1
    jne .bad
    ret
.bad:
    expect "across:", edi, -1
    ret

read:
    movzx eax, byte [edi]
    cmp al, 0xff
    jne .bad
    mov ax, [edi + 2]
    cmp ax, 0xffff
    jne .bad
    mov eax, [edi + 4]
    cmp eax, -1
    jne .bad
    ret
.bad:
    show "at", edi
    expect "absent memory", eax, -1
    ret

places:
    dd 0xc0000000, 0xd0000000, 0xe0000000, 0xf0000000, 0xfd000000
    dd 0xfec00000, 0xfed00000, 0xfed40000, 0xfee00000, 0xfee00300, 0xff000000, 0xffff8000
    dd 0

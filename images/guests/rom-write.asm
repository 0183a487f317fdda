; SPDX-License-Identifier: MIT OR Apache-2.0
; Is read-only memory read-only? Every page from rom= (0xf0000) to rom-end= (0x100000), all sizes of write.
main:
    argument "rom=", 0xf0000
    mov edi, eax
    argument "rom-end=", 0x100000
    mov [scratch], eax
    xor ecx, ecx
.page:
    mov eax, [edi]
    mov ebx, [edi + 0xffc]
    mov edx, eax
    not edx
    mov [edi], edx
    mov [edi + 1], dl
    mov [edi + 2], dx
    not dword [edi + 0xffc]
    expect "first word", [edi], eax
    expect "last word", [edi + 0xffc], ebx
    inc ecx
    add edi, 4096
    cmp edi, [scratch]
    jb .page
    show "ROM pages:", ecx
    ret

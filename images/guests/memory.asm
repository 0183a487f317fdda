; SPDX-License-Identifier: MIT OR Apache-2.0
; Is all RAM there, every page its own? Writes each 4K page, reads all back; the same through 2M pages.
; fresh=1: RAM must be zero before it is written (no firmware was there).
main:
    argument "fresh=", 0
    mov ebp, eax
    call ram_end
    mov [scratch], eax
    mov edi, bss_end + 4095
    and edi, ~4095
    mov [scratch + 4], edi
    ; each page: its address at the start, the complement at the end
    xor ecx, ecx
.write:
    mov [edi], edi
    mov edx, edi
    not edx
    mov [edi + 4092], edx
    inc ecx
    add edi, 4096
    cmp edi, [scratch]
    jb .write
    show "4K pages written:", ecx
    mov edi, [scratch + 4]
.read:
    cmp [edi], edi
    jne .bad
    mov edx, edi
    not edx
    cmp [edi + 4092], edx
    jne .bad
    test ebp, ebp
    jz .used
    cmp dword [edi + 2048], 0           ; nobody wrote there: still zero
    jne .not_zero
.used:
    add edi, 4096
    cmp edi, [scratch]
    jb .read
    say "4K pages read back"
    jmp .large
.bad:
    expect "page", [edi], edi
    ret
.not_zero:
    expect "fresh RAM", [edi + 2048], 0
    ret

.large:                                 ; PAE, identity, 2M pages: four directories
    mov edi, page_tables + 4096
    mov eax, 0x83
    mov ecx, 2048
.entry:
    mov [edi], eax
    mov dword [edi + 4], 0
    add edi, 8
    add eax, 0x200000
    loop .entry
    mov edi, page_tables
    mov eax, page_tables + 4096 + 1
    mov ecx, 4
.pointer:
    mov [edi], eax
    mov dword [edi + 4], 0
    add edi, 8
    add eax, 4096
    loop .pointer
    mov eax, cr4
    or eax, 1 << 5
    mov cr4, eax
    mov eax, page_tables
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov edi, 0x200000
    xor ecx, ecx
.touch:
    mov eax, edi
    add eax, 0x200000
    cmp eax, [scratch]
    ja .done
    lea ebx, [edi + 0x123000]           ; a page inside of each
    cmp ebx, [scratch + 4]
    jb .next
    cmp [ebx], ebx
    jne .bad_large
    mov dword [ebx + 8], 0x55aa55aa
    cmp dword [ebx + 8], 0x55aa55aa
    jne .bad_large
.next:
    inc ecx
    add edi, 0x200000
    jmp .touch
.done:
    show "2M pages:", ecx
    ret
.bad_large:
    expect "2M page", [ebx], ebx
    ret

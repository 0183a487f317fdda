; SPDX-License-Identifier: MIT OR Apache-2.0
; May a guest change its paging mode at will? 32-bit paging on, remapped, off; PAE on, remapped, pointers reloaded, off.
; Each mapping is checked by what it shows.
A               equ 0x800000            ; two pages of RAM with different contents
B               equ 0xc00000
WINDOW          equ 0x40000000          ; where they are mapped in turn
main:
    mov dword [A], 0xaaaaaaaa
    mov dword [B], 0xbbbbbbbb
    mov ebx, 3                          ; three times, so that nothing is left behind
.round:
    call two_level
    call paging_off
    call three_level
    call paging_off
    mov dword [A], 0xaaaaaaaa           ; and the flat view again
    mov dword [B], 0xbbbbbbbb
    dec ebx
    jnz .round
    say "paging went on and off"
    ret

paging_off:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    xor eax, eax
    mov cr3, eax
    mov eax, cr4
    and eax, ~((1 << 4) | (1 << 5))
    mov cr4, eax
    expect "A without paging", [A], 0xaaaaaaaa
    expect "B without paging", [B], 0xbbbbbbbb
    ret

; 4M pages for the identity, a table of 4K pages for the window.
two_level:
    mov edi, page_tables
    mov eax, 0x83
    mov ecx, 1024
.entry:
    mov [edi], eax
    add edi, 4
    add eax, 0x400000
    loop .entry
    mov dword [page_tables + 4 * (WINDOW >> 22)], page_tables + 4096 + 3
    mov dword [page_tables + 4096], A + 3
    mov dword [page_tables + 4096 + 4], B + 3
    mov eax, cr4
    or eax, 1 << 4
    mov cr4, eax
    mov eax, page_tables
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    expect "window shows A", [WINDOW], 0xaaaaaaaa
    expect "next page shows B", [WINDOW + 4096], 0xbbbbbbbb
    mov dword [page_tables + 4096], B + 3
    invlpg [WINDOW]
    expect "after invlpg it shows B", [WINDOW], 0xbbbbbbbb
    mov dword [page_tables + 4096 + 4], A + 3
    mov eax, cr3
    mov cr3, eax
    expect "after a cr3 load the next shows A", [WINDOW + 4096], 0xaaaaaaaa
    mov dword [WINDOW + 4096], 0xaaaaaaaa
    test dword [page_tables + 4096 + 4], 0x60
    jpo .one_bit
    jnz .both
.one_bit:
    failed "accessed and dirty bits"
.both:
    ret

; Two sets of pointers: the second maps the window differently.
three_level:
    mov edi, page_tables + 4096         ; identity below 1 GiB: one directory
    mov eax, 0x83
    mov ecx, 512
.entry:
    mov [edi], eax
    mov dword [edi + 4], 0
    add edi, 8
    add eax, 0x200000
    loop .entry
    mov edi, page_tables                ; pointers at 0 and 32 of a page
    mov ecx, 1024
    xor eax, eax
    rep stosd
    mov edi, page_tables + 2 * 4096     ; a directory each for the window
    mov ecx, 2048
    rep stosd
    mov dword [page_tables], page_tables + 4096 + 1
    mov dword [page_tables + 32], page_tables + 4096 + 1
    mov dword [page_tables + 8], page_tables + 2 * 4096 + 1
    mov dword [page_tables + 32 + 8], page_tables + 3 * 4096 + 1
    mov dword [page_tables + 2 * 4096], A + 0x83
    mov dword [page_tables + 3 * 4096], (B & ~0x1fffff) + 0x83
    mov eax, cr4
    or eax, 1 << 5
    mov cr4, eax
    mov eax, page_tables
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    expect "PAE: window shows A", [WINDOW], 0xaaaaaaaa
    mov eax, page_tables + 32
    mov cr3, eax
    expect "PAE: other pointers show B", [WINDOW], 0xbbbbbbbb
    mov dword [page_tables + 32 + 8], page_tables + 2 * 4096 + 1
    expect "PAE: pointers in memory do not count", [WINDOW], 0xbbbbbbbb
    mov eax, page_tables + 32
    mov cr3, eax
    expect "PAE: loaded again they do", [WINDOW], 0xaaaaaaaa
    ret

; SPDX-License-Identifier: MIT OR Apache-2.0
; Do the guest's own exceptions reach it, with error code and address? Divide error, invalid opcode, general protection,
; page faults of all kinds.
main:
    on DE, divide_error
    xor edx, edx
    mov eax, 1
    xor ecx, ecx
    div ecx                             ; 2 bytes
    expect "divide errors", [seen + 4 * DE], 1
    on UD, skip2
    ud2
    expect "invalid opcodes", [seen + 4 * UD], 1
    on UD, skip3
    vmcall                              ; 3 bytes; VT-x is not there for the guest
    expect "vmcall is an invalid opcode", [seen + 4 * UD], 2
    on GP, general_protection
    mov eax, 0x1234 & ~7
    db 0x8e, 0xd8                       ; mov ds, eax: a selector beyond the table
    expect "general protection", [seen + 4 * GP], 1
    expect "its error code", [error], 0x1230

    ; page tables with 4M pages; one page not there, one read-only
    mov edi, page_tables
    mov eax, 0x87                       ; present, writable, user, large
    mov ecx, 1024
.entry:
    mov [edi], eax
    add edi, 4
    add eax, 0x400000
    loop .entry
    mov dword [page_tables + 4 * 0x40], 0
    and dword [page_tables + 4 * 0x41], ~2
    mov eax, cr4
    or eax, 1 << 4
    mov cr4, eax
    mov eax, page_tables
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80010000                  ; PG, WP
    mov cr0, eax
    on PF, page_fault
    mov eax, [0x10000008]               ; 5 bytes
    expect "page faults", [seen + 4 * PF], 1
    expect "read of a page that is not there", [error], 0
    expect "its address", [address], 0x10000008
    mov [0x10000ffc], eax               ; 5 bytes
    expect "write to a page that is not there", [error], 2
    expect "its address", [address], 0x10000ffc
    mov [0x10400000], eax
    expect "write to a read-only page", [error], 3
    expect "page faults", [seen + 4 * PF], 3
    say "exceptions came as they should"
    ret

divide_error:
skip2:
    add dword [esp + FRAME + frame.eip], 2
    jmp note
skip3:
    add dword [esp + FRAME + frame.eip], 3
    jmp note
general_protection:
    mov eax, [esp + FRAME + frame.error]
    mov [error], eax
    add dword [esp + FRAME + frame.eip], 2
    jmp note
page_fault:
    mov eax, cr2
    mov [address], eax
    mov eax, [esp + FRAME + frame.error]
    mov [error], eax
    add dword [esp + FRAME + frame.eip], 5
note:
    mov eax, [esp + FRAME + frame.vector]
    inc dword [seen + 4 * eax]
    ret
align 4
error           dd 0
address         dd 0
seen            times 32 dd 0

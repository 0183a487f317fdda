; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when faults pile up? The page-fault handler's own page is not there: page fault, double fault, shutdown.
; Stops: triple-fault.
main:
    mov edi, page_tables                ; the first 4 MiB only, where the guest is
    mov dword [edi], 0x83
    mov eax, cr4
    or eax, 1 << 4
    mov cr4, eax
    mov eax, page_tables
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    say "faults pile up"
    mov word [idt + 8 * PF + 6], 0x7000 ; both handlers at 0x70000000 and above
    mov word [idt + 8 * DF + 6], 0x7000
    mov eax, [0x40000000]
    failed "still running"
    ret

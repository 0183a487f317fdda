; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when page tables are where no memory is? The guest is stopped, and nothing else suffers.
main:
    argument "mmio=", NO_DEVICE
    say "page tables nowhere"
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp $ + 2
    failed "still running"
    ret

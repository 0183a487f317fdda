; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when the interrupt table is where no memory is? The processor cannot deliver anything: the guest is stopped,
; and nothing else suffers.
main:
    argument "mmio=", NO_DEVICE
    mov [.table + 2], eax
    say "interrupt table nowhere"
    lidt [.table]
    int3
    failed "still running"
    ret
align 4
.table:
    dw 0x7ff
    dd 0

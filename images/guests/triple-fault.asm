; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when the processor shuts down? Stops: triple-fault, with a register report (eax 0x7e57).
main:
    say "triple fault"
    mov eax, 0x7e57
    lidt [.nothing]
    ud2
    failed "still running"
    ret
.nothing:
    dw 0
    dd 0

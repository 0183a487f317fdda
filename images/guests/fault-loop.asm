; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens to a guest that faults for ever? Each write exits, is lost, and comes again. It never stops by itself.
main:
    argument "mmio=", NO_DEVICE
    say "fault loop"
.again:
    mov [eax], ecx
    inc ecx
    jmp .again

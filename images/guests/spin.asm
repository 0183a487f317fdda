; SPDX-License-Identifier: MIT OR Apache-2.0
; Can a guest keep the processor by never leaving? Interrupts off, no timer, an empty loop. Never stops.
main:
    say "spins with interrupts off"
    cli
.forever:
    jmp .forever

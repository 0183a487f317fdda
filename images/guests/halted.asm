; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when a guest halts with interrupts off? Nothing can wake it. Stops: halted.
main:
    say "halt with interrupts off"
    cli
    hlt
    failed "woke up"
    ret

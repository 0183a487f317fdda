; SPDX-License-Identifier: MIT OR Apache-2.0
; Does port 0xcf9 reset the machine? Stops: reset.
main:
    say "reset by port 0xcf9"
    mov edx, 0xcf9
    mov al, 2
    out dx, al
    mov al, 6
    out dx, al
    mov ecx, 1000000
.late:
    in al, 0x80
    loop .late
    failed "still running"
    ret

; SPDX-License-Identifier: MIT OR Apache-2.0
; Does the keyboard controller reset the machine, as kernels reboot? Stops: reset.
main:
    mov ecx, 10000
.wait:
    in al, 0x64
    test al, 2                          ; input buffer full; a machine without the controller reads as ones
    jz .ready
    loop .wait
.ready:
    say "reset by the keyboard controller"
    mov al, 0xfe
    out 0x64, al
    mov ecx, 1000000
.late:
    in al, 0x80
    loop .late
    failed "still running"
    ret

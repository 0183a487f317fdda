; SPDX-License-Identifier: MIT OR Apache-2.0
; Does a multiboot guest come up, print on its serial port, and switch itself off?
main:
    say "hello"
    call ram_end
    shr eax, 20
    show "MiB of RAM:", eax
    ret

; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when a guest jumps where no memory is? Stops: emulation-failed, naming the address.
main:
    argument "mmio=", NO_DEVICE
    say "jump to nowhere"
    jmp eax

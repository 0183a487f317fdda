; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when an exception finds its stack where no memory is? The guest is stopped, and nothing else suffers.
main:
    argument "mmio=", NO_DEVICE
    say "stack nowhere"
    lea esp, [eax + 0x800]
    ud2
    hlt

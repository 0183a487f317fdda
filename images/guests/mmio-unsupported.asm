; SPDX-License-Identifier: MIT OR Apache-2.0
; What happens when an instruction that nobody uses on devices touches one? Stops: emulation-failed, naming it (fnsave).
main:
    argument "mmio=", NO_DEVICE
    say "fnsave to a device"
    fnsave [eax]
    failed "still running"
    ret

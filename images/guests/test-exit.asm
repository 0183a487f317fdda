; SPDX-License-Identifier: MIT OR Apache-2.0
; Does a value written to the test-exit port end the guest with that value?
; It writes value= (hexadecimal) or 0x2a. Stops: test-exit.
main:
    argument "value=", 0x2a
    show "test-exit with", eax
    out TEST_EXIT, eax
    failed "still running after the test-exit port was written"
    ret

; SPDX-License-Identifier: MIT OR Apache-2.0
; How is a test guest put together? GUEST is its file: nasm -DGUEST='"hello.asm"'.
%include "start.inc"
%include GUEST
%include "lib.inc"

; SPDX-License-Identifier: MIT OR Apache-2.0
; How long did it take to the first instruction of /init? A static program for both kernels (ELF32): it reads the time
; stamp counter before anything else, prints it, waits until the line has it, and restarts the machine.
bits 32
org 0x08048000

SYS_WRITE       equ 4
SYS_IOCTL       equ 54
SYS_REBOOT      equ 88
TCSBRK          equ 0x5409
STDOUT          equ 1

header:
    db 0x7f, "ELF", 1, 1, 1             ; 32 bits, little-endian
    times 9 db 0
    dw 2, 3                             ; executable, i386
    dd 1, start, program - $$, 0, 0
    dw program - header, program.end - program, 1, 0, 0, 0
program:                                ; one segment: all of the file
    dd 1, 0, $$, $$, end - $$, end - $$, 7, 0x1000
.end:

start:
    rdtsc
    mov ebx, 10
    mov edi, digits.end
    mov esi, eax
    mov ecx, edx
.digit:                                 ; ecx:esi / 10
    mov eax, ecx
    xor edx, edx
    div ebx
    mov ecx, eax
    mov eax, esi
    div ebx
    mov esi, eax
    add dl, '0'
    dec edi
    mov [edi], dl
    or eax, ecx
    jnz .digit
    mov esi, text.end                   ; the text goes before the digits
    mov ecx, text.end - text
.copy:
    dec esi
    dec edi
    mov al, [esi]
    mov [edi], al
    loop .copy
    mov eax, SYS_WRITE
    mov ebx, STDOUT
    mov ecx, edi
    mov edx, line_end
    sub edx, edi
    int 0x80
    mov eax, SYS_IOCTL
    mov ebx, STDOUT
    mov ecx, TCSBRK
    mov edx, 1                          ; only wait
    int 0x80
    mov eax, SYS_REBOOT
    mov ebx, 0xfee1dead
    mov ecx, 672274793
    mov edx, 0x1234567                  ; restart
    int 0x80
    ud2

text:
    db "init ticks="
.end:
digits:
    times 48 db 0
.end:
    db 10
line_end:
end:

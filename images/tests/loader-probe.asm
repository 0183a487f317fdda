; SPDX-License-Identifier: MIT OR Apache-2.0
; What does a kernel find when the boot loader enters it? Prints it on COM1 and ends the simulation.
bits 32
org 0x100000
%define BSS 0x8000

elf:
    db 0x7f, "ELF", 1, 1, 1, 0
    dq 0
    dw 2, 3                             ; executable, 386
    dd 1, start, headers - elf, 0, 0
    dw headers - elf, 32, 2, 0, 0, 0
headers:
    dd 1, 0, elf, elf, file_end - elf, BSS, 7, 4096
    dd 1, second - elf, 0x200000, 0x200000, 100, 8192, 7, 4096

start:
    mov esp, stack_top
    mov edi, eax
    rdtsc                               ; from power-on, one tick per instruction in Bochs
    mov esi, text_tsc
    call line
    mov eax, edi
    mov esi, text_magic
    call line                           ; "magic" eax
    mov esi, text_flags
    mov eax, [ebx]
    call line
    mov esi, text_lower
    mov eax, [ebx + 4]
    call line
    mov esi, text_upper
    mov eax, [ebx + 8]
    call line
    mov esi, text_cmdline
    call print
    mov esi, [ebx + 16]
    call print
    mov esi, text_newline
    call print
    mov ebp, [ebx + 24]
    mov esi, text_module
    mov eax, [ebp]
    call line
    mov esi, text_end
    mov eax, [ebp + 4]
    call line
    mov esi, [ebp]
    mov ecx, [ebp + 4]
    call sum
    mov esi, text_sum
    call line
    ; both zero-filled ends
    mov esi, file_end
    mov ecx, elf + BSS - 64             ; the stack is in the last bytes
    call sum
    mov esi, text_zero
    call line
    mov esi, 0x200000
    mov ecx, 0x200000 + 8192
    call sum
    mov esi, text_second
    call line
    ; memory map; the payload is what type 2 covers at 32 MiB
    mov ebp, [ebx + 48]
    mov edi, [ebx + 44]
    add edi, ebp
.entry:
    mov esi, text_map
    mov eax, [ebp + 20]
    call line
    mov esi, text_from
    mov eax, [ebp + 4]
    call line
    mov esi, text_from
    mov eax, [ebp + 8]
    call line
    mov esi, text_len
    mov eax, [ebp + 12]
    call line
    mov esi, text_len
    mov eax, [ebp + 16]
    call line
    cmp dword [ebp + 4], 0x2000000
    jne .next
    cmp dword [ebp + 20], 2
    jne .next
    push ebp
    mov esi, 0x2000000
    mov ecx, esi
    add ecx, [esi + 8]                  ; the test's payload tells its length there
    call sum
    mov esi, text_payload
    call line
    pop ebp
.next:
    add ebp, [ebp]
    add ebp, 4
    cmp ebp, edi
    jb .entry
    mov esi, text_done
    call print
    mov dx, 0x8900
    mov esi, text_shutdown
    mov ecx, 8
    rep outsb
    mov dx, 0xf4
    xor eax, eax
    out dx, eax
    cli
    hlt

; eax = sum of the bytes from esi to ecx, each times its distance from esi plus one
sum:
    xor eax, eax
    push edi
    xor edi, edi
.next:
    cmp esi, ecx
    jae .done
    movzx edx, byte [esi]
    inc edi
    inc esi
    imul edx, edi
    add eax, edx
    jmp .next
.done:
    pop edi
    ret

; text at esi, then eax in hexadecimal, then a newline
line:
    push eax
    call print
    pop eax
    mov ecx, 8
.digit:
    rol eax, 4
    push eax
    and al, 15
    cmp al, 10
    sbb al, 0x69
    das
    call putc
    pop eax
    loop .digit
    mov esi, text_newline
print:
    lodsb
    test al, al
    jz .done
    call putc
    jmp print
.done:
    ret

putc:
    push edx
    push eax
    mov dx, 0x3fd
.wait:
    in al, dx
    test al, 0x20
    jz .wait
    pop eax
    mov dx, 0x3f8
    out dx, al
    mov dx, 0x3fd
.sent:
    in al, dx
    test al, 0x40                       ; the simulation must not end with characters on the way
    jz .sent
    pop edx
    ret

text_tsc        db "tsc ", 0
text_magic      db "magic ", 0
text_flags      db "flags ", 0
text_lower      db "lower ", 0
text_upper      db "upper ", 0
text_cmdline    db "cmdline ", 0
text_module     db "module ", 0
text_end        db "module-end ", 0
text_sum        db "module-sum ", 0
text_zero       db "zero ", 0
text_second     db "second ", 0
text_map        db "map ", 0
text_from       db " from ", 0
text_len        db " len ", 0
text_payload    db "payload-sum ", 0
text_done       db "done"
text_newline    db 10, 0
text_shutdown   db "Shutdown"

second:
    times 100 db 7
file_end:
stack_top equ elf + BSS

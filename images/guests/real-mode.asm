; SPDX-License-Identifier: MIT OR Apache-2.0
; Does 16-bit code run? Real mode with its interrupt table, string and port instructions, a place without memory
; (segment hole=, 0xa000), unreal limits, then back to 32-bit mode.
LOW_CODE        equ 0x8000
%define low(label) (LOW_CODE + (label) - blob)

main:
    argument "hole=", 0xa000
    mov [hole], eax
    mov esi, blob
    mov edi, LOW_CODE
    mov ecx, blob_end - blob
    rep movsb
    mov dword [0x80 * 4], low(service)  ; vector 0x80 of the real-mode table
    mov dword [6 * 4], low(invalid)
    mov [old_stack], esp
    lidt [real_idt]
    jmp CODE16:low(enter16)
back32:
    mov eax, DATA32
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, [old_stack]
    lidt [idt_pointer]
    movzx eax, word [low(results)]
    expect "int 0x80 was called", eax, 0x1234
    movzx eax, word [low(results) + 2]
    expect "invalid opcodes", eax, 1
    movzx eax, word [low(results) + 4]
    expect "word where nothing is", eax, 0xffff
    movzx eax, byte [low(results) + 6]
    expect "byte where nothing is, after a write", eax, 0xff
    mov eax, [low(results) + 8]
    expect "string copy from where nothing is", eax, 0xffffffff
    movzx eax, word [low(results) + 12]
    expect "di after it", eax, low(results) + 12
    mov eax, [low(results) + 16]
    expect "addition with carry in memory", eax, 0x00010000
    mov eax, [low(results) + 20]
    expect "a far place by a 32-bit address", eax, "far!"
    say "back from 16-bit mode"
    ret

align 4
old_stack       dd 0
hole            dd 0
far_text        db "far!"
real_idt:
    dw 0x3ff
    dd 0

blob:
bits 16
enter16:
    mov ax, DATA16                      ; a 16-bit stack; the other segments keep their limits
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    jmp 0:low(.real)
.real:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    mov ax, 0x1234
    int 0x80
    ud2
    mov eax, hole
    mov eax, [dword eax]                ; limits are still 4 GiB: unreal mode
    mov es, ax
    mov ax, [es:2]
    mov [low(results) + 4], ax
    mov byte [es:4], 0x12
    mov al, [es:4]
    mov [low(results) + 6], al
    push ds
    push es
    pop ds
    xor ax, ax
    mov es, ax
    mov si, 16
    mov di, low(results) + 8
    mov cx, 2
    cld
    rep movsw
    pop ds
    mov [low(results) + 12], di
    mov word [low(results) + 16], 0xffff
    add word [low(results) + 16], 1
    adc word [low(results) + 18], 0
    mov eax, far_text
    mov eax, [dword eax]
    mov [low(results) + 20], eax
    mov si, low(text16)
    mov dx, COM1
    mov cx, text16_end - text16
    rep outsb
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword CODE32:back32
service:
    mov [low(results)], ax
    iret
invalid:
    inc word [low(results) + 2]
    push bp
    mov bp, sp
    add word [bp + 2], 2
    pop bp
    iret
text16:
    db "guest: 16 bits", 10
text16_end:
align 4
results:
    times 24 db 0
blob_end:
bits 32

; SPDX-License-Identifier: MIT OR Apache-2.0
; Is the clock chip sane? Valid BCD date and time, battery good, memory size registers, writable CMOS bytes.
main:
    mov ecx, 100000
.update:                                ; not while it changes
    mov al, 0x0a
    call cmos
    test al, 0x80
    jz .stable
    loop .update
    failed "the update never ends"
.stable:
    mov al, 0x0b
    call cmos
    and eax, 0x06
    expect "24 hours, BCD (register B)", eax, 2
    mov al, 0x0d
    call cmos
    and eax, 0x80
    expect "battery (register D)", eax, 0x80
    mov esi, fields
.field:
    lodsb                               ; register, smallest, largest
    cmp al, 0xff
    je .century
    call cmos
    mov ebx, eax
    and eax, 15
    cmp eax, 9
    ja .bad
    mov ecx, ebx
    shr ecx, 4
    imul ecx, 10
    add ecx, eax
    movzx eax, byte [esi]
    movzx edx, byte [esi + 1]
    add esi, 2
    cmp ecx, eax
    jb .bad
    cmp ecx, edx
    ja .bad
    mov [scratch], ecx
    jmp .field
.bad:
    expect "a date or time field", ebx, 0
    ret
.century:
    show "year:", [scratch]
    ; KiB above 1 MiB: at most 63 MiB are told
    mov al, 0x31
    call cmos
    mov ebx, eax
    mov al, 0x30
    call cmos
    shl ebx, 8
    or eax, ebx
    call min_kib
    expect "KiB above 1 MiB", eax, ecx
    mov al, 0x50                        ; a byte for anybody
    out 0x70, al
    mov al, 0x5a
    out 0x71, al
    mov al, 0x50
    call cmos
    expect "a written byte", eax, 0x5a
    ret

; ecx = KiB above 1 MiB by the boot loader, at most 63 MiB; eax if that is near
min_kib:
    mov ebx, [boot_info]
    mov ecx, [ebx + 8]
    cmp ecx, 63 * 1024
    jbe .small
    mov ecx, 63 * 1024
.small:
    mov edx, ecx
    sub edx, eax
    jns .positive
    neg edx
.positive:
    cmp edx, 1024                       ; firmware may keep some RAM for itself
    ja .done
    mov ecx, eax
.done:
    ret

; eax = CMOS register al
cmos:
    out 0x70, al
    xor eax, eax
    in al, 0x71
    ret

fields:
    db 0, 0, 59, 2, 0, 59, 4, 0, 23, 7, 1, 31, 8, 1, 12, 9, 20, 99, 0xff

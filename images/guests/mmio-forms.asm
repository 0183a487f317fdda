; SPDX-License-Identifier: MIT OR Apache-2.0
; Does each instruction do to a device what it does to RAM? The processor is the oracle: every form runs on RAM filled
; with ones, then where nothing is, which reads as ones too. Registers, flags, and the RAM around must agree. 32-bit mode.
; mmio= (hexadecimal) is the place.

; form {instruction}, ...: esi is the place, edi is RAM for string instructions, fs is a segment that starts at the
; place. Registers are known, carry is set; the stack must be left as it was.
%macro form 1-*
    %push
    %defstr %$text %1
    call compare_forms
    dd %%text, %%end
%rep %0
    %1
%rotate 1
%endrep
    ret
%%text:
    db %$text, 0
%%end:
    %pop
%endmacro

LEN             equ 64                  ; bytes of the place, and of the RAM around
PATTERN         equ 0x01020304

main:
    argument "mmio=", NO_DEVICE
    mov [mmio], eax
    mov eax, cr0
    and eax, ~0x0c
    mov cr0, eax
    mov eax, cr4
    or eax, 0x600
    mov cr4, eax

    ; moves
    form {mov al, [esi]}
    form {mov dh, [esi + 1]}
    form {mov ax, [esi + 2]}
    form {mov eax, [esi + 4]}
    form {mov eax, [esi + ecx * 4 + 8]}
    form {mov [esi], al}, {mov al, [esi + 1]}
    form {mov [esi], dx}, {mov dx, [esi + 2]}
    form {mov [esi], ebx}, {mov ebx, [esi + 4]}
    form {mov byte [esi + 1], 0x12}
    form {mov word [esi + 2], 0x1234}
    form {mov dword [esi + 4], 0x12345678}
    form {mov al, [fs:8]}
    form {mov ax, [fs:8]}
    form {mov eax, [fs:8]}
    form {mov [fs:8], al}
    form {mov [fs:8], ax}
    form {mov [fs:8], eax}
    form {mov eax, [fs:ecx + 1]}
    form {movzx eax, byte [esi]}
    form {movzx eax, word [esi]}
    form {movzx ax, byte [esi]}
    form {movsx eax, byte [esi]}
    form {movsx eax, word [esi]}
    form {movsx ax, byte [esi]}
    form {movnti [esi], eax}
    form {xchg [esi], eax}
    form {xchg dl, [esi + 3]}
    form {cmovc eax, [esi]}
    form {cmovnc eax, [esi]}
    form {setc [esi]}
    form {setnc [esi]}
    form {push dword [esi]}, {pop eax}
    form {push edx}, {pop dword [esi]}

    ; arithmetic, all flags
    form {add [esi], eax}
    form {add eax, [esi]}
    form {add byte [esi], 1}
    form {add word [esi], 0x1001}
    form {add dword [esi], 1}
    form {lock add dword [esi], 0x10}
    form {adc [esi], dl}
    form {adc edx, [esi]}
    form {adc dword [esi], 0}
    form {sub [esi], ax}
    form {sub edx, [esi]}
    form {sub dword [esi], -1}
    form {sbb [esi], edx}
    form {sbb dl, [esi]}
    form {cmp [esi], eax}
    form {cmp eax, [esi]}
    form {cmp byte [esi], 0xff}
    form {cmp dword [esi], 0}
    form {inc dword [esi]}
    form {inc byte [esi]}
    form {dec word [esi]}
    form {dec dword [esi]}
    form {neg dword [esi]}
    form {not dword [esi]}
    form {xadd [esi], eax}
    form {lock xadd [esi], dl}
    form {cmpxchg [esi], edx}
    form {mov eax, -1}, {lock cmpxchg [esi], edx}
    form {cmpxchg [esi], cl}
    form {lock cmpxchg8b [esi]}
    form {mov eax, -1}, {mov edx, -1}, {cmpxchg8b [esi]}
    ; logic; the auxiliary flag is undefined
    form {and [esi], eax}, {call no_af}
    form {and eax, [esi]}, {call no_af}
    form {and byte [esi], 0x80}, {call no_af}
    form {or [esi], edx}, {call no_af}
    form {or dl, [esi]}, {call no_af}
    form {or dword [esi], 1}, {call no_af}
    form {xor [esi], eax}, {call no_af}
    form {xor eax, [esi]}, {call no_af}
    form {lock xor dword [esi], -1}, {call no_af}
    form {test [esi], eax}, {call no_af}
    form {test byte [esi], 1}, {call no_af}
    form {test dword [esi], 0x80000000}, {call no_af}
    ; bits; only carry is defined
    form {bt dword [esi], 5}, {call only_cf}
    form {mov edx, 45}, {bt [esi], edx}, {call only_cf}
    form {bts dword [esi], 31}, {call only_cf}
    form {mov eax, 100}, {bts [esi], eax}, {call only_cf}
    form {lock btr dword [esi], 0}, {call only_cf}
    form {btc word [esi], 3}, {call only_cf}
    form {bsf eax, [esi]}, {call only_zf}
    form {bsr eax, [esi]}, {call only_zf}
    ; shifts; overflow is defined for counts of one
    form {shl dword [esi], 1}, {call no_af}
    form {shr byte [esi], 1}, {call no_af}
    form {sar word [esi], 1}, {call no_af}
    form {rol dword [esi], 1}
    form {rcr byte [esi], 1}
    form {shl dword [esi], cl}, {call shifted}
    form {ror dword [esi], 7}, {call shifted}
    form {shld [esi], eax, 4}, {call shifted}
    ; multiplication and division
    form {imul eax, [esi]}, {call only_cf}
    form {imul edx, [esi], 77}, {call only_cf}
    form {mul dword [esi]}, {call only_cf}
    form {imul byte [esi]}, {call only_cf}
    form {xor edx, edx}, {div dword [esi]}, {call no_flags}
    ; strings, upwards and downwards, to, from and within the place
    form {movsb}
    form {movsw}
    form {movsd}
    form {rep movsb}
    form {rep movsd}
    form {std}, {add esi, 16}, {add edi, 16}, {rep movsw}, {cld}
    form {xchg esi, edi}, {movsb}, {xchg esi, edi}
    form {xchg esi, edi}, {rep movsd}, {xchg esi, edi}
    form {lea edi, [esi + 32]}, {rep movsd}, {sub edi, esi}
    form {xchg esi, edi}, {stosb}, {xchg esi, edi}
    form {xchg esi, edi}, {rep stosd}, {xchg esi, edi}
    form {lodsb}
    form {lodsw}
    form {rep lodsd}
    form {cmpsb}
    form {repe cmpsd}
    form {xchg esi, edi}, {repne cmpsb}, {xchg esi, edi}
    form {xchg esi, edi}, {scasb}, {xchg esi, edi}
    form {mov eax, -1}, {xchg esi, edi}, {repe scasd}, {xchg esi, edi}
    form {xchg esi, edi}, {mov al, -1}, {repne scasb}, {xchg esi, edi}
    form {xor ecx, ecx}, {rep movsd}
    ; no memory is touched, but the address is there
    form {lea eax, [esi + 4]}, {sub eax, esi}
    form {prefetcht0 [esi]}
    form {clflush [esi]}
    show "forms:", [forms]
    ret

; What of the flags to compare.
no_af:
    pushfd
    and dword [esp], ~0x10
    jmp set_flags
only_cf:
    pushfd
    and dword [esp], 0x01
    jmp set_flags
only_zf:
    pushfd
    and dword [esp], 0x40
    jmp set_flags
shifted:
    pushfd
    and dword [esp], ~0x810
    jmp set_flags
no_flags:
    pushfd
    and dword [esp], 0
set_flags:
    or dword [esp], 2
    popfd
    ret

; Behind the call: address of the text, address to go on at, the form.
compare_forms:
    pop ebp                             ; the caller's registers do not matter
    inc dword [forms]
    mov eax, ram
    mov edi, results
    call run
    mov eax, [mmio]
    mov edi, results + RESULT
    call run
    mov ecx, RESULT / 4
    mov esi, results
    mov edi, results + RESULT
    repe cmpsd
    je .same
    sub esi, results + 4
    failed "a form differs from the same on RAM:"
    push esi
    mov esi, prefix
    call print
    mov esi, [ebp]
    call print
    mov al, 10
    call putc
    pop esi
    show "place in the result (eax ebx ecx edx esi edi flags RAM):", esi
    mov eax, [results + esi]
    mov ecx, [results + RESULT + esi]
    expect "result", ecx, eax
.same:
    mov ecx, [ebp + 4]
    jmp ecx

; Runs the form behind ebp + 8 on the place eax; its result goes to edi.
RESULT          equ 28 + LEN
run:
    push ebp
    push edi
    mov [place], eax
    mov edi, eax
    mov ecx, LEN / 4
    mov eax, -1
.fill:                                  ; with ones; lost where nothing is
    mov [edi], eax
    add edi, 4
    loop .fill
    mov edi, around
    mov ecx, LEN / 4
    mov eax, PATTERN
    rep stosd
    mov eax, [place]                    ; fs starts at the place
    mov [segment_fs + 2], ax
    shr eax, 16
    mov [segment_fs + 4], al
    mov [segment_fs + 7], ah
    push gs
    lgdt [own_gdt_pointer]
    mov eax, 0x18
    mov fs, eax
    lea eax, [ebp + 8]
    mov [code], eax
    mov eax, 0x12345678
    mov ebx, 0x9abcdef0
    mov ecx, 3
    mov edx, 0x0f0f55aa
    mov esi, [place]
    mov edi, around
    clc
    push dword 0x03                     ; carry
    popfd
    call [code]
    pushfd
    and dword [esp], 0xcd5              ; status flags and direction
    sub esi, [place]
    pop dword [result_flags]
    cld
    pop gs
    lgdt [gdt_pointer]
    mov ebp, edi
    cmp edi, [place]                    ; edi may point into the place
    jb .elsewhere
    sub ebp, [place]
    cmp ebp, LEN * 2
    jbe .kept
.elsewhere:
    mov ebp, edi
.kept:
    pop edi
    stosd
    mov eax, ebx
    stosd
    mov eax, ecx
    stosd
    mov eax, edx
    stosd
    mov eax, esi
    stosd
    mov eax, ebp
    stosd
    mov eax, [result_flags]
    stosd
    mov esi, around
    mov ecx, LEN / 4
    rep movsd
    pop ebp
    ret

align 8
own_gdt:
    dq 0
    dq 0x00cf9a000000ffff
    dq 0x00cf92000000ffff
segment_fs:
    dq 0x00cf92000000ffff
own_gdt_pointer:
    dw 31
    dd own_gdt
align 4
mmio            dd 0
place           dd 0
code            dd 0
forms           dd 0
result_flags    dd 0
ram             equ free
around          equ free + 4096
results         equ free + 8192

; SPDX-License-Identifier: MIT OR Apache-2.0
; What can a guest do with privileged registers and instructions? Every MSR of the architectural ranges, every bit of CR0 and
; CR4, the debug registers, and instructions that VT-x makes exit: each works or faults, and nothing else happens.
LIMIT           equ 0x2000

main:
    on GP, skip
    on UD, skip

    ; MSRs: what reads without a fault takes its own value back, whatever was tried in between
    mov ecx, 0
    call registers
    mov ecx, 0xc0000000
    call registers
    mov ecx, 0x40000000
    call registers
    mov ecx, 0xffffff00
    mov dword [limit], 0x100
    call registers

    ; CR4: bits that CPUID does not offer fault, the others read back
    mov ecx, 31
.cr4_bit:
    mov edx, 1
    shl edx, cl
    mov eax, cr4
    mov ebx, eax
    xor eax, edx
    mov esi, [faults]
    mov dword [length], 3
    mov cr4, eax
    mov edi, cr4
    cmp esi, [faults]
    je .cr4_taken
    mov eax, ebx
.cr4_taken:
    expect "CR4 after a change of one bit", edi, eax
    mov cr4, ebx
    mov eax, cr4
    expect "CR4 as before", eax, ebx
    dec ecx
    jns .cr4_bit
    mov eax, cr4
    or eax, (1 << 13) | (1 << 14) | (1 << 17) | (1 << 18) | (1 << 20) | (1 << 21)
    mov esi, [faults]
    mov cr4, eax                        ; VMXE SMXE PCIDE OSXSAVE SMEP SMAP
    inc esi
    expect "CR4 bits without a feature fault", [faults], esi

    ; CR0: every bit but PE and PG
    mov ecx, 30
.cr0_bit:
    mov edx, 1
    shl edx, cl
    mov eax, cr0
    mov ebx, eax
    xor eax, edx
    mov esi, [faults]
    mov cr0, eax
    mov edi, cr0
    mov cr0, ebx
    mov edx, cr0
    expect "CR0 as before", edx, ebx
    dec ecx
    jnz .cr0_bit

    ; debug registers
    mov eax, 0xffffffff
    mov dr0, eax
    mov dr1, eax
    mov dr2, eax
    mov dr3, eax
    mov dr6, eax
    mov dr7, eax
    mov eax, dr0
    expect "DR0", eax, 0xffffffff
    xor eax, eax
    mov dr7, eax
    mov dr6, eax

    ; instructions
    xor ecx, ecx
    xor eax, eax
    xor edx, edx
%macro try 2+                           ; bytes to skip, the instruction
    mov dword [length], %1
    %2
%endmacro
    mov dword [faults], 0
    try 3, vmcall
    try 3, vmlaunch
    try 3, vmresume
    try 3, vmxoff
    try 3, db 0x0f, 0x01, 0xd4          ; VMFUNC
    try 7, db 0x0f, 0xc7, 0x35          ; VMPTRLD [operand]
    dd operand
    try 8, db 0xf3, 0x0f, 0xc7, 0x35    ; VMXON [operand]
    dd operand
    try 3, vmread eax, ecx
    try 3, vmwrite ecx, eax
    try 9, db 0x66, 0x0f, 0x38, 0x80, 0x05 ; INVEPT eax, [operand]
    dd operand
    try 9, db 0x66, 0x0f, 0x38, 0x81, 0x05 ; INVVPID
    dd operand
    try 9, db 0x66, 0x0f, 0x38, 0x82, 0x05 ; INVPCID
    dd operand
    try 2, db 0x0f, 0x37                ; GETSEC
    try 3, xsetbv
    try 3, xgetbv
    try 2, rdpmc
    try 3, monitor
    try 3, mwait
    try 3, rdtscp
    try 2, rsm
    try 3, db 0x0f, 0x01, 0xcf          ; ENCLS
    try 3, db 0x0f, 0x01, 0xc5          ; PCONFIG
    expect "instructions that are not there", [faults], 22
    mov dword [faults], 0
    try 2, invd
    try 2, wbinvd
    try 3, invlpg [eax]
    try 2, clts
    db 0xf3, 0x90                       ; PAUSE
    expect "instructions that do nothing", [faults], 0
    ret

; The registers from ecx on.
registers:
    mov [first], ecx
    mov dword [length], 2
.next:
    mov esi, [faults]
    rdmsr
    cmp esi, [faults]
    jne .absent
    cmp ecx, 0x10                       ; the TSC does not stand still
    je .absent
    mov [old], eax
    mov [old + 4], edx
    mov ebx, 64                         ; one bit after the other, then all
.bit:
    mov eax, [old]
    mov edx, [old + 4]
    dec ebx
    js .all
    btc [old], ebx
    xchg eax, [old]
    xchg edx, [old + 4]
    jmp .write
.all:
    mov eax, -1
    mov edx, eax
.write:
    wrmsr
    mov eax, [old]
    mov edx, [old + 4]
    wrmsr
    test ebx, ebx
    jns .bit
    rdmsr
    cmp eax, [old]
    jne .changed
    cmp edx, [old + 4]
    je .absent
.changed:
    show "register", ecx
    failed "a register that does not take its value back"
.absent:
    inc ecx
    mov eax, ecx
    sub eax, [first]
    cmp eax, [limit]
    jb .next
    ret

skip:
    inc dword [faults]
    mov eax, [length]
    add [esp + FRAME + frame.eip], eax
    ret

align 8
old             dd 0, 0
first           dd 0
limit           dd LIMIT
length          dd 0
faults          dd 0
operand         times 4 dd 0

; SPDX-License-Identifier: MIT OR Apache-2.0
; Which processor does the guest see? What is promised is there, what is not virtualised is hidden, unknown registers fault.
main:
    xor eax, eax
    cpuid
    expect "vendor", ebx, "Genu"
    expect "vendor", edx, "ineI"
    expect "vendor", ecx, "ntel"
    cmp eax, 0x16
    jae .leaves
    failed "CPUID goes up to leaf 0x16"
.leaves:
    mov eax, 1
    cpuid
    mov esi, ecx
    ; FPU DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT CLFSH MMX FXSR SSE SSE2
    and edx, 0x0788a97d
    expect "features that must be there", edx, 0x0788a97d
    ; MONITOR VMX SMX x2APIC TSC-deadline XSAVE OSXSAVE AVX F16C
    and esi, (1 << 3) | (1 << 5) | (1 << 6) | (1 << 21) | (1 << 24) | (1 << 26) | (1 << 27) | (1 << 28) | (1 << 29)
    expect "features that must be hidden", esi, 0
    mov eax, 1
    cpuid
    test edx, 1 << 9
    jz .no_apic
    failed "there is no local APIC"
.no_apic:
    mov eax, 0x80000001
    cpuid
    and edx, (1 << 20) | (1 << 29)      ; SYSCALL is told in 64-bit mode only
    expect "NX, long mode", edx, (1 << 20) | (1 << 29)
    on GP, fault
    ; absent ones fault on reads and writes
    mov esi, absent
.next:
    lodsd
    test eax, eax
    jz .known
    mov ecx, eax
    mov edi, [faults]
    rdmsr                               ; 2 bytes
    wrmsr
    sub edi, [faults]
    neg edi
    cmp edi, 2
    je .next
    show "register", ecx
    expect "faults of rdmsr and wrmsr", edi, 2
    jmp .next
.known:
    mov dword [faults], 0
    ; reserved bits fault, and change nothing
    mov ecx, 0xc0000080                 ; EFER
    rdmsr
    mov esi, eax
    or eax, 1 << 9
    wrmsr
    expect "a reserved bit of EFER faults", [faults], 1
    rdmsr
    expect "EFER", eax, esi
    mov ecx, 0x277                      ; PAT: type 2 is reserved
    rdmsr
    mov esi, eax
    mov al, 2
    wrmsr
    expect "a reserved type in PAT faults", [faults], 2
    rdmsr
    expect "PAT", eax, esi
    mov al, 1
    wrmsr
    rdmsr
    movzx edi, al
    expect "PAT is written", edi, 1
    mov eax, esi
    wrmsr
    mov ecx, 0x174                      ; SYSENTER registers keep their values
    mov ebp, 3
.keep:
    lea eax, [ecx + 0x3300]
    xor edx, edx
    wrmsr
    rdmsr
    lea edi, [ecx + 0x3300]
    expect "a SYSENTER register", eax, edi
    inc ecx
    dec ebp
    jnz .keep
    mov ecx, 0xc0000082                 ; LSTAR
    mov eax, 0x12345678
    mov edx, 0xffff8000
    wrmsr
    xor edx, edx
    rdmsr
    expect "LSTAR, low", eax, 0x12345678
    expect "LSTAR, high", edx, 0xffff8000
    mov ecx, 0x10                       ; TSC
    rdmsr
    mov esi, eax
    mov edi, edx
    rdtsc
    sub eax, esi
    sbb edx, edi
    expect "RDTSC follows the TSC register", edx, 0
    cmp eax, 1000000
    jb .near
    failed "the TSC register is far from RDTSC"
.near:
    ; VT-x cannot be switched on
    mov eax, cr4
    mov esi, eax
    or eax, 1 << 13
    mov [faults], dword 0
    on GP, fault3
    mov cr4, eax                        ; 3 bytes
    expect "CR4.VMXE faults", [faults], 1
    mov eax, cr4
    expect "CR4", eax, esi
    ; reserved bits of CR0 and CR4
    mov eax, 0x80000000 | 0x10          ; paging without protection
    mov cr0, eax
    expect "CR0.PG without CR0.PE faults", [faults], 2
    mov eax, cr4
    or eax, 1 << 30
    mov cr4, eax
    expect "a reserved bit of CR4 faults", [faults], 3
    ret
fault3:
    inc dword [esp + FRAME + frame.eip]
fault:
    add dword [esp + FRAME + frame.eip], 2
    inc dword [faults]
    ret
align 4
faults          dd 0
absent:
    dd 0x480, 0x48b, 0x800, 0x802, 0x6e0, 0xd90, 0x12345, 0x40000000, 0xc0000fff, 0

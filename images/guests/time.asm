; SPDX-License-Identifier: MIT OR Apache-2.0
; Do the clocks agree? The time stamp counter against the timer and against what CPUID says of its rate; the timer's
; counter runs down; the refresh bit of port 0x61 toggles.
main:
    ; 50 ms by counter 2, as kernels calibrate
    in al, 0x61
    and al, 0xfc
    or al, 1                            ; gate on, speaker off
    out 0x61, al
    mov al, 0xb0                        ; counter 2, low and high byte, mode 0
    out 0x43, al
    mov al, 59659 & 0xff
    out 0x42, al
    mov al, 59659 >> 8
    out 0x42, al
    rdtsc
    mov esi, eax
    mov edi, edx
.wait:
    in al, 0x61
    test al, 0x20
    jz .wait
    rdtsc
    sub eax, esi
    sbb edx, edi
    expect "50 ms are less than 2^32 TSC ticks", edx, 0
    mov ebp, eax                        ; TSC ticks in 50 ms
    mov ecx, 50000
    xor edx, edx
    div ecx
    show "TSC by the timer, MHz:", eax
    ; CPUID 0x15: rate = ecx * ebx / eax
    xor eax, eax
    cpuid
    cmp eax, 0x15
    jb .no_rate
    mov eax, 0x15
    cpuid
    test eax, eax
    jz .no_rate
    test ecx, ecx
    jz .no_rate
    mov esi, eax
    mov eax, ecx
    mul ebx
    div esi                             ; Hz
    xor edx, edx
    mov ecx, 20
    div ecx                             ; ticks in 50 ms
    show "TSC ticks in 50 ms by CPUID:", eax
    show "TSC ticks in 50 ms by the timer:", ebp
    ; within 2 %, later by the time that port accesses take
    mov ebx, eax
    sub eax, ebp
    jns .positive
    neg eax
.positive:
    imul ecx, eax, 50
    cmp ecx, ebx
    jbe .counter
    failed "timer and CPUID disagree by more than 2 %"
    jmp .counter
.no_rate:
    say "CPUID tells no TSC rate"
.counter:
    xor ecx, ecx                        ; 65536
    call pit_periodic
    call latched
    mov ebx, eax
    mov ecx, 100000
.spin:
    call latched
    cmp eax, ebx
    jne .runs
    loop .spin
    failed "counter 0 stands still"
.runs:
    in al, 0x61
    mov bl, al
    mov ecx, 100000
.refresh:
    in al, 0x61
    xor al, bl
    test al, 0x10
    jnz .done
    loop .refresh
    failed "the refresh bit of port 0x61 stands still"
.done:
    ret

; eax = counter 0
latched:
    xor eax, eax
    out 0x43, al
    in al, 0x40
    mov ah, al
    in al, 0x40
    xchg al, ah
    ret

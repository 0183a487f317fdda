; SPDX-License-Identifier: MIT OR Apache-2.0
; What does each kind of exit cost, as the guest sees it? TSC ticks per operation, the loop's own subtracted.
; memory: 48
COUNT           equ 2000
FRESH_4K        equ 0x800000            ; 512 pages that nobody touched
FRESH_2M        equ 0xc00000            ; 8 large pages

; bench name, count, {instruction}, ...: runs it count times. ecx counts; afterwards eax, edx, esi are changed.
%macro bench 3-*
%assign bench_count %2
    call quiet
    mov ecx, %2
    %defstr bench_text %1
    rdtsc
    mov [from], eax
%%again:
%rotate 2
%rep %0 - 2
    %1
%rotate 1
%endrep
    dec ecx
    jnz %%again
    rdtsc
    call bench_end
    dd bench_count
%rotate 0
    db bench_text, 0
%endmacro

main:
    argument "mmio=", NO_DEVICE
    mov ebp, eax
    mov [overhead], dword 0
    bench loop, COUNT, {}
    mov eax, [last]
    mov [overhead], eax
    bench cpuid, COUNT, {push ecx}, {xor eax, eax}, {cpuid}, {pop ecx}
    mov edx, 0x300
    bench port-in-absent, COUNT, {in al, dx}
    mov edx, 0x300
    bench port-out-absent, COUNT, {out dx, al}
    mov edx, COM1 + 7                   ; the UART's scratch register: a device, without effect
    bench port-in, COUNT, {in al, dx}
    mov edx, COM1 + 7
    bench port-out, COUNT, {out dx, al}
    bench port-in-pic, COUNT, {in al, 0x21}
    mov edi, ebp
    mov eax, [edi]
    bench mmio-read, COUNT, {mov eax, [edi]}
    bench mmio-write, COUNT, {mov [edi], eax}
    bench mmio-read-byte, COUNT, {movzx eax, byte [edi + 5]}
    bench mmio-add, COUNT, {add dword [edi], 1}
    mov esi, ebp
    mov edi, free
    bench mmio-rep-movsd-32, COUNT / 32, {push ecx}, {mov ecx, 32}, {rep movsd}, {sub esi, 128}, {sub edi, 128}, {pop ecx}
    mov edi, FRESH_4K
    bench page-4k, 512, {mov [edi], eax}, {add edi, 4096}
    mov edi, FRESH_4K
    bench page-4k-again, 512, {mov [edi], eax}, {add edi, 4096}
    mov edi, FRESH_2M
    bench page-2m, 8, {mov [edi], eax}, {add edi, 0x200000}
    ret

; Until the line that was printed last is on the wire: its interrupts would be measured too. With exits, since the host
; may take its interrupts only between them. ecx = 0 afterwards.
quiet:
    push eax
    push edx
    mov edx, COM1 + 5
    mov ecx, 800
.wait:
    in al, dx
    dec ecx
    jnz .wait
    pop edx
    pop eax
    ret

; Prints (eax - [from]) / count - overhead. Behind the call: count, name.
bench_end:
    sub eax, [from]
    xchg ebx, [esp]
    push ebx
    xor edx, edx
    div dword [ebx]
    sub eax, [overhead]
    jns .positive
    xor eax, eax
.positive:
    mov [last], eax
    mov esi, prefix
    push eax
    call print
    mov esi, bench_word
    call print
    lea esi, [ebx + 4]
    call print
    mov al, ' '
    call putc
    pop eax
    call print_decimal
    mov al, 10
    call putc
    pop ebx
    xchg ebx, [esp]
    mov [esp], esi
    ret
align 4
from            dd 0
last            dd 0
overhead        dd 0
bench_word      db "bench ", 0

; SPDX-License-Identifier: MIT OR Apache-2.0
; How does a PC get from its BIOS into the seL4 kernel? This boot sector reads the second stage; stage2.inc does the rest.
; One flat file: boot sector, second stage, table. src/disk.rs writes the table and appends kernel, root task, payload.
%include "table.inc"
bits 16
org 0x7c00

    jmp short start
    nop
    times 0x5a - ($ - $$) db 0          ; a FAT BIOS parameter block would be here: some BIOSes write to it

start:
    jmp 0:.normal
.normal:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, STACK_TOP
    sti
    cld
    mov [drive], dl
    mov [simulator], ebx
    push dx
    call serial_setup
    pop dx

    mov ah, 0x41                        ; int 13h extensions?
    mov bx, 0x55aa
    int 0x13
    jc .no_extensions
    cmp bx, 0xaa55
    jne .no_extensions
    test cl, 1
    jz .no_extensions

    mov bp, LOADED_SECTORS              ; sector by sector: no BIOS refuses that
.next:
    mov bl, 4
.retry:
    mov si, packet
    mov dl, [drive]
    mov ah, 0x42
    push bx
    push bp
    int 0x13
    pop bp
    pop bx
    jnc .read
    xor ah, ah
    mov dl, [drive]
    int 0x13                            ; reset the drive
    dec bl
    jnz .retry
    mov si, text_disk
    jmp fail
.read:
    mov word [packet.count], 1
    add word [packet.offset], SECTOR
    inc dword [packet.lba]
    dec bp
    jnz .next
    jmp stage2

.no_extensions:
    mov si, text_extensions
    ; fall through

; Prints the text at si on the screen, COM1 and COM2, and stops.
fail:
    push si
    mov si, text_umbra
    call print
    pop si
    call print
    mov si, text_newline
    call print
stop:
    cmp dword [simulator], FROM_ROM
    jne .halt
    mov si, text_shutdown               ; Bochs ends when it sees this on port 0x8900
    mov dx, 0x8900
    mov cx, 8
    rep outsb
.halt:
    hlt
    jmp .halt

; Prints the text at si (zero-ended). Changes ax and si.
print:
    lodsb
    test al, al
    jz .done
    call putc
    jmp print
.done:
    ret

; Prints al on the screen and both serial ports, at whatever speed they are set to.
putc:
    pusha
    push ax
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    pop ax
    mov dx, 0x3f8 + 5
    call .serial
    mov dx, 0x2f8 + 5
    call .serial
    popa
    ret
.serial:
    mov ah, al
    xor cx, cx
.wait:
    in al, dx
    test al, 0x20                       ; transmitter empty? An absent port reads 0xff
    loopz .wait
    sub dx, 5
    mov al, ah
    out dx, al
    ret

; COM1 and COM2: 115200 baud, 8N1.
serial_setup:
    mov dx, 0x3f8
    call .one
    mov dx, 0x2f8
.one:
    add dx, 3
    mov al, 0x80
    out dx, al                          ; LCR: divisor latch
    sub dx, 3
    mov ax, 1
    out dx, ax                          ; divisor 1
    add dx, 3
    mov al, 3
    out dx, al                          ; LCR: 8N1
    ret

text_umbra      db 13, 10, "umbra loader: ", 0
text_extensions db "no int 13h extensions (not a hard disk?)", 0
text_disk       db "disk read error", 0
text_newline    db 13, 10, 0
text_shutdown   db "Shutdown"
drive           db 0
simulator       dd 0

align 4
packet:
    db 16, 0
.count:
    dw 1
.offset:
    dw 0x7e00, 0
.lba:
    dq 1

    times 0x1b8 - ($ - $$) db 0         ; disk signature and partition table: src/disk.rs
    times 510 - ($ - $$) db 0
    dw 0xaa55

%include "stage2.inc"
    times SECTOR * (1 + STAGE2_SECTORS) - ($ - $$) db 0

the_table:
    db "UMBTABLE"
    dd TABLE_VERSION
    times SECTOR * (2 + STAGE2_SECTORS) - ($ - $$) db 0
command_line:
    times SECTOR * (1 + LOADED_SECTORS) - ($ - $$) db 0

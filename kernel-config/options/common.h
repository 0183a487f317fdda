/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What do all kernels have in common? */
#define CONFIG_ARCH_X86 1
#define CONFIG_ARCH_X86_64 1
#define CONFIG_X86_64 1
#define CONFIG_PLAT_PC99 1
#define CONFIG_WORD_SIZE 64
#define CONFIG_KERNEL_MASTER 1
#define CONFIG_MAX_NUM_NODES 1
#define CONFIG_CACHE_LN_SZ 64
#define CONFIG_KERNEL_STACK_BITS 12
#define CONFIG_OPTIMISATION_O3 1

/* Interrupts and timer */
#define CONFIG_IRQ_IOAPIC 1
#define CONFIG_MAX_NUM_IOAPIC 1
#define CONFIG_XAPIC 1
#define CONFIG_TIMER_TICK_MS 2
#define CONFIG_TIME_SLICE 5
#define CONFIG_NUM_DOMAINS 1
#define CONFIG_NUM_PRIORITIES 256

/* Objects. The root CNode has 2^17 slots: zeroing it is part of every boot. */
#define CONFIG_ROOT_CNODE_SIZE_BITS 17
#define CONFIG_MAX_NUM_BOOTINFO_UNTYPED_CAPS 230
#define CONFIG_RETYPE_FAN_OUT_LIMIT 256
#define CONFIG_MAX_NUM_WORK_UNITS_PER_PREEMPTION 100
#define CONFIG_RESET_CHUNK_BITS 12
#define CONFIG_MAX_RMRR_ENTRIES 32

/* Entry and floating point */
#define CONFIG_SYSCALL 1
#define CONFIG_FASTPATH 1
#define CONFIG_HAVE_FPU 1
#define CONFIG_FXSAVE 1
#define CONFIG_XSAVE_SIZE 512
#define CONFIG_FPU_MAX_RESTORES_SINCE_SWITCH 64

/* VT-x is compiled into both platforms, so that the same programs run on both; without it the CPU has no VCPU objects. */
#define CONFIG_VTX 1
#define CONFIG_MAX_VPIDS 64

#define CONFIG_MULTIBOOT_GRAPHICS_MODE_NONE 1
#define CONFIG_NO_BENCHMARKS 1
#define CONFIG_MAX_NUM_TRACE_POINTS 0

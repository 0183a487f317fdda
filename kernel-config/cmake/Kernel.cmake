# SPDX-License-Identifier: MIT OR Apache-2.0
# How is the kernel compiled? All C files as one unit, as its own build does, so that the compiler sees the whole program.

# Each folder holds what its name says; files of other processors and platforms are in other folders.
set(sources "")
foreach(folder . api benchmark fastpath kernel machine model object smp
        arch/x86 arch/x86/api arch/x86/benchmark arch/x86/kernel arch/x86/machine arch/x86/model arch/x86/object
        arch/x86/64 arch/x86/64/kernel arch/x86/64/machine arch/x86/64/model arch/x86/64/object plat/pc99/machine)
    cmake_path(SET path NORMALIZE "${SEL4}/src/${folder}/x")
    cmake_path(GET path PARENT_PATH path)
    file(GLOB found "${path}/*.c")
    list(APPEND sources ${found})
endforeach()
# No build of the tree includes profiler.c; capdl.c prints the capability distribution, in debug kernels.
list(FILTER sources EXCLUDE REGEX "/profiler\\.c$")
if(NOT UMBRA_KERNEL_DEBUG)
    list(FILTER sources EXCLUDE REGEX "/capdl\\.c$")
endif()
# Ordered by path, which the files rely on: some take for granted what an earlier one included.
list(SORT sources)
list(APPEND sources "${SEL4}/src/config/default_domain.c")
list(TRANSFORM sources REPLACE "(.+)" "#include \"\\1\"\n")
list(JOIN sources "" unit)
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/kernel_all.c" CONTENT "${unit}" @ONLY)

set(assembly
    "${SEL4}/src/arch/x86/multiboot.S"
    "${SEL4}/src/arch/x86/64/head.S"
    "${SEL4}/src/arch/x86/64/machine_asm.S"
    "${SEL4}/src/arch/x86/64/traps.S")

set(linker_script "${CMAKE_BINARY_DIR}/linker.lds")
add_custom_command(OUTPUT "${linker_script}"
    COMMAND "${CMAKE_C_COMPILER}" -E -P -nostdinc -x c ${define_flags} ${include_flags}
        "${SEL4}/src/plat/pc99/linker.lds" -o "${linker_script}"
    DEPENDS "${SEL4}/src/plat/pc99/linker.lds" "${AUTOCONF}"
    COMMENT "Linker script"
    VERBATIM)

add_executable(kernel.elf "${CMAKE_BINARY_DIR}/kernel_all.c" ${assembly} ${GENERATED_HEADERS} "${linker_script}")
set_target_properties(kernel.elf PROPERTIES LINK_DEPENDS "${linker_script}")
target_include_directories(kernel.elf PRIVATE ${KERNEL_INCLUDES})
target_compile_definitions(kernel.elf PRIVATE ${KERNEL_DEFINES})
target_compile_options(kernel.elf PRIVATE -m64 -nostdinc -ffreestanding -fno-pic -fno-pie)
target_compile_options(kernel.elf PRIVATE $<$<COMPILE_LANGUAGE:C>:
    --std=c99 -O3 -g1 -mcmodel=kernel -mno-mmx -mno-sse -mno-sse2 -mno-3dnow -mno-red-zone
    -fno-asynchronous-unwind-tables -fno-stack-protector -fcf-protection=none -fno-strict-aliasing
    -Wall -Wpointer-arith -Wno-nonnull
    -Wno-address-of-packed-member   # the kernel takes addresses in packed hardware tables and knows them to be aligned,
    -Wno-array-bounds>)             # and it reads the BIOS data area by its address
target_link_options(kernel.elf PRIVATE -m64 -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-n -Wl,-z,noexecstack
    -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments "-T${linker_script}")

# With several cores the kernel counts bits, for which the compiler calls its own library.
target_link_libraries(kernel.elf PRIVATE gcc)

# Multiboot loaders take a 32-bit file.
add_custom_command(OUTPUT "${CMAKE_BINARY_DIR}/kernel32.elf"
    COMMAND "${UMBRA_OBJCOPY}" -O elf32-i386 "$<TARGET_FILE:kernel.elf>" "${CMAKE_BINARY_DIR}/kernel32.elf"
    DEPENDS kernel.elf
    COMMENT "kernel32.elf"
    VERBATIM)
add_custom_target(kernel32 ALL DEPENDS "${CMAKE_BINARY_DIR}/kernel32.elf")

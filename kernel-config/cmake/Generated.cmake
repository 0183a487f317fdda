# SPDX-License-Identifier: MIT OR Apache-2.0
# Which headers are made, and from what? Bitfields from .bf files by the tree's generator, numbers of system calls and
# invocations from its XML. All land in include/ below the build folder.

set(GENERATED "${CMAKE_BINARY_DIR}/include")
set(AUTOCONF "${GENERATED}/autoconf.h")
set(GENERATED_HEADERS "")

# Include path of the kernel, as its own build has it for x86_64 on pc99.
set(KERNEL_INCLUDES
    "${GENERATED}"
    "${SEL4}/include"
    "${SEL4}/include/64"
    "${SEL4}/include/arch/x86"
    "${SEL4}/include/arch/x86/arch/64"
    "${SEL4}/include/plat/pc99"
    "${SEL4}/include/plat/pc99/plat/64")
set(KERNEL_DEFINES HAVE_AUTOCONF __KERNEL_64__ KERNEL_64=y __X86_64__=y ARCH_X86 X86_64)
if(UMBRA_KERNEL_DEBUG)
    list(APPEND KERNEL_DEFINES DEBUG)
endif()
list(TRANSFORM KERNEL_INCLUDES PREPEND "-I" OUTPUT_VARIABLE include_flags)
list(TRANSFORM KERNEL_DEFINES PREPEND "-D" OUTPUT_VARIABLE define_flags)

# Further arguments: the files that the source includes.
function(umbra_bitfields source header)
    list(TRANSFORM ARGN PREPEND "${SEL4}/include/" OUTPUT_VARIABLE included)
    list(APPEND included "${SEL4}/include/${source}")
    cmake_path(GET header PARENT_PATH folder)
    file(MAKE_DIRECTORY "${GENERATED}/${folder}")
    add_custom_command(OUTPUT "${GENERATED}/${header}"
        COMMAND "${CMAKE_C_COMPILER}" -E -P -nostdinc -x c ${define_flags} ${include_flags}
            "${SEL4}/include/${source}" -o "${GENERATED}/${header}.pbf"
        COMMAND "${UMBRA_PYTHON}" -W ignore "${SEL4}/tools/bitfield_gen.py" "${GENERATED}/${header}.pbf"
            "${GENERATED}/${header}"
        DEPENDS ${included} "${AUTOCONF}" "${SEL4}/include/config.h"
        COMMENT "Bitfields ${header}"
        VERBATIM)
    set(GENERATED_HEADERS ${GENERATED_HEADERS} "${GENERATED}/${header}" PARENT_SCOPE)
endfunction()

function(umbra_numbers kind source header)
    cmake_path(GET header PARENT_PATH folder)
    file(MAKE_DIRECTORY "${GENERATED}/${folder}")
    set(script "${CMAKE_SOURCE_DIR}/kernel-config/numbers.py")
    add_custom_command(OUTPUT "${GENERATED}/${header}"
        COMMAND "${UMBRA_PYTHON}" "${script}" ${kind} "${SEL4}/${source}" "${GENERATED}/${header}"
        DEPENDS "${SEL4}/${source}" "${script}"
        COMMENT "Numbers ${header}"
        VERBATIM)
    set(GENERATED_HEADERS ${GENERATED_HEADERS} "${GENERATED}/${header}" PARENT_SCOPE)
endfunction()

umbra_bitfields(64/mode/api/shared_types.bf mode/api/shared_types_gen.h)
umbra_bitfields(arch/x86/arch/object/structures.bf arch/object/structures_gen.h
    arch/x86/arch/64/mode/object/structures.bf object/structures_64.bf)
umbra_bitfields(plat/pc99/plat/64/plat_mode/machine/hardware.bf plat_mode/machine/hardware_gen.h)
umbra_numbers(syscalls include/api/syscall.xml arch/api/syscall.h)
umbra_numbers(invocations libsel4/include/interfaces/sel4.xml api/invocation.h)
umbra_numbers(sel4-arch-invocations libsel4/sel4_arch_include/x86_64/interfaces/sel4arch.xml arch/api/sel4_invocation.h)
umbra_numbers(arch-invocations libsel4/arch_include/x86/interfaces/sel4arch.xml arch/api/invocation.h)

/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What does a kernel for any x86-64 CPU have besides? */
/* A plain CPU model has no FSGSBASE instructions. */
#define CONFIG_FSGSBASE_MSR 1

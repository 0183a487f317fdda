/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What does a kernel for machines with VT-x have besides? */
/* Cheaper than the MSRs. Every CPU with VT-x that the project is tested on has these instructions. */
#define CONFIG_FSGSBASE_INST 1

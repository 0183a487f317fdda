/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What does a debug kernel have besides? */
#define CONFIG_DEBUG_BUILD 1
#define CONFIG_PRINTING 1
#define CONFIG_IRQ_REPORTING 1
#define CONFIG_USER_STACK_TRACE_LENGTH 16

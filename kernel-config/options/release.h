/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What does a release kernel have besides? */
/* No CONFIG_PRINTING: with it the kernel would write a message for every refused system call. */

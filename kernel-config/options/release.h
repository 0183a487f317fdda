/* No CONFIG_PRINTING: with it the kernel would write a message for every refused system call. */

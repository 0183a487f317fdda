/* A plain CPU model has no FSGSBASE instructions. */
#define CONFIG_FSGSBASE_MSR 1

/* Every CPU with unrestricted guests and EPT that we name in the documents has these instructions. */
#define CONFIG_FSGSBASE_INST 1

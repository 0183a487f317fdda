// SPDX-License-Identifier: MIT OR Apache-2.0
//! How are I/O ports read and written?

use crate::Result;
use crate::cap::IOPort;
use sel4_sys as sys;

macro_rules! ports {
    ($($size:literal: $kind:ident, $input:ident = $sys_in:ident, $output:ident = $sys_out:ident;)*) => {
        /// Each call takes about 480 ticks. Errors: `IllegalOperation` for a port that the capability does not cover.
        #[expect(clippy::missing_errors_doc, reason = "said above, for all")]
        impl IOPort { $(
            #[doc = concat!("Reads ", $size, " bits.")]
            pub fn $input(self, port: u16) -> Result<$kind> {
                Ok(sys::$sys_in(self.bits(), port)?)
            }

            #[doc = concat!("Writes ", $size, " bits.")]
            pub fn $output(self, port: u16, value: $kind) -> Result<()> {
                Ok(sys::$sys_out(self.bits(), port.into(), value.into())?)
            }
        )* }
    };
}

ports! {
    "8": u8, ioport_in8 = seL4_X86_IOPort_In8, ioport_out8 = seL4_X86_IOPort_Out8;
    "16": u16, ioport_in16 = seL4_X86_IOPort_In16, ioport_out16 = seL4_X86_IOPort_Out16;
    "32": u32, ioport_in32 = seL4_X86_IOPort_In32, ioport_out32 = seL4_X86_IOPort_Out32;
}

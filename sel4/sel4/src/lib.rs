// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does Rust talk to seL4?
//!
//! Typed capabilities ([`cap`]), their invocations, errors with the kernel's detail, messages, and the VCPU. Names and shape
//! follow the seL4 Foundation's `sel4` crate. One thread for each program: the IPC buffer is found by a global.
//!
//! Costs are in ticks of the Bochs simulator (one for each instruction, the kernel's included), release kernel.
#![no_std]

mod bootinfo;
pub mod cap;
mod cnode;
mod error;
mod fault;
pub mod init_thread;
mod ioport;
mod ipc;
mod irq;
mod mapping;
mod object;
mod rights;
mod tcb;
mod vcpu;
mod vmenter;

pub use bootinfo::{BootInfo, BootInfoPtr, SlotRegion, UntypedDesc};
pub use cap::{CPtr, Cap, CapType};
pub use cnode::{AbsoluteCPtr, CNodeCapData, CPtrWithDepth};
pub use error::{Error, LookupFailure, Result};
pub use fault::Fault;
pub use ipc::{Badge, Call, IpcBuffer, MessageInfo, Received, reply, with_ipc_buffer, with_ipc_buffer_mut, yield_};
pub use irq::IoApicPin;
pub use mapping::{EptAttributes, FrameType, PageAttributes, TranslationTable};
pub use object::{ObjectBlueprint, ObjectType};
pub use rights::CapRights;
pub use sel4_sys as sys;
pub use sel4_sys::vcpu as vmcs;
pub use sel4_sys::{seL4_UserContext as UserContext, set_ipc_buffer};
pub use vcpu::GuestRegisters;
pub use vmenter::{ExitMessage, VmEntry, VmExit, vm_enter, vm_enter_with, vm_enter_with_rax, vm_enter_with_registers};

/// A machine word: message register, address, capability pointer.
pub type Word = u64;

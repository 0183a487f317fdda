// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which capabilities does the root task start with?

/// Slots of the root task's CNode.
pub mod slot {
    use crate::cap;
    use sel4_sys as sys;

    /// Its thread.
    pub const TCB: cap::Tcb = cap::Tcb::from_bits(sys::seL4_CapInitThreadTCB);
    /// Its CNode, which is its whole CSpace.
    pub const CNODE: cap::CNode = cap::CNode::from_bits(sys::seL4_CapInitThreadCNode);
    /// Its address space.
    pub const VSPACE: cap::VSpace = cap::VSpace::from_bits(sys::seL4_CapInitThreadVSpace);
    /// All interrupts.
    pub const IRQ_CONTROL: cap::IrqControl = cap::IrqControl::from_bits(sys::seL4_CapIRQControl);
    /// Makes ASID pools.
    pub const ASID_CONTROL: cap::AsidControl = cap::AsidControl::from_bits(sys::seL4_CapASIDControl);
    /// An ASID pool.
    pub const ASID_POOL: cap::AsidPool = cap::AsidPool::from_bits(sys::seL4_CapInitThreadASIDPool);
    /// All I/O ports.
    pub const IO_PORT: cap::IOPort = cap::IOPort::from_bits(sys::seL4_CapIOPort);
    /// The frame of the boot information.
    pub const BOOT_INFO_FRAME: cap::SmallPage = cap::SmallPage::from_bits(sys::seL4_CapBootInfoFrame);
    /// The frame of its IPC buffer.
    pub const IPC_BUFFER: cap::SmallPage = cap::SmallPage::from_bits(sys::seL4_CapInitThreadIPCBuffer);
    /// Scheduling domains.
    pub const DOMAIN_SET: cap::DomainSet = cap::DomainSet::from_bits(sys::seL4_CapDomain);
}

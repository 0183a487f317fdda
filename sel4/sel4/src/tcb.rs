// SPDX-License-Identifier: MIT OR Apache-2.0
//! How is a thread set up and controlled?

use crate::cap::{CNode, CPtr, EptPml4, Notification, SmallPage, Tcb, VSpace};
use crate::{CNodeCapData, Result, UserContext, Word};
use sel4_sys as sys;

impl Tcb {
    /// Sets everything at once. `fault_endpoint` is an address in the thread's own CSpace (or null); priorities are 0 to
    /// 255; `ipc_buffer` is its address in the thread's address space.
    ///
    /// # Errors
    /// `InvalidCapability` for a wrong root or frame, `RangeError` for a priority above the caller's maximum,
    /// `AlignmentError` for the buffer (512 bytes).
    #[expect(clippy::too_many_arguments, reason = "one invocation takes all of it")]
    pub fn tcb_configure(
        self,
        fault_endpoint: CPtr,
        priority: u8,
        max_controlled_priority: u8,
        cspace_root: CNode,
        cspace_root_data: CNodeCapData,
        vspace_root: VSpace,
        ipc_buffer: Word,
        ipc_buffer_frame: SmallPage,
    ) -> Result<()> {
        let priority = sys::seL4_PrioProps::new(Word::from(max_controlled_priority), Word::from(priority));
        Ok(sys::seL4_TCB_Configure(
            self.bits(),
            fault_endpoint.bits(),
            priority,
            cspace_root.bits(),
            cspace_root_data.into_inner(),
            vspace_root.bits(),
            CNodeCapData::unchanged().into_inner(),
            ipc_buffer,
            ipc_buffer_frame.bits(),
        )?)
    }

    /// Sets both priorities, the maximum first.
    ///
    /// # Errors
    /// `RangeError` for a priority above the caller's maximum.
    pub fn tcb_set_sched_params(self, max_controlled_priority: u8, priority: u8) -> Result<()> {
        sys::seL4_TCB_SetMCPriority(self.bits(), max_controlled_priority)?;
        Ok(sys::seL4_TCB_SetPriority(self.bits(), priority)?)
    }

    /// Writes all registers; the thread runs if `resume`.
    ///
    /// # Errors
    /// `IllegalOperation` for the caller's own thread.
    pub fn tcb_write_all_registers(self, resume: bool, registers: &UserContext) -> Result<()> {
        const COUNT: Word = (size_of::<UserContext>() / size_of::<Word>()) as Word;
        Ok(sys::seL4_TCB_WriteRegisters(self.bits(), resume, 0, COUNT, registers)?)
    }

    /// Reads all registers; the thread stops if `suspend`.
    ///
    /// # Errors
    /// `IllegalOperation` for the caller's own thread.
    pub fn tcb_read_all_registers(self, suspend: bool) -> Result<UserContext> {
        const COUNT: Word = (size_of::<UserContext>() / size_of::<Word>()) as Word;
        Ok(sys::seL4_TCB_ReadRegisters(self.bits(), suspend, 0, COUNT)?)
    }

    /// Lets the thread run.
    ///
    /// # Errors
    /// None of a thread capability that exists.
    pub fn tcb_resume(self) -> Result<()> {
        Ok(sys::seL4_TCB_Resume(self.bits())?)
    }

    /// Stops the thread.
    ///
    /// # Errors
    /// None of a thread capability that exists.
    pub fn tcb_suspend(self) -> Result<()> {
        Ok(sys::seL4_TCB_Suspend(self.bits())?)
    }

    /// Binds a notification: its signals end the thread's waits, and its VMEnter.
    ///
    /// # Errors
    /// `IllegalOperation` if either is bound already.
    pub fn tcb_bind_notification(self, notification: Notification) -> Result<()> {
        Ok(sys::seL4_TCB_BindNotification(self.bits(), notification.bits())?)
    }

    /// Ends the binding.
    ///
    /// # Errors
    /// `IllegalOperation` if there is none.
    pub fn tcb_unbind_notification(self) -> Result<()> {
        Ok(sys::seL4_TCB_UnbindNotification(self.bits())?)
    }

    /// Gives the thread the address space in which its VCPU's guest runs. The thread keeps a copy of the capability:
    /// revoke the original before deleting the EPT.
    ///
    /// # Errors
    /// `InvalidCapability` if the EPT has no ASID.
    pub fn tcb_set_ept_root(self, ept: EptPml4) -> Result<()> {
        Ok(sys::seL4_TCB_SetEPTRoot(self.bits(), ept.bits())?)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does the kernel tell the root task at its start?

use crate::cap::{Cap, CapType, SmallPage, Untyped, cap_type};
use crate::{IpcBuffer, Word};
use core::marker::PhantomData;
use core::ops::{Deref, Range};
use sel4_sys as sys;

/// The boot information, where the kernel put it.
#[derive(Clone, Copy)]
pub struct BootInfoPtr(&'static BootInfo);

impl BootInfoPtr {
    /// From the address that the kernel passes at start.
    ///
    /// # Safety
    /// `address` is that address.
    pub const unsafe fn new(address: *const BootInfo) -> Self {
        // SAFETY: the kernel maps the structure for the whole run, and nobody writes to it.
        Self(unsafe { &*address })
    }
}

impl Deref for BootInfoPtr {
    type Target = BootInfo;
    fn deref(&self) -> &BootInfo {
        self.0
    }
}

/// The kernel's report about the machine and the root task.
#[repr(transparent)]
pub struct BootInfo(sys::seL4_BootInfo);

impl BootInfo {
    /// All untyped memory, described by [`Self::untyped_list`] in the same order.
    pub fn untyped(&self) -> SlotRegion<cap_type::Untyped> {
        SlotRegion::new(self.0.untyped)
    }

    /// One description for each untyped capability.
    pub fn untyped_list(&self) -> &[UntypedDesc] {
        let list = &raw const self.0.untypedList;
        let length = self
            .untyped()
            .len()
            .min(sys::config::CONFIG_MAX_NUM_BOOTINFO_UNTYPED_CAPS as usize);
        // SAFETY: UntypedDesc is a transparent wrapper, packed as the list is, and the list lives as long as self.
        unsafe { core::slice::from_raw_parts(list.cast(), length) }
    }

    /// Untyped capabilities with their descriptions.
    pub fn untyped_caps(&self) -> impl Iterator<Item = (Untyped, &UntypedDesc)> {
        self.untyped().caps().zip(self.untyped_list())
    }

    /// Empty slots of the root task's CNode.
    pub fn empty(&self) -> SlotRegion<cap_type::Null> {
        SlotRegion::new(self.0.empty)
    }

    /// The 4 KiB frames of the root task's image, by rising address from the page of its lowest segment.
    pub fn user_image_frames(&self) -> SlotRegion<cap_type::SmallPage> {
        SlotRegion::new(self.0.userImageFrames)
    }

    /// The root task's CNode has 2^this slots.
    pub fn init_cnode_size_bits(&self) -> u8 {
        self.0.initThreadCNodeSizeBits
    }

    /// The root task's IPC buffer.
    pub fn ipc_buffer(&self) -> *mut sys::seL4_IPCBuffer {
        self.0.ipcBuffer
    }

    /// Frequency of the time-stamp counter in MHz, as the kernel measured it.
    pub fn tsc_mhz(&self) -> u32 {
        self.0.archInfo as u32
    }

    /// Number of CPUs that the kernel uses.
    pub fn num_nodes(&self) -> Word {
        self.0.numNodes
    }

    /// The structure itself.
    pub fn inner(&self) -> &sys::seL4_BootInfo {
        &self.0
    }

    /// The frame behind `address` of the root task's image, whose lowest address is `image_start` (page-aligned).
    pub fn image_frame(&self, image_start: Word, address: Word) -> Option<SmallPage> {
        let index = address.checked_sub(image_start)? >> sys::seL4_PageBits;
        self.user_image_frames().caps().nth(usize::try_from(index).ok()?)
    }
}

impl IpcBuffer {
    /// Takes the root task's IPC buffer into use.
    ///
    /// # Safety
    /// This is the program's only thread.
    pub unsafe fn init_from(bootinfo: &BootInfo) {
        // SAFETY: passed on; the kernel maps the buffer for the whole run.
        unsafe { sys::set_ipc_buffer(bootinfo.ipc_buffer()) }
    }
}

/// A piece of untyped memory.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct UntypedDesc(sys::seL4_UntypedDesc);

impl UntypedDesc {
    /// Its physical address.
    pub fn paddr(&self) -> Word {
        self.0.paddr
    }

    /// It has 2^this bytes.
    pub fn size_bits(&self) -> u8 {
        self.0.sizeBits
    }

    /// Whether it is not known to be RAM: it can only become frames (and untyped memory), and is not cleared.
    pub fn is_device(&self) -> bool {
        self.0.isDevice != 0
    }
}

/// Adjacent slots of one kind.
pub struct SlotRegion<T: CapType> {
    range: Range<Word>,
    kind: PhantomData<T>,
}

impl<T: CapType> SlotRegion<T> {
    fn new(region: sys::seL4_SlotRegion) -> Self {
        Self {
            range: region.start..region.end,
            kind: PhantomData,
        }
    }

    /// Slot numbers.
    pub fn range(&self) -> Range<Word> {
        self.range.clone()
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The capabilities.
    pub fn caps(&self) -> impl Iterator<Item = Cap<T>> + use<T> {
        self.range.clone().map(Cap::from_bits)
    }
}

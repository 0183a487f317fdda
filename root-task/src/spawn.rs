// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a component comes to be: address space, program, stack, heap, configuration, thread.

use crate::{
    cspace::CSpace,
    failure::Failure,
    kernel::{Kernel, Space},
    untyped::Frame,
    vspace,
};
use sel4::{CNodeCapData, CPtr, ObjectBlueprint, UserContext, cap};
use umbra_description::{Component, RamPages, layout};
use umbra_root_core::{
    audit,
    elf::{PAGE, Program, Segment},
    frames::{Frames, Size},
    ledger::Holder,
};

/// RFLAGS of a new thread: IF, and bit 1, which is always set.
const INTERRUPTS_ON: u64 = 0x202;

/// A component that is built up; it does not run yet.
pub struct Build {
    /// Its address space.
    pub space: Space,
    thread: cap::Tcb,
    ipc_buffer: Frame,
    entry: u64,
    heap: u64,
    facts: audit::Program,
}

/// A component that was started or is about to be.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// Its thread.
    pub tcb: cap::Tcb,
    /// What the audit must know of it.
    pub facts: audit::Program,
}

/// How a component finds its capabilities.
pub struct Root {
    /// The CNode where its lookups start.
    pub cnode: cap::CNode,
    /// The guard that lookups need there.
    pub guard: CNodeCapData,
    /// Where its faults go, in its own CSpace.
    pub fault: u64,
}

impl Build {
    /// Makes address space, program, IPC buffer, stack and heap (`heap_extra` bytes more than the component says).
    pub fn new(
        kernel: &mut Kernel,
        holder: Holder,
        component: &Component,
        program: &Program<'_>,
        heap_extra: u64,
    ) -> Result<Self, Failure> {
        let space = kernel.alloc_space(holder)?;
        for segment in &program.segments {
            load(kernel, &space, segment)?;
        }
        let ipc_buffer = kernel.alloc_page()?;
        kernel.map(ipc_buffer, &space, layout::IPC_BUFFER, true)?;
        memory(kernel, &space, layout::STACK_TOP - component.stack, component.stack)?;
        let heap = component.heap + heap_extra;
        memory(kernel, &space, layout::HEAP, heap)?;
        let (read_only, writable) = program.bytes();
        let facts = audit::Program {
            read_only,
            writable,
            config: 0,
        };
        let thread = kernel.alloc(ObjectBlueprint::Tcb)?;
        Ok(Self {
            space,
            thread,
            ipc_buffer,
            entry: program.entry,
            heap,
            facts,
        })
    }

    /// Its thread; what it needs beyond the usual is bound to it before `finish`.
    pub const fn thread(&self) -> cap::Tcb {
        self.thread
    }

    /// Adds the configuration and sets the thread up, ready to be resumed.
    pub fn finish(
        mut self,
        kernel: &mut Kernel,
        component: &Component,
        root: &Root,
        config: &[u8],
    ) -> Result<Thread, Failure> {
        self.facts.config = (config.len() as u64).next_multiple_of(PAGE);
        let mut vaddr = layout::CONFIG;
        for piece in config.chunks(PAGE as usize) {
            let page = kernel.alloc_page()?;
            vspace::fill(kernel, page, |bytes| bytes[..piece.len()].copy_from_slice(piece))?;
            kernel.map(page, &self.space, vaddr, false)?;
            vaddr += PAGE;
        }
        let registers = UserContext {
            rip: self.entry,
            rsp: layout::STACK_TOP,
            rdi: layout::CONFIG,
            rsi: config.len() as u64,
            rdx: layout::IPC_BUFFER,
            rcx: layout::HEAP,
            r8: self.heap,
            rflags: INTERRUPTS_ON,
            rax: 0,
            rbx: 0,
            rbp: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
            tls_base: 0,
        };
        let buffer = cap::SmallPage::from_bits(self.ipc_buffer.slot);
        let (fault, priority) = (CPtr::from_bits(root.fault), component.priority);
        self.thread
            .tcb_configure(
                fault,
                priority,
                0,
                root.cnode,
                root.guard,
                self.space.vspace,
                layout::IPC_BUFFER,
                buffer,
            )
            .and_then(|()| self.thread.tcb_write_all_registers(false, &registers))
            .map_err(Failure::kernel("set up a thread"))?;
        Ok(Thread {
            tcb: self.thread,
            facts: self.facts,
        })
    }
}

/// Capability slots of a component whose slot numbers are simply those of one CNode.
pub fn flat(cspace: &CSpace, fault: u64) -> Root {
    Root {
        cnode: cspace.cnode(),
        guard: CNodeCapData::whole_cspace(cspace.bits()),
        fault,
    }
}

fn load(kernel: &mut Kernel, space: &Space, segment: &Segment<'_>) -> Result<(), Failure> {
    let mut vaddr = segment.first_page();
    for run in kernel.alloc_frames(Size::Small, segment.pages())? {
        for frame in run.iter() {
            if let Some((at, bytes)) = part(segment, vaddr) {
                vspace::fill(kernel, frame, |page| page[at..at + bytes.len()].copy_from_slice(bytes))?;
            }
            kernel.map(frame, space, vaddr, segment.writable)?;
            vaddr += PAGE;
        }
    }
    Ok(())
}

/// What of a segment's content goes into the page at `page`, and where in it.
fn part<'a>(segment: &Segment<'a>, page: u64) -> Option<(usize, &'a [u8])> {
    let end = segment.vaddr + segment.data.len() as u64;
    let (from, to) = (segment.vaddr.max(page), end.min(page + PAGE));
    if from >= to {
        return None;
    }
    let at = |address: u64| (address - segment.vaddr) as usize;
    Some(((from - page) as usize, &segment.data[at(from)..at(to)]))
}

/// Cleared memory: 2M frames where aligned.
fn memory(kernel: &mut Kernel, space: &Space, start: u64, len: u64) -> Result<(), Failure> {
    let mut vaddr = start;
    for (size, count) in Frames::of_range(start, len, RamPages::Auto).parts() {
        if count == 0 {
            continue;
        }
        for run in kernel.alloc_frames(size, count)? {
            for frame in run.iter() {
                kernel.map(frame, space, vaddr, true)?;
                vaddr += size.bytes();
            }
        }
    }
    Ok(())
}

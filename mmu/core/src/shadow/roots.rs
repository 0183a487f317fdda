// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do root registers and their writes work? What a vCPU's own registers are, what hardware gets instead, and which
//! events make shadow pages catch up: cr3, cr0, cr4 and efer writes, TLB flushes, invlpg, pdptr loads.

use super::gpte::pdpte_reserved;
use super::memory::GuestMemory;
use super::registers::{GeneralProtection, GuestCpu, GuestMode, Registers};
use super::usual::LastPath;
use super::walk::{GuestTables, Paging};
use super::{Shadow, fetch, memory};
use crate::fault::{FaultError, HostFault};
use crate::locks::{Before, Held, InMmu};
use crate::pte_list::PteReserve;
use crate::slots::{Slot, SlotState, SlotTable};
use crate::spte::Format;
use crate::stage2::{GpteSize, Resource, Stage2, Stage2Error, Unflushed};
use crate::table::TableId;
use crate::vcpu::Vcpu;
use crate::{Mmu, Requests};
use core::cell::Cell;
use umbra_mmu_abi::{Access, Gfn};

/// What hardware translates with while the guest runs. cr0.wp and efer.nxe are set, paging is on; cr4.smep and cr4.smap
/// are the guest's ([`Entry`] has them), and off while the guest does not page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// cr3 of 4-level paging.
    Pml4(u64),
    /// cr3 of 5-level paging.
    Pml5(u64),
    /// The four pdptes of PAE paging; 0 for one that is not present.
    Pdptes([u64; 4]),
}

/// What the vCPU's own processor must forget before it runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LocalFlush {
    /// Nothing.
    Nothing,
    /// Everything about this linear address.
    Address(u64),
    /// Everything.
    All,
}

/// How to enter the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The root registers.
    pub roots: Roots,
    /// What to flush before.
    pub flush: LocalFlush,
    /// cr4.smep and cr4.smap for hardware, in their places.
    pub cr4: u64,
}

/// What shadow paging keeps for a vCPU.
#[derive(Debug)]
pub struct VcpuPaging {
    registers: Registers,
    pdptes: [u64; 4],
    pub(super) paging: Paging,
    /// Shadow pages that the root registers name: one, or one for each pdpte. Each counts in its `root_count`.
    // REQ: SP-5
    roots: [Option<TableId>; 4],
    state: RootState,
    flush: LocalFlush,
    /// The leaf page of the last fault below these roots.
    pub(super) path: Option<LastPath>,
}

/// Whether the roots are those that the registers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RootState {
    /// They are.
    Loaded,
    /// They are, and the guest has flushed since: unsync pages have to catch up.
    Flushed,
    /// They are not.
    Stale,
}

impl VcpuPaging {
    /// As after reset: no paging.
    pub(crate) fn new(cpu: &GuestCpu) -> Self {
        let registers = Registers::default();
        Self {
            registers,
            pdptes: [0; 4],
            paging: Paging::new(&registers, &[0; 4], cpu),
            roots: [None; 4],
            state: RootState::Stale,
            flush: LocalFlush::All,
            path: None,
        }
    }

    /// The root below which `gva` is translated.
    pub(super) fn root(&self, gva: u64) -> Option<TableId> {
        match self.state {
            RootState::Stale => None,
            RootState::Loaded | RootState::Flushed => {
                self.roots[match self.paging.role.level() {
                    2 => (gva >> 30) as usize & 3,
                    _ => 0,
                }]
            }
        }
    }

    /// The roots have to be made again before the next entry.
    pub(super) fn reload(&mut self) {
        self.state = RootState::Stale;
        self.flush = LocalFlush::All;
        self.path = None;
    }
}

impl Vcpu {
    /// The registers as the guest sees them.
    ///
    /// # Panics
    /// The MMU is in EPT mode, where they are nobody's business.
    pub fn registers(&self) -> &Registers {
        &self.paging().registers
    }

    /// The pdptes that the guest's processor has loaded.
    pub fn pdptes(&self) -> [u64; 4] {
        self.paging().pdptes
    }

    pub(super) fn paging(&self) -> &VcpuPaging {
        self.paging.as_ref().expect("a vCPU of an MMU in shadow mode")
    }

    pub(super) fn paging_mut(&mut self) -> &mut VcpuPaging {
        self.paging.as_mut().expect("a vCPU of an MMU in shadow mode")
    }
}

/// Why a register does not have its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLoaded {
    /// #GP(0) for the guest: the value is none.
    GeneralProtection,
    /// The pdptes are in a frame whose owner has to do something before.
    // REQ: HOST-1
    Host(HostFault),
}

impl From<GeneralProtection> for NotLoaded {
    fn from(_: GeneralProtection) -> Self {
        Self::GeneralProtection
    }
}

impl<S: Stage2> Mmu<S> {
    /// The guest writes cr0.
    ///
    /// # Errors
    /// See [`NotLoaded`]; nothing has changed.
    // REQ: EM-1
    pub fn write_cr0(&self, vcpu: &mut Vcpu, cr0: u64) -> Result<(), NotLoaded> {
        let old = *vcpu.registers();
        let new = old.with_cr0(cr0, &self.guest_cpu)?;
        self.set_registers(vcpu, new, new.loads_pdptes(&old))
    }

    /// The guest writes cr3. The TLB is flushed, but for nothing: global pages go too.
    ///
    /// # Errors
    /// See [`NotLoaded`]; nothing has changed.
    // REQ: EM-1, SP-7
    pub fn write_cr3(&self, vcpu: &mut Vcpu, cr3: u64) -> Result<(), NotLoaded> {
        let new = Registers {
            cr3,
            ..*vcpu.registers()
        };
        new.check(&self.guest_cpu)?;
        self.set_registers(vcpu, new, new.mode() == GuestMode::Pae)
    }

    /// The guest writes cr4.
    ///
    /// # Errors
    /// See [`NotLoaded`]; nothing has changed.
    // REQ: EM-1
    pub fn write_cr4(&self, vcpu: &mut Vcpu, cr4: u64) -> Result<(), NotLoaded> {
        let old = *vcpu.registers();
        let new = old.with_cr4(cr4, &self.guest_cpu)?;
        self.set_registers(vcpu, new, new.loads_pdptes(&old))
    }

    /// The guest writes efer.
    ///
    /// # Errors
    /// See [`NotLoaded`]; nothing has changed.
    // REQ: EM-1
    pub fn write_efer(&self, vcpu: &mut Vcpu, efer: u64) -> Result<(), NotLoaded> {
        let new = vcpu.registers().with_efer(efer, &self.guest_cpu)?;
        self.set_registers(vcpu, new, false)
    }

    /// Sets all registers at once, as when a vCPU's state is restored.
    ///
    /// # Errors
    /// See [`NotLoaded`]; nothing has changed.
    pub fn restore_registers(&self, vcpu: &mut Vcpu, new: Registers) -> Result<(), NotLoaded> {
        new.check(&self.guest_cpu)?;
        self.set_registers(vcpu, new, new.mode() == GuestMode::Pae)
    }

    fn set_registers(&self, vcpu: &mut Vcpu, new: Registers, load: bool) -> Result<(), NotLoaded> {
        let pdptes = if load { self.load_pdptes(&new)? } else { vcpu.pdptes() };
        // REQ: GEN-7
        vcpu.mmio.drop_all();
        let state = vcpu.paging_mut();
        state.registers = new;
        state.pdptes = pdptes;
        state.paging = Paging::new(&new, &pdptes, &self.guest_cpu);
        state.reload();
        Ok(())
    }

    /// Reads the four pdptes that cr3 points at.
    // REQ: EM-1
    fn load_pdptes(&self, registers: &Registers) -> Result<[u64; 4], NotLoaded> {
        let mut held = Held::entry();
        let section = self.slots.read(&mut held);
        let memory = GuestMemory::new(self, &section);
        let gfn = Gfn::new((registers.cr3 & 0xffff_ffff) >> 12);
        let offset = registers.cr3 as u16 & 0xfe0;
        let mut pdptes = [0; 4];
        for (at, pdpte) in pdptes.iter_mut().enumerate() {
            // Where there is no memory, all ones.
            *pdpte = memory
                .read(gfn, offset + 8 * at as u16, GpteSize::B8)
                .unwrap_or(u64::MAX);
            if let Some((_, fault)) = memory.need.get() {
                return Err(NotLoaded::Host(fault));
            }
            if pdpte_reserved(*pdpte, &self.guest_cpu) != 0 {
                return Err(NotLoaded::GeneralProtection);
            }
        }
        Ok(pdptes)
    }

    /// The guest flushes its TLB otherwise (cr4.pge toggled, a task switch, invpcid).
    // REQ: SP-7, GEN-7
    pub fn flush_tlb(&self, vcpu: &mut Vcpu) {
        vcpu.mmio.drop_all();
        let state = vcpu.paging_mut();
        state.flush = LocalFlush::All;
        if state.state == RootState::Loaded {
            state.state = RootState::Flushed;
        }
    }

    /// The guest flushes one address.
    // REQ: EM-1, SP-7, GEN-7
    pub fn invlpg(&self, vcpu: &mut Vcpu, gva: u64) {
        vcpu.mmio.drop_page(gva >> 12);
        let state = vcpu.paging_mut();
        let gva = state.paging.linear(gva);
        state.flush = match state.flush {
            LocalFlush::Nothing => LocalFlush::Address(gva),
            LocalFlush::Address(before) if before == gva => LocalFlush::Address(gva),
            LocalFlush::Address(_) | LocalFlush::All => LocalFlush::All,
        };
        let Some(root) = state.root(gva) else { return };
        let level = state.paging.role.level();
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        self.with_shadow(slots, held, &mut vcpu.reserve, |shadow| {
            shadow.sync_address(root, level, gva);
            shadow.commit();
        });
    }

    /// Prepares the vCPU for the guest: takes its requests, makes its roots, lets unsync pages catch up.
    ///
    /// # Errors
    /// No table can be had for the roots.
    // REQ: ZAP-1, SP-7, EM-1
    pub fn enter(&self, vcpu: &mut Vcpu) -> Result<Entry, FaultError> {
        let requests = self.take_requests(vcpu);
        let state = vcpu.paging_mut();
        if requests.contains(Requests::FLUSH) {
            state.flush = LocalFlush::All;
        }
        let obsolete = |id: &TableId| self.is_obsolete(*id) || self.tables.get(*id).role().invalid();
        if requests.contains(Requests::RELOAD_ROOTS) || state.roots.iter().flatten().any(obsolete) {
            state.reload();
        }
        match state.state {
            RootState::Loaded => {}
            RootState::Flushed | RootState::Stale => self.load(vcpu)?,
        }
        let state = vcpu.paging_mut();
        let flush = core::mem::replace(&mut state.flush, LocalFlush::Nothing);
        let Format::Shadow(layout) = self.tables.format() else {
            panic!("an MMU in EPT mode has one root, and hardware has it")
        };
        let address = |id: Option<TableId>| layout.table_address(id.unwrap_or(self.root()));
        let roots = match state.paging.mode.shadow_top() {
            2 => Roots::Pdptes(
                state
                    .roots
                    .map(|root| root.map_or(0, |id| layout.table_address(id) | 1)),
            ),
            4 => Roots::Pml4(address(state.roots[0])),
            _ => Roots::Pml5(address(state.roots[0])),
        };
        let cr4 = state.paging.hardware_cr4();
        Ok(Entry { roots, flush, cr4 })
    }

    fn load(&self, vcpu: &mut Vcpu) -> Result<(), FaultError> {
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let mut tries = 0;
        while !self.with_shadow(slots, held, &mut vcpu.reserve, |shadow| {
            shadow.load(vcpu.paging.as_mut().expect("a vCPU of an MMU in shadow mode"))
        }) {
            tries += 1;
            if tries == LOAD_TRIES {
                return Err(Stage2Error::Exhausted(Resource::Tables).into());
            }
            crate::sync::relax();
        }
        Ok(())
    }

    /// Takes the vCPU's roots away from it: it does not run any more.
    // REQ: SP-5
    pub fn release_roots(&self, vcpu: &mut Vcpu) {
        let mut held = Held::entry();
        let mut section = self.slots.read(&mut held);
        let (slots, held) = section.split();
        let state = vcpu.paging.as_mut().expect("a vCPU of an MMU in shadow mode");
        self.with_shadow(slots, held, &mut vcpu.reserve, |shadow| {
            shadow.release(state);
            shadow.commit();
        });
        state.reload();
    }

    /// Takes mmu_lock for writing and does `work` on shadow pages.
    pub(super) fn with_shadow<P: Before<InMmu>, R>(
        &self,
        slots: &SlotTable,
        held: &mut Held<P>,
        reserve: &mut PteReserve,
        work: impl FnOnce(&mut Shadow<'_, S>) -> R,
    ) -> R {
        self.with_shadow_and(slots, None, held, reserve, work)
    }

    /// The same for one who has looked at a slot.
    #[inline(always)]
    pub(super) fn with_shadow_and<P: Before<InMmu>, R>(
        &self,
        slots: &SlotTable,
        last: Option<&Slot>,
        held: &mut Held<P>,
        reserve: &mut PteReserve,
        work: impl FnOnce(&mut Shadow<'_, S>) -> R,
    ) -> R {
        let mut guard = self.lock.write(held);
        let (tree, held) = guard.split();
        let mut shadow = Shadow {
            mmu: self,
            slots,
            pages: tree.shadow.as_mut().expect("an MMU in shadow mode"),
            held,
            reserve,
            removed: Unflushed::NOTHING,
            dead: None,
            last: Cell::new(last),
            leaf_page: self.root(),
        };
        let result = work(&mut shadow);
        shadow.commit();
        result
    }
}

/// Looks for a free table for a root while walkers are still in those that were freed.
const LOAD_TRIES: u32 = 1 << 20;

impl<S: Stage2> Shadow<'_, S> {
    /// Makes the roots that the registers ask for, and lets what is below catch up. `false`: no table yet.
    // REQ: SP-5, SP-7
    fn load(&mut self, state: &mut VcpuPaging) -> bool {
        if state.state == RootState::Stale {
            self.release(state);
            if !self.make_room() {
                return false;
            }
            let paging = state.paging;
            for at in 0..roots_of(&paging) {
                state.roots[at] = self.root_page(&paging, at);
                if let Some(root) = state.roots[at] {
                    self.pages.get_mut(root).root_count += 1;
                }
            }
        }
        for root in state.roots.into_iter().flatten() {
            self.sync_children(root);
        }
        self.commit();
        state.state = RootState::Loaded;
        state.flush = LocalFlush::All;
        true
    }

    /// The shadow page for one root register; `None`: the guest has no table there.
    fn root_page(&mut self, paging: &Paging, at: usize) -> Option<TableId> {
        let gva = (at as u64) << 30;
        if paging.mode == GuestMode::None {
            return Some(self.page_for(Gfn::new((at as u64) << 18), paging.role));
        }
        let gfn = paging.root(gva)?;
        // A table without memory: every access ends in the walk of the guest's tables.
        let slot = self.slot(gfn).filter(|slot| slot.state == SlotState::Live)?;
        memory::access(&self.mmu.host.page(slot.frame_of(gfn)), Access::Read).ok()?;
        let role = fetch::child_role(paging, paging.role.level(), gva);
        Some(self.page_for(gfn, role))
    }

    /// The vCPU's root registers name nothing any more.
    // REQ: SP-5
    fn release(&mut self, state: &mut VcpuPaging) {
        for root in state.roots.iter_mut().filter_map(Option::take) {
            let page = self.pages.get_mut(root);
            page.root_count -= 1;
            if page.root_count == 0 && self.tables().get(root).role().invalid() {
                self.bury(root);
            }
        }
        state.state = RootState::Stale;
        state.path = None;
    }

    /// The spte of one address catches up, if its page is unsync.
    // REQ: SP-7
    pub(super) fn sync_address(&mut self, root: TableId, top: u8, gva: u64) {
        let mut table = root;
        for level in (1..=top).rev() {
            let place = fetch::place_of(table, level, gva);
            if self.pages.get(table).unsync {
                self.refresh_one(place);
            }
            match self.tables().read(place).peek_table(self.tables().format()) {
                Some(below) if level > 1 => table = below,
                Some(_) | None => break,
            }
        }
    }
}

/// How many root registers name a shadow page.
fn roots_of(paging: &Paging) -> usize {
    match paging.mode.shadow_top() {
        2 => 4,
        _ => 1,
    }
}

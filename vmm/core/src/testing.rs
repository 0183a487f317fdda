// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host-test doubles: a scripted virtual CPU, RAM in a vector, devices that write down what reached them.

use crate::devices::Devices;
use crate::exit::RawExit;
use crate::guest_mem::{GuestMemory, RamRegion, Unbacked};
use crate::inject::Event;
use crate::platform::PlatformEvent;
use crate::time::Ticks;
use crate::vcpu::{Entered, Field, Gpr, Vcpu, cr0, cr4, efer};
use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;
use std::{boxed::Box, format, string::String};
use umbra_mmu_abi::Gpa;

/// RAM at 0..len.
pub struct Ram {
    pub bytes: Vec<u8>,
    pub regions: Vec<RamRegion>,
}

impl Ram {
    pub fn new(len: usize) -> Self {
        let regions = std::vec![RamRegion {
            base: Gpa::new(0),
            len: len as u64,
            readonly: false
        }];
        Self {
            bytes: std::vec![0; len],
            regions,
        }
    }
    fn range(&self, gpa: Gpa, len: usize) -> Result<core::ops::Range<usize>, Unbacked> {
        let end = gpa.raw().checked_add(len as u64);
        match end {
            Some(end) if end <= self.bytes.len() as u64 => Ok(gpa.raw() as usize..end as usize),
            _ => Err(Unbacked { gpa, len: len as u64 }),
        }
    }
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
    pub fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
    pub fn get64(&self, at: u64) -> u64 {
        u64::from_le_bytes(
            self.bytes[at as usize..at as usize + 8]
                .try_into()
                .expect("eight bytes"),
        )
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Unbacked> {
        let range = self.range(gpa, buf.len())?;
        buf.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Unbacked> {
        let range = self.range(gpa, bytes.len())?;
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }
    fn zero(&mut self, gpa: Gpa, len: u64) -> Result<(), Unbacked> {
        let range = self.range(gpa, len as usize)?;
        self.bytes[range].fill(0);
        Ok(())
    }
    fn regions(&self) -> &[RamRegion] {
        &self.regions
    }
}

/// What reached a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    In(u16, u8),
    Out(u16, u8, u32),
    Read(u64, u8),
    Write(u64, u8, u64),
}

/// Devices that answer from a list.
#[derive(Default)]
pub struct Log {
    pub seen: Vec<Io>,
    pub answers: VecDeque<u64>,
    pub pending: Option<u8>,
    pub deadline: Option<u64>,
    pub advanced_to: u64,
    pub backend_calls: u32,
    pub event: Option<PlatformEvent>,
}

impl Devices for Log {
    fn pio_read(&mut self, _: Ticks, port: u16, size: u8) -> u32 {
        self.seen.push(Io::In(port, size));
        self.answers.pop_front().unwrap_or(u64::MAX) as u32
    }
    fn pio_write(&mut self, _: Ticks, port: u16, size: u8, value: u32) {
        self.seen.push(Io::Out(port, size, value));
        if port == 0xf4 {
            self.event = Some(PlatformEvent::TestExit(value));
        }
    }
    fn mmio_read(&mut self, _: Ticks, gpa: Gpa, size: u8) -> u64 {
        self.seen.push(Io::Read(gpa.raw(), size));
        self.answers.pop_front().unwrap_or(u64::MAX)
    }
    fn mmio_write(&mut self, _: Ticks, gpa: Gpa, size: u8, value: u64) {
        self.seen.push(Io::Write(gpa.raw(), size, value));
    }
    fn interrupt_pending(&mut self, now: Ticks) -> bool {
        self.advanced_to = now.raw();
        if self.deadline.is_some_and(|d| d <= now.raw()) {
            self.deadline = None;
            self.pending = Some(0x30);
        }
        self.pending.is_some()
    }
    fn acknowledge(&mut self, _: Ticks) -> u8 {
        self.pending.take().expect("acknowledged without a request")
    }
    fn next_deadline(&self, _: Ticks) -> Option<Ticks> {
        self.deadline.map(Ticks::new)
    }
    fn backend_ready(&mut self, _: Ticks) {
        self.backend_calls += 1;
    }
    fn take_event(&mut self) -> Option<PlatformEvent> {
        self.event.take()
    }
}

type Action = Box<dyn FnMut(&mut Script) -> Entered>;

/// A virtual CPU whose guest is a list of closures: each is one stay in the guest.
pub struct Script {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub cr2: u64,
    pub fields: BTreeMap<Field, u64>,
    pub event: Option<Event>,
    pub window: bool,
    pub tsc: u64,
    pub stays: VecDeque<Action>,
    /// Fields read since the start: each costs a system call on the real thing.
    pub reads: Vec<Field>,
    pub writes: Vec<Field>,
    pub entries: u32,
    /// Events seen at entry.
    pub delivered: Vec<Event>,
}

impl Script {
    pub fn new() -> Self {
        let mut fields = BTreeMap::new();
        fields.insert(Field::GuestCr0, cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE);
        fields.insert(Field::GuestCr4, cr4::PAE);
        fields.insert(Field::GuestEfer, efer::LME | efer::LMA | efer::NXE);
        fields.insert(Field::GuestRflags, 2);
        let mut s = Self {
            gprs: [0; 16],
            rip: 0x1000,
            cr2: 0,
            fields,
            event: None,
            window: false,
            tsc: 0,
            stays: VecDeque::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            entries: 0,
            delivered: Vec::new(),
        };
        s.set_code_rights(0xa09b);
        s
    }
    pub fn set_code_rights(&mut self, cs: u64) {
        for f in [
            Field::GuestEsAccessRights,
            Field::GuestSsAccessRights,
            Field::GuestDsAccessRights,
            Field::GuestFsAccessRights,
            Field::GuestGsAccessRights,
        ] {
            self.fields.insert(f, 0xc093);
        }
        for f in [
            Field::GuestEsLimit,
            Field::GuestSsLimit,
            Field::GuestDsLimit,
            Field::GuestFsLimit,
            Field::GuestGsLimit,
            Field::GuestCsLimit,
        ] {
            self.fields.insert(f, 0xffff_ffff);
        }
        self.fields.insert(Field::GuestCsAccessRights, cs);
    }
    pub fn stay(&mut self, action: impl FnMut(&mut Script) -> Entered + 'static) {
        self.stays.push_back(Box::new(action));
    }
    /// A stay that ends in this exit, at the current RIP.
    pub fn exits(&mut self, reason: u32, qualification: u64, instruction_length: u32) {
        self.stay(move |s| {
            Entered::Exit(RawExit {
                reason,
                qualification,
                instruction_length,
                rip: s.rip,
                rflags: s.fields[&Field::GuestRflags],
                ..RawExit::NONE
            })
        });
    }
}

impl Vcpu for Script {
    type Error = String;

    fn enter(&mut self) -> Result<Entered, String> {
        self.entries += 1;
        if let Some(e) = self.event.take() {
            self.delivered.push(e);
        }
        self.tsc += 1000;
        let mut stay = self
            .stays
            .pop_front()
            .ok_or_else(|| format!("script ended after {} entries", self.entries))?;
        Ok(stay(self))
    }
    fn gpr(&mut self, r: Gpr) -> u64 {
        self.gprs[r as usize]
    }
    fn set_gpr(&mut self, r: Gpr, value: u64) {
        self.gprs[r as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn cr2(&mut self) -> u64 {
        self.cr2
    }
    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }
    fn read(&mut self, field: Field) -> u64 {
        self.reads.push(field);
        self.fields.get(&field).copied().unwrap_or(0)
    }
    fn write(&mut self, field: Field, value: u64) {
        self.writes.push(field);
        self.fields.insert(field, value);
    }
    fn set_event(&mut self, event: Option<Event>) {
        self.event = event;
    }
    fn set_interrupt_window(&mut self, wanted: bool) {
        self.window = wanted;
    }
    fn host_tsc(&mut self) -> u64 {
        self.tsc
    }
}

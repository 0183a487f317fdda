// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the walker follow chapter 4 of the manual in each mode? Cases worked out by hand, from its tables.

use crate::fault::ErrorCode;
use crate::sim::paging::*;
use crate::sim::walk::{Memory, NoCaches, Translation, WalkError, load_pdptes, walk};
use crate::stage2::GpteSize;
use alloc::collections::BTreeMap;
use core::convert::Infallible;
use umbra_mmu_abi as abi;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const XD: u64 = 1 << 63;

/// Entries by address; what is not there is 0.
#[derive(Default)]
struct Entries(BTreeMap<u64, u64>);

impl Memory for Entries {
    type Refused = Infallible;
    fn read(&mut self, address: u64, _: GpteSize) -> Result<u64, Infallible> {
        Ok(self.0.get(&address).copied().unwrap_or(0))
    }
    fn compare_exchange(&mut self, address: u64, _: GpteSize, old: u64, new: u64) -> Result<bool, Infallible> {
        let entry = self.0.entry(address).or_insert(0);
        let same = *entry == old;
        if same {
            *entry = new;
        }
        Ok(same)
    }
}

fn registers(mode: PagingMode) -> Registers {
    let cr4 = match mode {
        PagingMode::None | PagingMode::TwoLevel => CR4_PSE,
        PagingMode::Pae | PagingMode::FourLevel => CR4_PAE,
        PagingMode::FiveLevel => CR4_PAE | CR4_LA57,
    };
    Registers {
        cr0: CR0_WP | if mode == PagingMode::None { 0 } else { CR0_PG },
        cr3: 0x1000,
        cr4,
        efer: EFER_NXE
            | match mode {
                PagingMode::FourLevel | PagingMode::FiveLevel => EFER_LME,
                PagingMode::None | PagingMode::TwoLevel | PagingMode::Pae => 0,
            },
        pdptes: [0; 4],
    }
}

const fn access(kind: abi::Access, privilege: Privilege) -> Access {
    Access { kind, privilege }
}
const READ: Access = access(abi::Access::Read, Privilege::Supervisor);
const WRITE: Access = access(abi::Access::Write, Privilege::Supervisor);
const USER_READ: Access = access(abi::Access::Read, Privilege::User);
const USER_WRITE: Access = access(abi::Access::Write, Privilege::User);
const USER_FETCH: Access = access(abi::Access::Fetch, Privilege::User);

fn run(
    memory: &mut Entries,
    registers: &Registers,
    gva: u64,
    access: Access,
) -> Result<Translation, WalkError<Infallible>> {
    let model = Model {
        maxphyaddr: 36,
        ..Model::default()
    };
    walk(memory, &mut NoCaches, &Paging::new(registers, model), gva, access)
}

fn fault(found: Result<Translation, WalkError<Infallible>>) -> ErrorCode {
    match found {
        Err(WalkError::PageFault(code)) => code,
        other => panic!("a page fault was expected, not {other:?}"),
    }
}

/// One mapping in each mode: the registers, the entries from the top, and the address that they translate to 0x5_3000.
fn mapping(mode: PagingMode) -> (Registers, Entries, u64, &'static [u64]) {
    let mut registers = registers(mode);
    let (gva, at): (u64, &[u64]) = match mode {
        PagingMode::None => return (registers, Entries::default(), 0x53_123, &[]),
        // 0xc040_3123: entries 0x301 and 3.
        PagingMode::TwoLevel => (0xc040_3123, &[0x1c04, 0x200c]),
        // Register 3, entries 2 and 3.
        PagingMode::Pae => {
            registers.pdptes[3] = 0x1000 | P;
            (0xc040_3123, &[0x1010, 0x2018])
        }
        // Entries 0x1ff, 0x1fe, 2, 3.
        PagingMode::FourLevel => (0xffff_ffff_8040_3123, &[0x1ff8, 0x2ff0, 0x3010, 0x4018]),
        // Entries 1, 0x1ff, 0x1fe, 2, 3.
        PagingMode::FiveLevel => (0x0001_ffff_8040_3123, &[0x1008, 0x2ff8, 0x3ff0, 0x4010, 0x5018]),
    };
    let mut entries = Entries::default();
    for (depth, at) in at.iter().enumerate() {
        let next = match depth + 1 == at_len(mode) {
            true => 0x53000,
            false => 0x2000 + depth as u64 * 0x1000,
        };
        entries.0.insert(*at, next | P | W | U);
    }
    (registers, entries, gva, at)
}

fn at_len(mode: PagingMode) -> usize {
    mode.top() as usize
}

// REQ: SP-2
#[test]
fn every_mode_translates_and_sets_accessed_and_dirty() {
    for mode in PagingMode::ALL {
        let (registers, mut memory, gva, at) = mapping(mode);
        assert_eq!(registers.mode(), mode);
        let found = run(&mut memory, &registers, gva, USER_READ).unwrap_or_else(|e| panic!("{mode:?}: {e:?}"));
        assert_eq!(found.address, 0x53123, "{mode:?}");
        let entries = at.iter().map(|at| memory.0[at]);
        assert!(entries.clone().all(|e| e & A != 0), "{mode:?}");
        assert!(entries.clone().all(|e| e & D == 0), "{mode:?}");
        run(&mut memory, &registers, gva, USER_WRITE).unwrap();
        let last = at.last().copied();
        for at in at {
            assert_eq!(memory.0[at] & D != 0, Some(*at) == last, "{mode:?}");
        }
    }
}

#[test]
fn an_entry_that_is_not_present_faults_without_p_and_sets_nothing() {
    for mode in PagingMode::ALL {
        for depth in 0..at_len(mode) {
            let (registers, mut memory, gva, at) = mapping(mode);
            *memory.0.get_mut(&at[depth]).unwrap() &= !P;
            let before = memory.0.clone();
            assert_eq!(
                fault(run(&mut memory, &registers, gva, USER_WRITE)),
                ErrorCode::W | ErrorCode::U
            );
            assert_eq!(memory.0, before, "{mode:?}");
        }
    }
}

#[test]
fn accessed_flags_above_a_fault_are_set_where_the_model_says_so() {
    let (registers, mut memory, gva, at) = mapping(PagingMode::FourLevel);
    *memory.0.get_mut(&at[3]).unwrap() &= !P;
    let model = Model {
        accessed: AccessedFlags::AsWalked,
        ..Model::default()
    };
    let paging = Paging::new(&registers, model);
    walk(&mut memory, &mut NoCaches, &paging, gva, READ).unwrap_err();
    assert!(at[..3].iter().all(|at| memory.0[at] & A != 0));
    assert_eq!(memory.0[&at[3]] & A, 0);
}

#[test]
fn each_level_limits_writes_and_users() {
    for mode in PagingMode::ALL {
        for depth in 0..at_len(mode) {
            let (registers, mut memory, gva, at) = mapping(mode);
            *memory.0.get_mut(&at[depth]).unwrap() &= !W;
            let before = memory.0.clone();
            let code = ErrorCode::P | ErrorCode::W;
            assert_eq!(fault(run(&mut memory, &registers, gva, WRITE)), code);
            assert_eq!(
                fault(run(&mut memory, &registers, gva, USER_WRITE)),
                code | ErrorCode::U
            );
            assert_eq!(memory.0, before, "{mode:?}: flags are set by accesses that happen");
            run(&mut memory, &registers, gva, USER_READ).unwrap();
            let wp_off = Registers {
                cr0: CR0_PG,
                ..registers
            };
            run(&mut memory, &wp_off, gva, WRITE).unwrap();
            assert_eq!(fault(run(&mut memory, &wp_off, gva, USER_WRITE)), code | ErrorCode::U);

            let (registers, mut memory, gva, at) = mapping(mode);
            *memory.0.get_mut(&at[depth]).unwrap() &= !U;
            run(&mut memory, &registers, gva, WRITE).unwrap();
            assert_eq!(
                fault(run(&mut memory, &registers, gva, USER_READ)),
                ErrorCode::P | ErrorCode::U
            );
        }
    }
}

#[test]
fn xd_is_a_right_with_nxe_and_reserved_without() {
    for mode in [PagingMode::Pae, PagingMode::FourLevel, PagingMode::FiveLevel] {
        for depth in 0..at_len(mode) {
            let (mut registers, mut memory, gva, at) = mapping(mode);
            *memory.0.get_mut(&at[depth]).unwrap() |= XD;
            run(&mut memory, &registers, gva, USER_READ).unwrap();
            let code = ErrorCode::P | ErrorCode::U;
            assert_eq!(
                fault(run(&mut memory, &registers, gva, USER_FETCH)),
                code | ErrorCode::I
            );
            registers.efer &= !EFER_NXE;
            let rsvd = code | ErrorCode::RSVD;
            assert_eq!(fault(run(&mut memory, &registers, gva, USER_READ)), rsvd);
            // Without NXE and SMEP a fetch is not told from a read.
            assert_eq!(fault(run(&mut memory, &registers, gva, USER_FETCH)), rsvd);
        }
    }
}

#[test]
fn a_reserved_bit_faults_whatever_the_rights_are() {
    for mode in [PagingMode::Pae, PagingMode::FourLevel, PagingMode::FiveLevel] {
        for depth in 0..at_len(mode) {
            let (registers, memory, gva, at) = mapping(mode);
            for bit in 12..63 {
                let mut memory = Entries(memory.0.clone());
                let entry = memory.0.get_mut(&at[depth]).unwrap();
                *entry = (*entry | 1 << bit) & !U;
                let reserved = bit >= 36 && (mode == PagingMode::Pae || bit < 52);
                let code = match run(&mut memory, &registers, gva, USER_READ) {
                    Ok(found) => panic!("{found:?}"),
                    Err(WalkError::PageFault(code)) => code,
                };
                // A bit of the address leads elsewhere: to an entry that is not present, or to the refusal of U.
                assert_eq!(code.contains(ErrorCode::RSVD), reserved, "{mode:?} {depth} {bit}");
            }
        }
    }
}

#[test]
fn the_top_levels_have_no_large_pages() {
    for (mode, depth) in [
        (PagingMode::FourLevel, 0),
        (PagingMode::FiveLevel, 0),
        (PagingMode::FiveLevel, 1),
    ] {
        let (registers, mut memory, gva, at) = mapping(mode);
        *memory.0.get_mut(&at[depth]).unwrap() |= PS;
        assert_eq!(
            fault(run(&mut memory, &registers, gva, READ)),
            ErrorCode::P | ErrorCode::RSVD
        );
    }
}

// REQ: LP-1
#[test]
fn large_pages_of_every_size() {
    // 4M, PSE-36: bits 35:32 of the address are in 16:13.
    let registers32 = registers(PagingMode::TwoLevel);
    let mut memory = Entries(BTreeMap::from([(0x1c04, 0x0080_0000 | 0xa << 13 | P | W | PS)]));
    let found = run(&mut memory, &registers32, 0xc056_7123, WRITE).unwrap();
    assert_eq!((found.address, found.shift), (0xa_0096_7123, 22));
    assert_eq!(memory.0[&0x1c04] & (A | D), A | D);
    for bit in 17..22 {
        let mut memory = Entries(BTreeMap::from([(0x1c04, 1 << bit | P | PS)]));
        let code = fault(run(&mut memory, &registers32, 0xc056_7123, READ));
        assert_eq!(code, ErrorCode::P | ErrorCode::RSVD, "{bit}");
    }
    // Without PSE, bit 7 says nothing, and a table follows.
    let no_pse = Registers { cr4: 0, ..registers32 };
    let mut memory = Entries(BTreeMap::from([(0x1c04, 0x2000 | P | PS), (0x259c, 0x7000 | P)]));
    assert_eq!(run(&mut memory, &no_pse, 0xc056_7123, READ).unwrap().address, 0x7123);
    // 2M.
    let (registers, mut memory, gva, at) = mapping(PagingMode::FourLevel);
    memory.0.insert(at[2], 0x0060_0000 | 1 << 12 | P | PS);
    let found = run(&mut memory, &registers, gva, READ).unwrap();
    assert_eq!((found.address, found.shift), (0x0060_3123, 21));
    memory.0.insert(at[2], 1 << 13 | P | PS);
    assert_eq!(
        fault(run(&mut memory, &registers, gva, READ)),
        ErrorCode::P | ErrorCode::RSVD
    );
    // 1G.
    memory.0.insert(at[1], 0x4000_0000 | 1 << 12 | P | PS);
    let found = run(&mut memory, &registers, gva, READ).unwrap();
    assert_eq!((found.address, found.shift), (0x4040_3123, 30));
    memory.0.insert(at[1], 1 << 29 | P | PS);
    assert_eq!(
        fault(run(&mut memory, &registers, gva, READ)),
        ErrorCode::P | ErrorCode::RSVD
    );
}

#[test]
fn smep_and_smap_keep_the_supervisor_out_of_user_pages() {
    let (mut registers, mut memory, gva, at) = mapping(PagingMode::FourLevel);
    let supervisors = [Privilege::Supervisor, Privilege::SupervisorAc, Privilege::Implicit];
    registers.cr4 |= CR4_SMEP;
    for privilege in supervisors {
        let fetch = access(abi::Access::Fetch, privilege);
        assert_eq!(
            fault(run(&mut memory, &registers, gva, fetch)),
            ErrorCode::P | ErrorCode::I
        );
        run(&mut memory, &registers, gva, access(abi::Access::Read, privilege)).unwrap();
    }
    registers.cr4 ^= CR4_SMEP | CR4_SMAP;
    for privilege in supervisors {
        run(&mut memory, &registers, gva, access(abi::Access::Fetch, privilege)).unwrap();
        for (kind, code) in [
            (abi::Access::Read, ErrorCode::P),
            (abi::Access::Write, ErrorCode::P | ErrorCode::W),
        ] {
            let found = run(&mut memory, &registers, gva, access(kind, privilege));
            match privilege {
                Privilege::SupervisorAc => assert_eq!(found.unwrap().address, 0x53123),
                Privilege::User | Privilege::Supervisor | Privilege::Implicit => assert_eq!(fault(found), code),
            }
        }
    }
    // One entry without U makes it the supervisor's own page.
    *memory.0.get_mut(&at[1]).unwrap() &= !U;
    run(&mut memory, &registers, gva, WRITE).unwrap();
}

#[test]
fn pdptes_are_loaded_once_and_checked() {
    let registers = Registers {
        cr3: 0x1fe0,
        ..registers(PagingMode::Pae)
    };
    let paging = Paging::new(&registers, Model::default());
    let mut memory = Entries(BTreeMap::from([(0x1fe0, 0x3000 | P), (0x1ff8, 0x1e6)]));
    assert_eq!(load_pdptes(&mut memory, &paging), Ok(Some([0x3001, 0, 0, 0x1e6])));
    for bit in [1, 2, 5, 6, 7, 8, 46, 63] {
        memory.0.insert(0x1ff0, P | 1 << bit);
        assert_eq!(load_pdptes(&mut memory, &paging), Ok(None), "{bit}");
    }
    // A register that is not present is a page fault, whatever memory says by now.
    let code = fault(run(&mut memory, &registers, 0x1234, USER_READ));
    assert_eq!(code, ErrorCode::U);
}

/// Memory in which another processor changes an entry once, between the walker's read and its exchange.
struct Racing(Entries, Option<(u64, u64)>);

impl Memory for Racing {
    type Refused = Infallible;
    fn read(&mut self, address: u64, size: GpteSize) -> Result<u64, Infallible> {
        self.0.read(address, size)
    }
    fn compare_exchange(&mut self, address: u64, size: GpteSize, old: u64, new: u64) -> Result<bool, Infallible> {
        if let Some((at, entry)) = self.1.take_if(|(at, _)| *at == address) {
            self.0.0.insert(at, entry);
        }
        self.0.compare_exchange(address, size, old, new)
    }
}

// REQ: PF-2
#[test]
fn an_entry_that_changes_under_the_walk_is_read_again() {
    let (registers, memory, gva, at) = mapping(PagingMode::FourLevel);
    let mut memory = Racing(memory, Some((at[3], 0x99000 | P | W | U)));
    let paging = Paging::new(&registers, Model::default());
    let found = walk(&mut memory, &mut NoCaches, &paging, gva, WRITE).unwrap();
    assert_eq!(found.address, 0x99123);
    assert_eq!(memory.0.0[&at[3]], 0x99000 | P | W | U | A | D);
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What does hardware make of the sptes that it walks? Every MMIO spte faults with RSVD, whatever its generation; every
//! leaf allows what it says. By the manual and by the simulated processor.

use umbra_mmu_abi::{BackingId, GENERATION_BITS, Generation, Gfn, PageLevel};
use umbra_mmu_core::sim::memory::SimMemory;
use umbra_mmu_core::spte::{Format, Leaf, MmioAccess, MmioSpte, Rights, ShadowLayout, Spte, SpteKind, Writable};
use umbra_mmu_core::stage2::Frame;
use umbra_model::cases::Case;
use umbra_model::oracle::{Access, Controls, End, Kind, Paging, Registers, Who, code, translate};

/// Low, high and odd ones; those around 4 GiB, where a 32-bit guest's devices are, among them.
const GFNS: [u64; 8] = [0, 1, 0x1ff, 0xb8, 0xfee00, 0xfffff, 0x5_5555_5555, 0xf_ffff_ffff];

const MAXPHYADDR: u8 = 46;
const LAYOUT: ShadowLayout = SimMemory::layout_for(MAXPHYADDR);
const FORMAT: Format = Format::Shadow(LAYOUT);

/// A host that walks one spte at `level` of `paging`, below entries that allow everything.
fn host(paging: Paging, level: u8, spte: u64) -> Case {
    let top = paging.top();
    let mut entries = [(u64::MAX, 0); 5];
    for at in 1..=top {
        let table = (at as u64) << 12;
        let value = if at == level { spte } else { (table - 0x1000) | 0b100111 };
        entries[at as usize - 1] = (table, value);
    }
    let root = (top as u64) << 12;
    Case {
        gva: 0x18,
        entries,
        regs: Registers {
            paging,
            cr3: root,
            pdptes: [root | 1, 0, 0, 0],
            controls: Controls::WP | Controls::NXE,
            maxphyaddr: MAXPHYADDR.into(),
        },
    }
}

/// The modes in which hardware walks shadow tables.
const HOSTS: [Paging; 3] = [Paging::Pae, Paging::FourLevel, Paging::FiveLevel];

// REQ: GEN-1, GEN-2
#[test]
fn every_mmio_spte_faults_with_rsvd_and_reads_back() {
    let read = Access {
        kind: Kind::Read,
        who: Who::Supervisor,
    };
    for generation in (0..1 << GENERATION_BITS).map(Generation) {
        for gfn in GFNS.map(Gfn::new) {
            for access in MmioAccess::ALL_KINDS {
                let mmio = MmioSpte {
                    gfn,
                    access,
                    generation,
                };
                let spte = Spte::mmio(FORMAT, mmio);
                assert_eq!(spte.decode(FORMAT, 1), Ok(SpteKind::Mmio(mmio)));
                // Width by width hardware could be; the walk itself for every sixteenth.
                for width in 36..=51 {
                    assert_ne!(
                        spte.raw() >> width << width & ((1 << 52) - 1),
                        0,
                        "{mmio:?} has no reserved bit"
                    );
                }
                if generation.0 % 16 == 5 {
                    for paging in HOSTS {
                        let case = host(paging, 1, spte.raw());
                        let end = translate(&case, &case.regs, case.gva, read).end;
                        let rsvd = End::Fault {
                            code: code::P | code::RSVD,
                        };
                        assert_eq!(end, rsvd, "{mmio:?}");
                    }
                }
            }
        }
    }
}

/// What the leaf itself says about an access of a host with cr0.WP and no SMEP and SMAP.
fn allows(leaf: &Leaf, access: Access) -> bool {
    let user = leaf.rights.contains(Rights::USER) || access.who != Who::User;
    let kind = match access.kind {
        Kind::Read => true,
        Kind::Write => leaf.writable == Writable::Now,
        Kind::Fetch => leaf.rights.contains(Rights::EXEC),
    };
    user && kind
}

#[test]
fn every_leaf_allows_what_it_says() {
    let mut count = 0;
    for (level, size) in [(1, PageLevel::K4), (2, PageLevel::M2), (3, PageLevel::G1)] {
        for (writable, rights) in Writable::ALL
            .iter()
            .flat_map(|w| (0..4).map(|r| (*w, Rights::from_bits_retain(r))))
        {
            for page in [0, 0x4_0000] {
                let frame = Frame::new(BackingId(3), page).unwrap();
                let leaf = Leaf {
                    frame,
                    level: size,
                    writable,
                    rights,
                };
                let spte = Spte::leaf(FORMAT, leaf).raw();
                for paging in HOSTS
                    .into_iter()
                    .filter(|paging| paging.top() >= level + u8::from(level == 3))
                {
                    let case = host(paging, level, spte);
                    for access in Access::all() {
                        let end = translate(&case, &case.regs, case.gva, access).end;
                        let gpa = (LAYOUT.hfn(frame) << 12) + 0x18;
                        match end {
                            End::Page { gpa: real } => assert!(allows(&leaf, access) && real == gpa, "{leaf:?}"),
                            End::Fault { code } => {
                                assert!(!allows(&leaf, access) && code & code::P != 0, "{leaf:?} {access:?}");
                                assert_eq!(code & code::RSVD, 0);
                            }
                            End::NoMemory { .. } => panic!("{leaf:?} is walked as a table"),
                        }
                        count += 1;
                    }
                }
            }
        }
    }
    assert!(count > 1000);
}

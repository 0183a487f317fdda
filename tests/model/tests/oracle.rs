// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the oracle say what the manual says? A few walks written out by hand.

use std::collections::BTreeMap;
use umbra_model::oracle::{
    Access, Controls, End, Kind, Memory, Paging, Registers, Who, code, pdpte_reserved, translate,
};

struct Entries(BTreeMap<u64, u64>);

impl Memory for Entries {
    fn entry(&self, gpa: u64, _: u8, each: &mut dyn FnMut(u64)) {
        self.0.get(&gpa).copied().into_iter().for_each(each);
    }
}

const READ: Access = Access {
    kind: Kind::Read,
    who: Who::Supervisor,
};

fn regs(paging: Paging, controls: Controls) -> Registers {
    Registers {
        paging,
        cr3: 0x1000,
        pdptes: [0x1001, 0, 0, 0x2001],
        controls,
        maxphyaddr: 40,
    }
}

fn end(entries: &[(u64, u64)], regs: &Registers, gva: u64, access: Access) -> End {
    translate(&Entries(entries.iter().copied().collect()), regs, gva, access).end
}

#[test]
fn without_paging_an_address_is_its_own() {
    let regs = regs(Paging::Off, Controls::empty());
    assert_eq!(end(&[], &regs, 0xfee0_0123, READ), End::Page { gpa: 0xfee0_0123 });
}

#[test]
fn two_levels() {
    let regs32 = regs(Paging::TwoLevel, Controls::PSE);
    let tables = [(0x1004, 0x3003), (0x3008, 0x7001), (0x100c, 0x0140_0083 | 1 << 13)];
    assert_eq!(end(&tables, &regs32, 0x40_2abc, READ), End::Page { gpa: 0x7abc });
    // PSE-36: bit 13 is address bit 32.
    assert_eq!(end(&tables, &regs32, 0xc1_2abc, READ), End::Page { gpa: 0x1_0141_2abc });
    // Bit 21 is reserved in a 4M page, and in no table's entry.
    let reserved = [(0x100c, 0x0160_0083)];
    let fault = End::Fault {
        code: code::P | code::RSVD,
    };
    assert_eq!(end(&reserved, &regs32, 0xc1_2abc, READ), fault);
    let without = regs(Paging::TwoLevel, Controls::empty());
    assert_eq!(
        end(&reserved, &without, 0xc1_2abc, READ),
        End::NoMemory {
            gpa: 0x160_0048,
            code: 0
        }
    );
    let user = Access {
        kind: Kind::Write,
        who: Who::User,
    };
    let fault = End::Fault {
        code: code::W | code::U,
    };
    assert_eq!(end(&[(0x1000, 0)], &regs32, 0, user), fault);
}

#[test]
fn a_write_needs_rw_where_wp_is_set() {
    let write = Access {
        kind: Kind::Write,
        who: Who::Supervisor,
    };
    let tables = [(0x1000, 0x3003), (0x3000, 0x7001)];
    let free = regs(Paging::TwoLevel, Controls::empty());
    assert_eq!(end(&tables, &free, 0, write), End::Page { gpa: 0x7000 });
    let wp = regs(Paging::TwoLevel, Controls::WP);
    assert_eq!(
        end(&tables, &wp, 0, write),
        End::Fault {
            code: code::P | code::W
        }
    );
}

#[test]
fn pae_takes_its_top_from_registers() {
    let regs = regs(Paging::Pae, Controls::NXE);
    let tables = [(0x2ff8, 0x3003 | 1 << 63), (0x3ff8, 0x7001), (0x1000, 0x40_0083)];
    assert_eq!(end(&tables, &regs, 0xffff_ffff, READ), End::Page { gpa: 0x7fff });
    assert_eq!(end(&tables, &regs, 0x12_3456, READ), End::Page { gpa: 0x52_3456 });
    assert_eq!(end(&tables, &regs, 0x4000_0000, READ), End::Fault { code: 0 });
    let fetch = Access {
        kind: Kind::Fetch,
        who: Who::Supervisor,
    };
    let fault = End::Fault {
        code: code::P | code::I,
    };
    assert_eq!(end(&tables, &regs, 0xffff_ffff, fetch), fault);
    // Bits 62:52 are reserved with PAE paging and ignored with 4-level paging.
    let high = [(0x1000, 0x40_0083 | 1 << 55)];
    let fault = End::Fault {
        code: code::P | code::RSVD,
    };
    assert_eq!(end(&high, &regs, 0, READ), fault);
    assert_eq!(pdpte_reserved(40, 0x1003), 2);
    assert_eq!(pdpte_reserved(40, 0x1002), 0);
}

#[test]
fn four_and_five_levels() {
    let regs4 = regs(Paging::FourLevel, Controls::empty());
    let tables = [
        (0x1000, 0x2007),
        (0x2000, 0x3007 | 1 << 55),
        (0x3000, 0x4007),
        (0x4000, 0x5007),
    ];
    assert_eq!(end(&tables, &regs4, 0xfff, READ), End::Page { gpa: 0x5fff });
    let walk = translate(&Entries(tables.into_iter().collect()), &regs4, 0, READ);
    let flagged: Vec<_> = walk.flagged(Kind::Write).map(|used| used.value & 0x60).collect();
    assert_eq!(flagged, [0x20, 0x20, 0x20, 0x60]);
    let regs5 = regs(Paging::FiveLevel, Controls::empty());
    let gigabyte = [(0x1ff8, 0x2001), (0x2000, 0x3001), (0x3000, 0x4000_0081)];
    assert_eq!(
        end(&gigabyte, &regs5, 0xff << 48 | 1 << 56 | 0x123, READ),
        End::Page { gpa: 0x4000_0123 }
    );
    // XD without NXE is reserved; PS is reserved at the upper levels.
    let fault = End::Fault {
        code: code::P | code::RSVD,
    };
    assert_eq!(end(&[(0x1000, 0x2007 | 1 << 63)], &regs4, 0, READ), fault);
    assert_eq!(end(&[(0x1000, 0x2087)], &regs4, 0, READ), fault);
    assert_eq!(end(&[(0x1000, 0x2087)], &regs5, 0, READ), fault);
}

#[test]
fn smep_and_smap_guard_the_supervisor() {
    let tables = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x5007)];
    let regs = regs(Paging::FourLevel, Controls::SMEP | Controls::SMAP);
    let access = |kind, who| end(&tables, &regs, 0, Access { kind, who });
    let page = End::Page { gpa: 0x5000 };
    assert_eq!(
        access(Kind::Fetch, Who::Supervisor),
        End::Fault {
            code: code::P | code::I
        }
    );
    assert_eq!(access(Kind::Fetch, Who::User), page);
    assert_eq!(access(Kind::Read, Who::Supervisor), End::Fault { code: code::P });
    assert_eq!(
        access(Kind::Write, Who::Supervisor),
        End::Fault {
            code: code::P | code::W
        }
    );
    assert_eq!(access(Kind::Write, Who::SupervisorAc), page);
}

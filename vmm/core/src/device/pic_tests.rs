// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the pair of 8259As behave as its data sheet says?

use super::*;
use Chip::{First, Second};

/// As Linux sets the pair up: vectors 0x30-0x3f, normal EOI, nothing masked.
fn ready() -> PicPair {
    initialised(0x01)
}

fn initialised(icw4: u8) -> PicPair {
    let mut pic = PicPair::new();
    for (chip, base, cascade) in [(First, 0x30, 1 << CASCADE), (Second, 0x38, CASCADE)] {
        pic.write_command(chip, 0x11);
        pic.write_data(chip, base);
        pic.write_data(chip, cascade);
        pic.write_data(chip, icw4);
    }
    pic
}

fn in_service(pic: &mut PicPair, chip: Chip) -> u8 {
    pic.write_command(chip, 0x0b);
    pic.read_command(chip)
}

#[test]
fn silent_until_initialised() {
    let mut pic = PicPair::new();
    pic.set_line(0, true);
    assert!(!pic.int());
    pic.write_command(First, 0x11);
    pic.write_data(First, 0x30);
    pic.write_data(First, 4);
    assert!(!pic.int(), "ICW4 is still due");
}

#[test]
fn an_edge_interrupts_once() {
    let mut pic = ready();
    pic.set_line(4, true);
    assert!(pic.int());
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.int());
    pic.write_command(First, 0x20);
    assert!(!pic.int(), "the line is still high, but no edge came");
    pic.set_line(4, false);
    pic.set_line(4, true);
    assert!(pic.int());
}

#[test]
fn a_withdrawn_request_is_spurious_input_7() {
    let mut pic = ready();
    pic.set_line(4, true);
    pic.set_line(4, false);
    assert!(!pic.int());
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(in_service(&mut pic, First), 0, "a spurious interrupt is not in service");
}

#[test]
fn a_request_withdrawn_behind_the_cascade_is_spurious_irq_15() {
    let mut pic = ready();
    pic.set_line(8, true);
    // The first chip has latched the cascade; the second one's request goes away between its two INTA pulses.
    pic.chips[1].set_line(0, false);
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!(in_service(&mut pic, Second), 0);
    assert_eq!(
        in_service(&mut pic, First),
        1 << CASCADE,
        "the first chip wants its EOI"
    );
}

#[test]
fn lower_number_wins_and_nests() {
    let mut pic = ready();
    pic.set_line(5, true);
    pic.set_line(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    assert!(!pic.int(), "5 waits for the end of 1");
    pic.set_line(0, true);
    assert_eq!(pic.acknowledge(), 0x30);
    pic.write_command(First, 0x20);
    assert!(!pic.int(), "1 is still in service");
    pic.write_command(First, 0x20);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn second_chip_comes_through_the_cascade() {
    let mut pic = ready();
    pic.set_line(12, true);
    pic.set_line(3, true);
    assert_eq!(pic.acknowledge(), 0x3c, "the cascade is input 2: before 3");
    assert_eq!(in_service(&mut pic, First), 1 << CASCADE);
    pic.set_line(8, true);
    assert!(
        !pic.int(),
        "without special fully nested mode the cascade blocks itself"
    );
    pic.write_command(Second, 0x20);
    pic.write_command(First, 0x20);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn special_fully_nested_mode_lets_the_second_chip_nest() {
    let mut pic = initialised(0x11);
    pic.set_line(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_line(8, true);
    assert!(pic.int());
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn masking_hides_but_keeps_the_request() {
    let mut pic = ready();
    pic.write_data(First, 0xfe);
    pic.set_line(4, true);
    assert!(!pic.int());
    assert_eq!(pic.read_data(First), 0xfe);
    assert_eq!(pic.read_command(First), 0x10, "IRR shows it");
    pic.write_data(First, 0x00);
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let mut pic = initialised(0x03);
    pic.set_line(4, true);
    assert_eq!(pic.acknowledge(), 0x34);
    assert_eq!(in_service(&mut pic, First), 0);
}

#[test]
fn auto_eoi_on_both_chips_delivers_two_waiting_requests() {
    let mut pic = initialised(0x03);
    pic.set_line(9, true);
    pic.set_line(10, true);
    assert_eq!(pic.acknowledge(), 0x39);
    assert!(pic.int(), "the second request makes a new edge on the cascade");
    assert_eq!(pic.acknowledge(), 0x3a);
    assert!(!pic.int());
}

#[test]
fn rotation_in_auto_eoi_mode_serves_in_turn() {
    let mut pic = initialised(0x03);
    pic.write_command(First, 0x80);
    for irq in [0, 1] {
        pic.set_line(irq, true);
    }
    assert_eq!(pic.acknowledge(), 0x30);
    pic.set_line(0, false);
    pic.set_line(0, true);
    assert_eq!(pic.acknowledge(), 0x31, "0 is now lowest");
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn specific_eoi_and_rotation_choose_the_level() {
    let mut pic = ready();
    pic.set_line(5, true);
    pic.acknowledge();
    pic.set_line(1, true);
    pic.acknowledge();
    pic.write_command(First, 0x60 | 5);
    assert_eq!(in_service(&mut pic, First), 1 << 1);
    pic.write_command(First, 0xe0 | 1);
    assert_eq!(in_service(&mut pic, First), 0);
    for irq in [0, 3] {
        pic.set_line(irq, true);
    }
    assert_eq!(pic.acknowledge(), 0x33, "1 became lowest: 3 goes before 0");
}

#[test]
fn set_priority_and_rotate_on_non_specific_eoi() {
    let mut pic = ready();
    pic.write_command(First, 0xc0 | 4);
    pic.set_line(4, true);
    pic.set_line(5, true);
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write_command(First, 0xa0);
    pic.set_line(6, true);
    assert_eq!(pic.acknowledge(), 0x36, "5 is lowest now, 6 highest");
}

#[test]
fn special_mask_mode_lets_lower_levels_in() {
    let mut pic = ready();
    pic.set_line(1, true);
    pic.acknowledge();
    pic.set_line(6, true);
    assert!(!pic.int());
    pic.write_command(First, 0x68);
    pic.write_data(First, 1 << 1);
    assert_eq!(pic.acknowledge(), 0x36);
    pic.write_command(First, 0x20);
    assert_eq!(
        in_service(&mut pic, First),
        1 << 1,
        "a non-specific EOI passes over masked levels"
    );
    pic.write_command(First, 0x48);
    pic.set_line(5, true);
    assert!(!pic.int());
}

#[test]
fn level_inputs_repeat_until_served() {
    let mut pic = ready();
    pic.write_elcr(Second, 1 << 1);
    assert_eq!(pic.read_elcr(Second), 2);
    pic.set_line(9, true);
    assert_eq!(pic.acknowledge(), 0x39);
    pic.write_command(Second, 0x20);
    pic.write_command(First, 0x20);
    assert!(pic.int(), "the level is still there");
    pic.set_line(9, false);
    assert!(!pic.int());
}

#[test]
fn elcr_keeps_the_timer_and_the_cascade_edges() {
    let mut pic = ready();
    pic.write_elcr(First, 0xff);
    pic.write_elcr(Second, 0xff);
    assert_eq!((pic.read_elcr(First), pic.read_elcr(Second)), (0xf8, 0xde));
}

#[test]
fn poll_takes_the_request() {
    let mut pic = ready();
    pic.write_command(First, 0x0c);
    assert_eq!(pic.read_command(First), 0, "nothing waits");
    pic.set_line(6, true);
    pic.write_command(First, 0x0c);
    assert_eq!(pic.read_command(First), 0x86);
    assert!(!pic.int());
    assert_eq!(in_service(&mut pic, First), 1 << 6);
}

#[test]
fn initialisation_forgets_edges_and_masks() {
    let mut pic = ready();
    pic.set_line(4, true);
    pic.write_data(First, 0xff);
    pic.write_command(First, 0x11);
    pic.write_data(First, 0x40);
    pic.write_data(First, 4);
    pic.write_data(First, 1);
    assert_eq!(pic.read_data(First), 0);
    assert!(!pic.int(), "the old edge is forgotten");
    pic.set_line(4, false);
    pic.set_line(4, true);
    assert_eq!(pic.acknowledge(), 0x44);
}

#[test]
fn single_mode_without_icw4_takes_only_icw2() {
    let mut pic = PicPair::new();
    pic.write_command(First, 0x12);
    pic.write_data(First, 0x50);
    pic.write_data(First, 0xef);
    assert_eq!(pic.read_data(First), 0xef, "already the mask");
    pic.set_line(4, true);
    assert_eq!(pic.acknowledge(), 0x54);
}

#[test]
fn linux_probe_reads_back_the_mask_it_wrote() {
    // probe_8259A(): 0xff to the second chip, then a value to the first that must read back.
    let mut pic = PicPair::new();
    pic.write_data(Second, 0xff);
    pic.write_data(First, !(1 << CASCADE));
    assert_eq!(pic.read_data(First), 0xfb);
}

#[test]
fn a_requested_or_masked_line_wants_no_edge() {
    let mut pic = ready();
    assert!(pic.wants_edge(0) && pic.wants_edge(8));
    pic.set_line(0, true);
    assert!(!pic.wants_edge(0));
    pic.acknowledge();
    assert!(pic.wants_edge(0), "while it is served the next one may be latched");
    pic.write_data(First, 1 << CASCADE | 1);
    assert!(!pic.wants_edge(0) && !pic.wants_edge(8));
    assert!(!PicPair::new().wants_edge(0));
}

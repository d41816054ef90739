//! Tests of the watermark.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Deliver { gap: i64 },
    Ack(prop::sample::Index),
    Release(prop::sample::Index),
    AckAgain(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![3 => Just(0), 1 => 1..5_i64].prop_map(|gap| Step::Deliver { gap }),
        4 => any::<prop::sample::Index>().prop_map(Step::Ack),
        1 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => any::<prop::sample::Index>().prop_map(Step::AckAgain),
    ]
}

proptest! {
    /// Against a model that keeps every offset for ever.
    #[test]
    fn the_position_is_the_first_offset_that_is_not_acknowledged(
        start in 0..100_i64,
        steps in prop::collection::vec(step(), 0..200),
        second_crash in any::<prop::sample::Index>(),
    ) {
        let mut watermark = Watermark::default();
        let mut next = start;
        let mut delivered = Vec::new();
        let (mut open, mut not_acked) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Deliver { gap } => {
                    let offset = next + gap;
                    prop_assert_eq!(watermark.deliver(offset, 1), Delivery::Open(1));
                    next = offset + 1;
                    delivered.push(offset);
                    open.insert(offset);
                    not_acked.insert(offset);
                }
                Step::Ack(_) | Step::Release(_) if open.is_empty() => {}
                Step::Ack(i) => {
                    let offset = *i.get(&open.iter().copied().collect::<Vec<_>>());
                    prop_assert_eq!(watermark.ack(offset), Some(1));
                    open.remove(&offset);
                    not_acked.remove(&offset);
                }
                Step::Release(i) => {
                    let offset = *i.get(&open.iter().copied().collect::<Vec<_>>());
                    prop_assert_eq!(watermark.release(offset), Some(1));
                    open.remove(&offset);
                }
                Step::AckAgain(i) => {
                    let answered: Vec<_> = delivered.iter().filter(|o| !open.contains(o)).copied().collect();
                    if !answered.is_empty() {
                        prop_assert_eq!(watermark.ack(*i.get(&answered)), None);
                    }
                }
            }
            let expected = not_acked.first().copied().or((!delivered.is_empty()).then_some(next));
            prop_assert_eq!(watermark.position(), expected);
            prop_assert_eq!(watermark.open(), open.len());
            prop_assert_eq!(watermark.open_bytes(), open.len());
            for offset in &delivered {
                prop_assert_eq!(watermark.holds(*offset), open.contains(offset));
            }
            prop_assert!(!watermark.holds(next));
        }
        // After a crash exactly those come again that were not acknowledged, also when it happens twice.
        if let Some(position) = watermark.position() {
            let (mut position, mut note) = (position, watermark.note());
            let log: Vec<_> = delivered.iter().copied().filter(|o| *o >= position).collect();
            for read_before_the_crash in [second_crash.index(log.len() + 1), log.len()] {
                let mut again = Watermark::resume(position, &note);
                let handed: Vec<_> = log
                    .iter()
                    .copied()
                    .filter(|o| *o >= position)
                    .take(read_before_the_crash)
                    .filter(|o| again.deliver(*o, 1) != Delivery::Done)
                    .collect();
                let read_to = again.next.unwrap_or(position);
                let expected: Vec<_> =
                    not_acked.iter().copied().filter(|o| *o >= position && *o < read_to).collect();
                prop_assert_eq!(handed, expected);
                if let Some(p) = again.position() {
                    position = p;
                    note = again.note();
                }
            }
        }
    }
}

#[test]
fn what_must_be_noted_is_never_cut_off() {
    let mut watermark = Watermark::default();
    for offset in 0..20_000 {
        watermark.deliver(offset, 1);
    }
    watermark.ack_noted(19_998);
    assert_eq!(watermark.must_note(MAX_NOTE).as_deref(), Some("aq1:19998+1"));
    // More than fits, all before it, and attempts.
    for offset in (1..19_990).step_by(2) {
        watermark.ack(offset);
        watermark.try_again(offset + 1, 7);
    }
    let again = Watermark::resume(0, &watermark.note());
    assert!(again.known.iter().any(|range| range.contains(&19_998)));
    assert!(watermark.note().len() <= MAX_NOTE);
    // What an earlier assignment had noted may be a transaction's.
    let mut again = Watermark::resume(0, "aq1:2+1,1+1");
    for offset in 0..3 {
        again.deliver(offset, 1);
    }
    again.ack(1);
    assert_eq!(again.must_note(MAX_NOTE).as_deref(), Some("aq1:2+1,1+1"));
    assert_eq!(again.note(), "aq1:1+2,1+1");
    // Delivered in part it is as long as it was.
    let mut again = Watermark::resume(0, "aq1:5+5");
    for offset in 0..8 {
        again.deliver(offset, 1);
    }
    assert_eq!(again.must_note(MAX_NOTE).as_deref(), Some("aq1:5+5"));
    // There is an end to it.
    for offset in (1..19_990).step_by(2) {
        watermark.ack_noted(offset + 1);
    }
    assert_eq!(watermark.must_note(MAX_NOTE), None);
}

#[test]
fn a_note_says_what_is_done_and_never_grows_too_long() {
    let mut watermark = Watermark::default();
    for offset in 10..20_010 {
        watermark.deliver(offset, 1);
    }
    for offset in [11, 12, 15] {
        watermark.ack(offset);
    }
    assert_eq!(watermark.note(), "aq1:1+2,2+1");
    for offset in (16..20_010).step_by(2) {
        watermark.ack(offset);
    }
    let note = watermark.note();
    assert!(note.len() <= MAX_NOTE && note.starts_with("aq1:1+2,2+2,"), "{note}");
}

#[test]
fn attempts_come_back_with_the_message_until_it_is_acknowledged() {
    let mut watermark = Watermark::default();
    for offset in 10..20 {
        watermark.deliver(offset, 1);
    }
    for (offset, attempt) in [(10, 2), (13, 5), (14, 2)] {
        assert!(watermark.try_again(offset, attempt));
    }
    watermark.ack(11);
    watermark.ack(14);
    assert!(!watermark.try_again(14, 3));
    assert_eq!(watermark.note(), "aq1:1+1,2+1;0x2,3x5");
    // Twice in a row, the second time before all of it was read.
    let mut again = Watermark::resume(10, &watermark.note());
    assert_eq!(again.deliver(10, 1), Delivery::Open(2));
    again.ack(10);
    assert_eq!(again.note(), "aq1:0+1,2+1;2x5");
    let mut again = Watermark::resume(11, &again.note());
    let deliveries: Vec<_> = (11..16).map(|offset| again.deliver(offset, 1)).collect();
    let open = Delivery::Open;
    assert_eq!(deliveries, [Delivery::Done, open(1), open(5), Delivery::Done, open(1)]);
}

#[test]
fn a_guarded_message_counts_as_tried_until_it_is_given_back_or_done() {
    let mut watermark = Watermark::resume(5, "aq1:;1x3").guarded();
    assert_eq!([5, 6, 7].map(|o| watermark.deliver(o, 1)), [Delivery::Open(1), Delivery::Open(3), Delivery::Open(1)]);
    assert_eq!(watermark.note(), "aq1:;0x2,1x4,1x2");
    watermark.try_again(5, 2);
    watermark.release(6);
    watermark.release(7);
    assert_eq!(watermark.note(), "aq1:;0x3,1x3");
    watermark.ack(5);
    assert_eq!(watermark.note(), "aq1:;0x3");
}

#[test]
fn attempts_take_a_quarter_of_a_note_at_most() {
    let mut watermark = Watermark::default();
    for offset in 0..4000 {
        watermark.deliver(offset, 1);
    }
    for offset in 0..4000 {
        if offset % 2 == 0 {
            watermark.try_again(offset, 7);
        } else {
            watermark.ack(offset);
        }
    }
    let note = watermark.note();
    let (done, attempts) = note.split_once(';').unwrap();
    assert!(note.len() <= MAX_NOTE && done.len() > 2900 && attempts.len() > 900, "{note}");
    let mut again = Watermark::resume(0, &note);
    assert_eq!([0, 1, 2].map(|o| again.deliver(o, 1)), [Delivery::Open(7), Delivery::Done, Delivery::Open(7)]);
}

#[test]
fn metadata_of_others_is_no_note() {
    for other in [
        "",
        "x",
        "aq1:",
        "aq1:1",
        "aq1:;",
        "aq1:;1",
        "aq1:;1x0",
        "aq1:;1x-1",
        "aq1:;0x9,x",
        "x;1x5",
        "aq1:-1+2",
        "aq1:1+x,3+4",
        "aq1:1+99999999999999999999",
    ] {
        assert_eq!(Watermark::resume(0, other).deliver(1, 1), Delivery::Open(1), "{other}");
    }
}

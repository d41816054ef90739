//! Tests of the inbox.

use super::*;

fn inbox() -> Arc<Inbox> {
    Inbox::new("orders", Limits { prefetch: 4, prefetch_bytes: 1000, max_ahead: 8, commits: true })
}

fn push(inbox: &Inbox, partition: i32, offsets: std::ops::Range<i64>) -> Vec<Jump> {
    let mut chunk: Vec<_> =
        offsets.map(|offset| Incoming { partition, offset, size: 10, message: Ok(Message::new("x")) }).collect();
    inbox.push(&mut chunk)
}

fn take(inbox: &Inbox, max: usize) -> Vec<AckToken> {
    let mut into = Vec::new();
    if let Some(result) = inbox.take(max, &mut into, Waker::noop()) {
        result.unwrap();
    }
    into.iter().map(|r| r.token).collect()
}

#[test]
fn a_token_of_an_earlier_assignment_touches_nothing() {
    let inbox = inbox();
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 5..7);
    let old = take(&inbox, 2);
    assert!(inbox.holds(old[0]));
    let revoked = inbox.revoked(&[0]);
    assert_eq!((revoked.due, revoked.unanswered), (vec![], 2));
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 5..7);
    assert_eq!(inbox.answer(old.iter().copied(), true), [0, 1]);
    assert!(!inbox.holds(old[0]));
    assert_eq!(inbox.due(), []);
    let new = take(&inbox, 2);
    assert_eq!(inbox.answer(new[..1].iter().copied(), true), [0; 0]);
    assert_eq!(inbox.due()[0].offset, 6);
}

#[test]
fn a_log_that_starts_anew_is_read_anew() {
    let inbox = inbox();
    inbox.assigned([(0, Some((100, String::new())))].into_iter());
    // Cut off behind the group's position, or made anew.
    push(&inbox, 0, 0..2);
    let old = take(&inbox, 2);
    push(&inbox, 0, 0..2);
    assert_eq!(inbox.answer(old.iter().copied(), true), [0, 1]);
    let new = take(&inbox, 4);
    assert_eq!(inbox.answer(new.iter().copied(), true), [0; 0]);
    assert_eq!(inbox.due()[0].offset, 2);
    assert_eq!(inbox.plan().room, (4, 1000));
}

#[test]
fn a_jump_is_told() {
    let inbox = inbox();
    inbox.assigned([(0, Some((100, String::new()))), (1, None)].into_iter());
    assert_eq!(push(&inbox, 1, 7..8), []);
    assert_eq!(push(&inbox, 0, 105..106), [Jump { partition: 0, expected: 100 }]);
    assert_eq!(push(&inbox, 0, 106..107), []);
}

#[test]
fn no_more_than_prefetch_fits_and_released_messages_hold_the_position() {
    let inbox = inbox();
    inbox.assigned([(0, None), (1, None)].into_iter());
    push(&inbox, 0, 0..2);
    push(&inbox, 1, 0..2);
    assert_eq!(inbox.plan().room, (0, 960));
    let tokens = take(&inbox, 4);
    inbox.answer(tokens[1..2].iter().copied(), true);
    inbox.answer(tokens[..1].iter().copied(), false);
    assert_eq!(inbox.plan().room.0, 2);
    let due = inbox.due();
    assert_eq!((due.len(), due[0].offset, due[0].note.as_str()), (1, 0, "aq1:1+1"));
    inbox.committed(&due, Ok(()));
    assert_eq!(inbox.due(), []);
    assert_eq!(inbox.answer(tokens[..1].iter().copied(), true), [0]);
}

#[test]
fn a_partition_waits_for_its_oldest_message() {
    let inbox = Inbox::new("orders", Limits { prefetch: 100, prefetch_bytes: 1000, max_ahead: 4, commits: true });
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 0..4);
    let tokens = take(&inbox, 4);
    inbox.answer(tokens[1..].iter().copied(), true);
    assert_eq!(inbox.plan().far, BTreeSet::from([0]));
    inbox.answer(tokens[..1].iter().copied(), true);
    assert_eq!(inbox.plan().far, BTreeSet::new());
    assert_eq!(inbox.due()[0].offset, 4);
}

#[test]
fn a_stop_gives_back_what_nobody_has_seen() {
    let inbox = inbox();
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 0..4);
    let seen = take(&inbox, 1);
    inbox.stop();
    assert!(inbox.take(1, &mut Vec::new(), Waker::noop()).is_some_and(|r| r.is_err()));
    assert_eq!(inbox.answer(seen.into_iter(), true), [0; 0]);
    assert_eq!(inbox.due()[0].offset, 1);
    assert!(inbox.plan().leave);
}

//! Tests of the inbox.

use super::*;

fn inbox() -> Arc<Inbox> {
    Inbox::new("orders", Limits { prefetch: 4, prefetch_bytes: 1000, max_ahead: 8, commits: true, guard: false })
}

fn push(inbox: &Inbox, partition: i32, offsets: std::ops::Range<i64>) -> Vec<Jump> {
    inbox.push(records(partition, offsets)).jumps
}

fn records(partition: i32, offsets: impl IntoIterator<Item = i64>) -> Vec<Received> {
    offsets.into_iter().map(|offset| arrived(partition, offset, Ok(Message::new("0123456789")))).collect()
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
fn a_log_that_starts_anew_within_a_chunk_is_read_anew() {
    let inbox = inbox();
    inbox.assigned([(0, None)].into_iter());
    assert_eq!(inbox.push(records(0, [5, 6, 0, 1])).rewound, [0]);
    let new = take(&inbox, 4);
    assert_eq!((new.len(), inbox.next(0)), (2, Some(2)));
    assert_eq!(inbox.answer(new.iter().copied(), true), [0; 0]);
    assert_eq!((inbox.due()[0].offset, inbox.plan().room), (2, (4, 1000)));
}

#[test]
fn an_answer_to_a_commit_of_a_partition_that_went_says_nothing() {
    let inbox = inbox();
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 0..1);
    inbox.answer(take(&inbox, 1).into_iter(), true);
    let due = inbox.due();
    inbox.revoked(&[0]);
    inbox.parted(&due, &Ok(()));
    inbox.committed(&due, Err(Error::new(ErrorKind::Conflict, "another generation")));
    assert!(inbox.commit_error().is_none());
}

#[test]
fn acknowledgements_for_which_a_commit_has_no_room_are_told() {
    const COUNT: i64 = 3000;
    let limits = Limits { prefetch: 4000, prefetch_bytes: 1 << 20, max_ahead: 4000, commits: true, guard: false };
    let inbox = Inbox::new("orders", limits);
    inbox.assigned([(0, None), (1, None)].into_iter());
    push(&inbox, 0, 0..COUNT);
    let tokens = take(&inbox, usize::try_from(COUNT).unwrap());
    // Every other one, so that each is a run of its own.
    inbox.answer(tokens.iter().copied().skip(1).step_by(2).take(900), true);
    inbox.committed(&inbox.due(), Ok(()));
    assert!(inbox.cut_off().is_none());
    inbox.answer(tokens.iter().copied().skip(1801).step_by(2), true);
    let due = inbox.due();
    inbox.committed(&due, Err(Error::new(ErrorKind::Timeout, "no answer")));
    assert!(inbox.cut_off().is_none());
    inbox.committed(&due, Ok(()));
    let error = inbox.cut_off().expect("it is too much");
    assert_eq!((error.kind(), error.context("partition")), (ErrorKind::TooLarge, Some("0")));
    // The rest is one run.
    inbox.answer(tokens.iter().copied().step_by(2), true);
    inbox.committed(&inbox.due(), Ok(()));
    assert!(inbox.cut_off().is_none());
}

#[test]
fn a_guarded_message_is_handed_out_when_its_delivery_is_committed() {
    let inbox =
        Inbox::new("orders", Limits { prefetch: 4, prefetch_bytes: 1000, max_ahead: 8, commits: true, guard: true });
    inbox.assigned([(0, Some((5, "aq1:;0x2".to_owned()))), (1, None)].into_iter());
    push(&inbox, 0, 5..7);
    let first = inbox.due();
    assert_eq!((first[0].note.as_str(), inbox.plan().flush), ("aq1:;0x3,1x2", true));
    push(&inbox, 1, 0..1);
    assert_eq!(take(&inbox, 4), []);
    inbox.committed(&first, Ok(()));
    let tokens = take(&inbox, 4);
    assert_eq!((tokens.len(), inbox.plan().flush), (2, true));
    inbox.committed(&inbox.due(), Ok(()));
    assert_eq!((take(&inbox, 4).len(), inbox.plan().flush), (1, false));
    // Given back: as if it had not been handed out.
    inbox.answer(tokens[..1].iter().copied(), false);
    assert_eq!(inbox.due()[0].note, "aq1:;0x2,1x2");
    // A partition that goes takes what waits with it.
    push(&inbox, 1, 1..2);
    inbox.revoked(&[1]);
    assert_eq!(inbox.plan().room.0, 3);
    inbox.committed(&[], Ok(()));
    assert_eq!(take(&inbox, 4), []);
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
    let inbox =
        Inbox::new("orders", Limits { prefetch: 100, prefetch_bytes: 1000, max_ahead: 4, commits: true, guard: false });
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

/// Polls once.
fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    match std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// Grants as the thread does; the positions as offset and note.
fn grant(inbox: &Arc<Inbox>) -> Vec<(i64, String)> {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let granted = parking_lot::Mutex::new(Vec::new());
    inbox.grant(|marks| {
        *granted.lock() = marks.iter().map(|mark| (mark.offset, mark.note.clone())).collect();
        let consumer: BaseConsumer = rdkafka::ClientConfig::new().set("group.id", "g").create().unwrap();
        Ok((rdkafka::TopicPartitionList::new(), consumer.group_metadata().unwrap()))
    });
    granted.into_inner()
}

/// An inbox whose four messages of one partition are handed out.
fn handed_out() -> (Arc<Inbox>, Vec<AckToken>) {
    let inbox = inbox();
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 0..4);
    let tokens = take(&inbox, 4);
    (inbox, tokens)
}

#[test]
fn positions_are_a_transactions_or_the_consumers_own() {
    let (inbox, tokens) = handed_out();
    let mut turn = Box::pin(inbox.turn(vec![tokens[0], tokens[2]]));
    assert!(poll(&mut turn).is_none());
    assert_eq!(grant(&inbox), [(1, "aq1:1+1".to_owned())]);
    let granted = poll(&mut turn).unwrap().unwrap();
    // Answered meanwhile: not committed before the transaction is over, and not lost.
    assert_eq!(inbox.answer([tokens[1]].into_iter(), true), [0; 0]);
    assert_eq!(inbox.due(), []);
    assert!(inbox.holds(tokens[0]));
    // One at a time.
    let mut next = Box::pin(inbox.turn(vec![tokens[3]]));
    assert!(poll(&mut next).is_none());
    assert_eq!(grant(&inbox), []);
    granted.turn.committed();
    assert!(!inbox.holds(tokens[0]) && !inbox.holds(tokens[2]));
    assert_eq!(inbox.due()[0].offset, 3);
    assert_eq!(grant(&inbox), [(4, String::new())]);
    // Given up: as if it had not been.
    drop(poll(&mut next).unwrap().unwrap());
    assert!(inbox.holds(tokens[3]));
    assert_eq!(inbox.due()[0].offset, 3);
}

#[test]
fn a_receiver_that_closes_gives_no_turn() {
    let (inbox, tokens) = handed_out();
    inbox.close(Instant::now());
    let turn = poll(&mut Box::pin(inbox.turn(tokens)));
    assert_eq!(turn.expect("nobody grants it any more").unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn what_a_transaction_committed_is_not_committed_again() {
    let (inbox, tokens) = handed_out();
    let mut turn = Box::pin(inbox.turn(tokens));
    assert!(poll(&mut turn).is_none());
    assert_eq!(grant(&inbox), [(4, String::new())]);
    poll(&mut turn).unwrap().unwrap().turn.committed();
    assert_eq!((inbox.due(), inbox.plan().room), (vec![], (4, 1000)));
}

#[test]
fn a_transaction_in_doubt_is_decided_by_what_the_broker_has() {
    for committed in [true, false] {
        let (inbox, tokens) = handed_out();
        let mut turn = Box::pin(inbox.turn(vec![tokens[1]]));
        assert!(poll(&mut turn).is_none());
        let marks = grant(&inbox);
        let mut known = poll(&mut turn).unwrap().unwrap().turn.doubtful();
        assert_eq!(inbox.in_doubt(), [0]);
        // The broker does not tell yet.
        inbox.told(&[].into());
        assert!(poll(&mut known).is_none() && inbox.holds(tokens[1]));
        inbox.answer([tokens[0]].into_iter(), true);
        assert_eq!(inbox.due(), []);
        let told = if committed { Some(marks[0].clone()) } else { None };
        inbox.told(&[(0, told)].into());
        assert_eq!(poll(&mut known), Some(Ok(())));
        assert_eq!(inbox.holds(tokens[1]), !committed);
        assert_eq!(inbox.due()[0].offset, if committed { 2 } else { 1 });
        assert!(inbox.in_doubt().is_empty());
    }
}

#[test]
fn a_partition_that_goes_is_not_committed_over_a_transaction() {
    let (inbox, tokens) = handed_out();
    let mut turn = Box::pin(inbox.turn(vec![tokens[0]]));
    assert!(poll(&mut turn).is_none());
    grant(&inbox);
    let granted = poll(&mut turn).unwrap().unwrap();
    assert!(inbox.is_turn_of(&[0]) && !inbox.is_turn_of(&[1]));
    inbox.answer([tokens[1]].into_iter(), true);
    let mut flush = inbox.flush().unwrap();
    let gone = inbox.revoked(&[0]);
    assert_eq!((gone.due, gone.withheld.is_some()), (vec![], true));
    // Whatever comes of other partitions then.
    inbox.parted(&[], &Ok(()));
    assert_eq!(poll(&mut flush).unwrap().unwrap().unwrap_err().kind(), ErrorKind::LeaseLost);
    let known = granted.turn.doubtful();
    // Nobody here can tell any more.
    inbox.told(&[].into());
    assert_eq!(poll(&mut { known }), Some(Ok(())));
    // Not even when it comes back, for which the broker would take the position.
    inbox.assigned([(0, None)].into_iter());
    push(&inbox, 0, 0..4);
    let mut late = Box::pin(inbox.turn(vec![tokens[2]]));
    assert!(poll(&mut late).is_none());
    grant(&inbox);
    assert_eq!(poll(&mut late).unwrap().unwrap_err().kind(), ErrorKind::LeaseLost);
}

#[test]
fn a_transaction_waits_for_a_commit_that_failed() {
    let (inbox, tokens) = handed_out();
    inbox.answer([tokens[0]].into_iter(), true);
    let due = inbox.due();
    inbox.committed(&due, Err(Error::new(ErrorKind::Timeout, "no answer")));
    let mut turn = Box::pin(inbox.turn(vec![tokens[1]]));
    assert!(poll(&mut turn).is_none());
    assert_eq!(grant(&inbox), []);
    inbox.committed(&due, Ok(()));
    assert_eq!(grant(&inbox), [(2, String::new())]);
}

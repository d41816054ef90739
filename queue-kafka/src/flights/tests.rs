use queue_core::{BatchVerdict, ErrorKind, Outcome};

use super::*;

fn batch(count: usize) -> Vec<Message> {
    (0..count).map(|i| Message::new(i.to_string())).collect()
}

/// Single messages of one sender that follow one another: their words, and their verdicts in this order.
fn singles(flights: &Flights, share: &Arc<Share>, count: usize) -> (Vec<usize>, BatchVerdict) {
    let (done, verdicts) = Completion::new(count);
    (done.split().into_iter().map(|done| flights.depart_alone(None, done, share)).collect(), verdicts)
}

#[tokio::test]
async fn verdicts_land_in_any_order_and_before_the_batch_has_left() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let (done, verdict) = Completion::new(3);
    let departure = flights.depart(3, done, &share);
    flights.landed(departure.word(2), Ok(Receipt::at(1, 9)), || None);
    let refused = Error::new(ErrorKind::TooLarge, "large");
    flights.departed(&departure, batch(3), vec![(1, refused)]);
    flights.landed(departure.word(0), Ok(Receipt::at(0, 4)), || None);
    let error = verdict.await.unwrap_err();
    assert_eq!(error.failures().iter().map(|(i, e)| (*i, e.kind())).collect::<Vec<_>>(), [(1, ErrorKind::TooLarge)]);
    assert_eq!(error.receipts().get(2), Some(Receipt::at(1, 9)));
    share.close();
    share.empty().await;
}

#[tokio::test]
async fn verdicts_that_come_together_are_those_of_their_messages() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let (done, whole) = Completion::new(3);
    let departure = flights.depart(3, done, &share);
    let (done, late) = Completion::new(2);
    let leaving = flights.depart(2, done, &share);
    flights.departed(&departure, batch(3), vec![]);
    let (alone, singly) = singles(&flights, &share, 6);
    let at = |offset: usize| Receipt::at(0, offset as u64);
    // Of a batch that is here, of one that is still being sent, of single messages, of none; the second time of one.
    let mut verdicts = vec![(departure.word(2), at(2)), (leaving.word(1), at(1)), (departure.word(0), at(0))];
    verdicts.extend(alone.iter().enumerate().rev().map(|(offset, word)| (*word, at(offset))));
    verdicts.extend([((1 << 20) << INDEX_BITS, at(0)), (ALONE | (1 << 20) << INDEX_BITS, at(0)), (alone[1], at(9))]);
    verdicts.extend([(departure.word(1), at(1)), (leaving.word(0), at(0))]);
    flights.accepted(&mut verdicts);
    assert!(verdicts.is_empty());
    flights.departed(&leaving, batch(2), vec![]);
    for (verdict, count) in [(whole, 3), (late, 2), (singly, 6)] {
        let receipts = verdict.await.unwrap();
        assert_eq!(
            (0..count).map(|i| receipts.get(i)).collect::<Vec<_>>(),
            (0..count).map(|i| Some(at(i))).collect::<Vec<_>>()
        );
    }
    share.close();
    share.empty().await;
}

#[tokio::test]
async fn a_message_sent_alone_has_a_verdict_of_its_own() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let send = || {
        let (done, verdict) = Completion::new(1);
        (flights.depart_alone(None, done, &share), verdict)
    };
    let ((taken, receipt), (refused, error), (left, unknown)) = (send(), send(), send());
    flights.landed(refused, Err(Error::new(ErrorKind::TooLarge, "large")), || None);
    flights.landed(taken, Ok(Receipt::at(1, 9)), || None);
    assert_eq!(receipt.await.unwrap().get(0), Some(Receipt::at(1, 9)));
    assert_eq!(error.await.unwrap_err().failures()[0].1.kind(), ErrorKind::TooLarge);
    assert_eq!(flights.abandon(&share), 1);
    assert_eq!(unknown.await.unwrap_err().failures()[0].1.outcome(), Outcome::Unknown);
    flights.landed(left, Ok(Receipt::accepted()), || None);
    share.close();
    share.empty().await;
    // A late report for one of them is nobody's, and counts for nothing.
    flights.landed(taken, Ok(Receipt::accepted()), || None);
    share.close();
    share.empty().await;
}

#[tokio::test]
async fn what_is_given_up_of_a_group_is_unknown_and_its_reports_are_nobodys() {
    for gone in [false, true] {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let (words, verdict) = singles(&flights, &share, 4);
        flights.accepted(&mut vec![(words[2], Receipt::at(0, 2))]);
        if gone {
            drop(flights);
        } else {
            assert_eq!(flights.abandon(&share), 3);
            flights.accepted(&mut words.iter().map(|word| (*word, Receipt::accepted())).collect());
        }
        let error = verdict.await.unwrap_err();
        let failures: Vec<_> = error.failures().iter().map(|(i, e)| (*i, e.outcome())).collect();
        assert_eq!(failures, [0, 1, 3].map(|index| (index, Outcome::Unknown)));
        assert_eq!(error.receipts().get(2), Some(Receipt::at(0, 2)));
        share.close();
        tokio::time::timeout(std::time::Duration::from_secs(5), share.empty()).await.unwrap();
    }
}

#[tokio::test]
async fn a_group_whose_messages_have_landed_keeps_nothing_of_its_sender() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let (done, verdicts) = Completion::new(2);
    let mut parts = done.split();
    for at in 0..2 {
        let word = flights.depart_alone(None, parts.remove(0), &share);
        flights.accepted(&mut vec![(word, Receipt::at(0, at))]);
        let next = share.next.lock();
        let places = next.as_ref().unwrap().group.0.lock();
        assert_eq!((places.open, places.done.as_ref().map(Completion::len)), (0, Some(0)));
    }
    assert_eq!(verdicts.await.unwrap().get(1), Some(Receipt::at(0, 1)));
    share.close();
    share.empty().await;
}

#[tokio::test]
async fn groups_follow_one_another_and_are_used_again() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    for round in 0..3 {
        let sent = [64, 64, 1].map(|count| singles(&flights, &share, count));
        for (words, verdict) in sent.into_iter().rev() {
            for (at, word) in words.iter().enumerate().rev() {
                flights.landed(*word, Ok(Receipt::at(0, at as u64)), || None);
            }
            let receipts = verdict.await.unwrap();
            for at in 0..words.len() {
                assert_eq!(receipts.get(at), Some(Receipt::at(0, at as u64)), "round {round}");
            }
        }
    }
    share.close();
    share.empty().await;
    // Two are full and one in the making, which another follows.
    let groups = flights.groups.lock();
    assert!(groups.all.len() <= 4 && groups.all.len() == groups.free.len(), "{groups:?}");
}

#[tokio::test]
async fn a_message_that_fails_comes_back() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let failed = || Err(Error::new(ErrorKind::Connection, "away"));
    let sent = |kept: Option<Message>, native: Option<Message>| {
        let (sender, back) = std::sync::mpsc::channel();
        let word = flights.depart_alone(kept, Completion::new(1).0, &share);
        flights.landed(word, failed(), || {
            let _ = sender.send(());
            native
        });
        back.try_recv().is_ok()
    };
    assert!(sent(None, Some(Message::new("x"))), "librdkafka is asked for it");
    assert!(!sent(Some(Message::new("x").header("a", "b")), None), "it was kept");
}

#[tokio::test]
async fn a_producer_goes_on_with_another_native_one() {
    let (old, new, share) = (Flights::default(), Flights::default(), Arc::new(Share::default()));
    let send = |flights: &Flights| {
        let (done, verdict) = Completion::new(1);
        (flights.depart_alone(None, done, &share), verdict)
    };
    let ((first, before), (second, after)) = (send(&old), send(&new));
    new.landed(second, Ok(Receipt::at(0, 2)), || None);
    assert_eq!(after.await.unwrap().get(0), Some(Receipt::at(0, 2)));
    old.landed(first, Ok(Receipt::at(0, 1)), || None);
    assert_eq!(before.await.unwrap().get(0), Some(Receipt::at(0, 1)));
    share.close();
    share.empty().await;
}

#[tokio::test]
async fn what_is_left_at_the_end_is_unknown() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let (done, verdict) = Completion::new(2);
    let departure = flights.depart(2, done, &share);
    flights.departed(&departure, batch(2), vec![]);
    flights.landed(departure.word(0), Ok(Receipt::accepted()), || None);
    assert_eq!(flights.abandon(&share), 1);
    let failures = verdict.await.unwrap_err().failures();
    assert_eq!((failures[0].0, failures[0].1.outcome()), (1, Outcome::Unknown));
    // The late report finds nobody and does no harm.
    flights.landed(departure.word(1), Ok(Receipt::accepted()), || None);
    share.close();
    share.empty().await;
}

#[tokio::test]
async fn nobody_waits_for_flights_that_are_gone() {
    let (flights, share) = (Flights::default(), Arc::new(Share::default()));
    let (done, whole) = Completion::new(2);
    let departure = flights.depart(2, done, &share);
    flights.departed(&departure, batch(2), vec![]);
    let (done, single) = Completion::new(1);
    flights.depart_alone(None, done, &share);
    drop(flights);
    for verdict in [whole, single] {
        assert_eq!(verdict.await.unwrap_err().failures()[0].1.outcome(), Outcome::Unknown);
    }
    share.close();
    tokio::time::timeout(std::time::Duration::from_secs(5), share.empty()).await.unwrap();
}

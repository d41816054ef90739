//! What is received, and how it is answered.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use queue_core::{Answer, Broker, Consumer, ConsumerOptions, ErrorKind, Source};
use tokio::time::Instant;

use crate::common::{
    PATIENCE, connect, consumer, producer, queue, receive, receive_count, send, send_all, soon, text, until,
};
use crate::proxy::{Back, Proxy};
use crate::{is_silent, numbered};

pub(crate) async fn acknowledged_messages_never_come_back(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "ack").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(1000)).await;
    let mut seen = Vec::new();
    while seen.len() < 1000 {
        for received in soon(receive(&receiver)).await.unwrap() {
            assert_eq!(received.attempt, 1);
            seen.push(text(&received));
            assert!(receiver.holds(received.token));
            assert!(receiver.ack(&[received.token]).stale.is_empty());
            assert!(!receiver.holds(received.token));
            assert_eq!(receiver.ack(&[received.token]).stale, [0]);
        }
    }
    assert_eq!(seen, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    receiver.flush().await.unwrap();
    assert!(receiver.close(Instant::now() + PATIENCE).await.is_clean());
    let again = consumer(&broker, &address).await;
    assert!(is_silent(&again).await);
    assert_eq!(broker.stats(&Source::new(address.clone())).await.unwrap().ready, Some(0));
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn unanswered_messages_come_back_counted(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "retry").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(1)).await;
    let first = receive_count(&receiver, 1).await.remove(0);
    assert!(receiver.settle(vec![Answer::Extend(first.token, Duration::from_secs(60))]).stale.is_empty());
    assert!(receiver.settle(vec![Answer::Retry(first.token, Duration::ZERO)]).stale.is_empty());
    assert_eq!(receiver.settle(vec![Answer::Release(first.token)]).stale, [0]);
    let second = receive_count(&receiver, 1).await.remove(0);
    assert_eq!(second.attempt, 2);
    assert!(receiver.settle(vec![Answer::Release(second.token)]).stale.is_empty());
    let third = receive_count(&receiver, 1).await.remove(0);
    let report = receiver.close(Instant::now() + PATIENCE).await;
    assert_eq!(report.unanswered, 1);
    assert!(!receiver.holds(third.token));
    let other = consumer(&broker, &address).await;
    let fourth = receive_count(&other, 1).await.remove(0);
    assert!(fourth.attempt >= 3, "{}", fourth.attempt);
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn answers_out_of_order_leave_exactly_the_others(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "order").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(200)).await;
    let all = receive_count(&receiver, 200).await;
    let mut order: Vec<_> = (0..200).collect();
    let seed = 7;
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let (kept, acked) = order.split_at(37);
    for n in acked {
        assert!(receiver.ack(&[all[*n].token]).stale.is_empty());
    }
    receiver.flush().await.unwrap();
    receiver.close(Instant::now() + PATIENCE).await;
    let other = consumer(&broker, &address).await;
    let back: BTreeSet<_> = receive_count(&other, kept.len()).await.iter().map(text).collect();
    assert_eq!(back, kept.iter().map(ToString::to_string).collect(), "seed {seed}");
    assert!(is_silent(&other).await);
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn a_pause_gives_back_what_is_buffered(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "pause").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(10)).await;
    let mut one = Vec::new();
    soon(std::future::poll_fn(|cx| receiver.poll_receive(cx, std::num::NonZeroUsize::MIN, &mut one))).await.unwrap();
    receiver.set_paused(true);
    let source = Source::new(address.clone());
    until("given back", async || broker.stats(&source).await.unwrap().ready == Some(9)).await;
    assert!(is_silent(&receiver).await);
    assert!(receiver.ack(&[one[0].token]).stale.is_empty());
    receiver.set_paused(false);
    let rest: HashSet<_> = receive_count(&receiver, 9).await.iter().map(text).collect();
    assert_eq!(rest.len(), 9);
    assert!(!rest.contains(&text(&one[0])));
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn stop_gives_back_and_still_takes_answers(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "stop").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(10)).await;
    let mut two = Vec::new();
    let two_at_most = std::num::NonZeroUsize::new(2).unwrap();
    while two.len() < 2 {
        soon(std::future::poll_fn(|cx| receiver.poll_receive(cx, two_at_most, &mut two))).await.unwrap();
    }
    receiver.stop().await;
    assert_eq!(soon(receive(&receiver)).await.unwrap_err().kind(), ErrorKind::Closed);
    let held = two.len();
    let other = consumer(&broker, &address).await;
    receive_count(&other, 10 - held).await;
    assert!(two.iter().all(|r| receiver.ack(&[r.token]).stale.is_empty()));
    receiver.flush().await.unwrap();
    let report = receiver.close(Instant::now() + PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(report.released <= 10 - held);
    assert!(is_silent(&other).await);
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn a_small_prefetch_is_kept_and_not_slow(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "prefetch").await;
    let sender = producer(&broker, &address).await;
    send_all(&sender, numbered(200)).await;
    let mut options = ConsumerOptions::default();
    options.prefetch = 2;
    let receiver: Arc<dyn Consumer> = broker.consumer(&Source::new(address.clone()), &options).await.unwrap();
    let two = receive_count(&receiver, 2).await;
    assert!(is_silent(&receiver).await);
    let start = Instant::now();
    receiver.ack(&two.iter().map(|r| r.token).collect::<Vec<_>>());
    let mut count = 2;
    while count < 200 {
        let got = soon(receive(&receiver)).await.unwrap();
        assert!(got.len() <= 2);
        receiver.ack(&got.iter().map(|r| r.token).collect::<Vec<_>>());
        count += got.len();
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn a_flush_speaks_for_no_answer_given_after_it(url: String) {
    let proxy = Proxy::start(&url).await;
    let broker = connect(&proxy.url).await.unwrap();
    let address = queue(&broker, "flush").await;
    send_all(&producer(&broker, &address).await, numbered(65)).await;
    let receiver = consumer(&broker, &address).await;
    let all = receive_count(&receiver, 65).await;
    proxy.set(Back::Held);
    receiver.ack(&[all[0].token]);
    let mut flush = Box::pin(receiver.flush());
    assert!(futures::poll!(&mut flush).is_pending());
    // So many are written at once, though behind the question.
    receiver.ack(&all[1..].iter().map(|r| r.token).collect::<Vec<_>>());
    proxy.set(Back::After(Duration::ZERO));
    soon(flush).await.unwrap();
    lose(&proxy, &broker).await;
    assert_eq!(soon(receiver.flush()).await.unwrap_err().kind(), ErrorKind::Connection);
    come_back(&proxy, &broker).await;
    broker.delete(&address).await.unwrap();
}

/// What was lost with a connection comes again on the next one: a close that comes later has nothing to tell of it, and waits for
/// the answers that were given since.
pub(crate) async fn a_close_tells_nothing_of_an_earlier_connection(url: String) {
    let proxy = Proxy::start(&url).await;
    let broker = connect(&proxy.url).await.unwrap();
    let address = queue(&broker, "earlier").await;
    send_all(&producer(&broker, &address).await, numbered(2)).await;
    let receiver = consumer(&broker, &address).await;
    let both = receive_count(&receiver, 2).await;
    receiver.ack(&[both[0].token]);
    lose(&proxy, &broker).await;
    come_back(&proxy, &broker).await;
    for again in soon(receive(&receiver)).await.unwrap() {
        assert!(receiver.ack(&[again.token]).stale.is_empty());
    }
    let report = receiver.close(Instant::now() + PATIENCE).await;
    assert!(report.errors.is_empty(), "{report:?}");

    // One that comes while the connection is away tells of it.
    let receiver = consumer(&broker, &address).await;
    let producer = producer(&broker, &address).await;
    // The connection is back before its channels are.
    until("a message is taken", async || send(&producer, numbered(1)).await[0].is_none()).await;
    // What was not taken before may come first.
    receiver.ack(&[soon(receive(&receiver)).await.unwrap()[0].token]);
    lose(&proxy, &broker).await;
    let report = receiver.close(Instant::now() + Duration::from_millis(200)).await;
    assert_eq!(report.errors.first().map(|error| error.kind()), Some(ErrorKind::Connection), "{report:?}");
    come_back(&proxy, &broker).await;
    broker.delete(&address).await.unwrap();
}

/// Ends the connections, and waits until that is seen. None comes back before [`come_back`].
async fn lose(proxy: &Proxy, broker: &Arc<dyn Broker>) {
    proxy.set(Back::Held);
    proxy.cut();
    until("the loss is seen", async || !broker.health().is_up()).await;
}

async fn come_back(proxy: &Proxy, broker: &Arc<dyn Broker>) {
    proxy.set(Back::After(Duration::ZERO));
    until("the connection is back", async || broker.health().is_up()).await;
}

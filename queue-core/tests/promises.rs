//! Promises of the handles and of the memory broker in the corners: late, out of order, dropped midway, over a limit.
#![allow(missing_docs, clippy::unwrap_used)]

mod fake;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering as Atomic};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use fake::Fake;
use futures::FutureExt as _;
use parking_lot::Mutex;
use queue_core::*;
use tokio::time::{Instant, advance, sleep, timeout};

const SEC: Duration = Duration::from_secs(1);

async fn memory(url: &str) -> Client {
    Client::connect_with(url, &[memory::DRIVER]).await.unwrap()
}

// ---------------------------------------------------------------- a scripted broker

type OnSend = Box<dyn FnMut(Vec<Message>, Completion) + Send>;

struct FakeProducer {
    caps: Arc<Capabilities>,
    on_send: Mutex<OnSend>,
    calls: Mutex<Vec<Vec<String>>>,
    gone: Arc<AtomicBool>,
}
impl FakeProducer {
    fn new(caps: Capabilities, on_send: impl FnMut(Vec<Message>, Completion) + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            caps: Arc::new(caps),
            on_send: Mutex::new(Box::new(on_send)),
            calls: Mutex::default(),
            gone: Arc::default(),
        })
    }
    fn sent(&self) -> usize {
        self.calls.lock().iter().map(Vec::len).sum()
    }
    fn order(&self) -> Vec<String> {
        self.calls.lock().iter().flatten().cloned().collect()
    }
}
impl Drop for FakeProducer {
    fn drop(&mut self) {
        self.gone.store(true, Atomic::SeqCst);
    }
}
impl fmt::Debug for FakeProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeProducer")
    }
}
#[async_trait]
impl Producer for FakeProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.caps.clone()
    }
    fn send(&self, batch: Vec<Message>, done: Completion) {
        self.calls.lock().push(batch.iter().map(|m| m.text().unwrap().to_owned()).collect());
        (self.on_send.lock())(batch, done);
    }
    async fn close(&self, _: Instant) -> CloseReport {
        CloseReport::default()
    }
}

#[derive(Default)]
struct FakeConsumer {
    caps: Arc<Capabilities>,
    queue: Mutex<VecDeque<Received>>,
    waker: Mutex<Option<Waker>>,
    acked: Mutex<Vec<AckToken>>,
    settled: Mutex<Vec<(Instant, Answer)>>,
    slow_close: AtomicBool,
}
impl fmt::Debug for FakeConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeConsumer")
    }
}
impl FakeConsumer {
    fn feed(&self, message: Message, number: u64, attempt: u32, lease: Option<Instant>) {
        let token = AckToken(number, 0);
        self.queue.lock().push_back(Received {
            message: Ok(message),
            token,
            attempt,
            lease,
            position: Position::default(),
        });
        if let Some(w) = self.waker.lock().take() {
            w.wake();
        }
    }
}
#[async_trait]
impl Consumer for FakeConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.caps.clone()
    }
    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        let mut queue = self.queue.lock();
        let count = queue.len().min(max.get());
        if count == 0 {
            *self.waker.lock() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        into.extend(queue.drain(..count));
        Poll::Ready(Ok(()))
    }
    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        self.acked.lock().extend(tokens);
        AckReport::default()
    }
    fn settle(&self, answers: Vec<Answer>) -> Settled {
        self.settled.lock().extend(answers.into_iter().map(|a| (Instant::now(), a)));
        Settled::default()
    }
    fn holds(&self, _: AckToken) -> bool {
        true
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn set_paused(&self, _: bool) {}
    async fn stop(&self) {}
    async fn close(&self, deadline: Instant) -> CloseReport {
        if self.slow_close.load(Atomic::SeqCst) {
            tokio::time::sleep_until(deadline).await;
        }
        CloseReport::default()
    }
}

fn caps() -> Capabilities {
    let mut c = Capabilities::default();
    c.topics = true;
    c
}
fn sending(producer: &Arc<FakeProducer>) -> Client {
    let producer = producer.clone();
    Client::from_broker(Arc::new(Fake {
        caps: Arc::new(caps()),
        producer: Box::new(move |_| Ok(producer.clone())),
        consumer: None,
        closes: Arc::default(),
    }))
}
fn receiving(consumer: &Arc<FakeConsumer>) -> Client {
    let producer = FakeProducer::new(caps(), |_, done| done.accept_all());
    Client::from_broker(Arc::new(Fake {
        caps: consumer.caps.clone(),
        producer: Box::new(move |_| Ok(producer.clone())),
        consumer: Some(consumer.clone() as Arc<dyn Consumer>),
        closes: Arc::default(),
    }))
}
/// Keeps every completion, so that nothing is ever answered.
fn silent() -> Arc<FakeProducer> {
    let mut kept = Vec::new();
    FakeProducer::new(caps(), move |_, done| kept.push(done))
}

// ---------------------------------------------------------------- outcome

/// First try: in flight when the connection broke (Unknown). Later tries: not connected (NotSent). The broker may have it.
#[tokio::test(start_paused = true)]
async fn outcome_stays_unknown_after_a_later_not_sent() {
    let mut first = true;
    let producer = FakeProducer::new(caps(), move |batch, done| {
        let error = Error::new(ErrorKind::Connection, "gone");
        let error = if std::mem::take(&mut first) { error.with_outcome(Outcome::Unknown) } else { error };
        done.fail_all(&error, batch);
    });
    let sender = sending(&producer).sender("q").deadline(3 * SEC).await.unwrap();
    let error = sender.send("x").await.unwrap_err();
    assert!(producer.sent() > 1);
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
}

// ---------------------------------------------------------------- send_batch over the window

#[tokio::test(start_paused = true)]
async fn dropped_send_batch_does_not_inflate_the_window() {
    let producer = silent();
    let sender = sending(&producer).sender("q").window(2).deadline(5 * SEC).await.unwrap();
    // Two are handed over, eight wait for room; the caller goes away.
    assert!(timeout(SEC, sender.send_batch((0..10).map(|i| i.to_string()))).await.is_err());
    assert_eq!(producer.sent(), 2);
    sleep(10 * SEC).await;
    // Nothing of the batch is in flight any more as far as the window knows: two may go, not ten.
    let verdicts = futures::future::join_all((0..12).map(|i| sender.submit(i.to_string()).now_or_never_owned())).await;
    let taken = verdicts.iter().filter(|v| v.is_some()).count();
    assert_eq!(taken, 2, "the window of 2 took {taken}");
}
trait NowOrNever: Future + Sized {
    async fn now_or_never_owned(self) -> Option<Self::Output> {
        self.now_or_never()
    }
}
impl<F: Future> NowOrNever for F {}

/// "Dropped, … those that waited for room were not sent": nothing of them is left for flush and close to wait for.
#[tokio::test(start_paused = true)]
async fn dropped_send_batch_does_not_hold_up_flush() {
    let kept: Arc<Mutex<Vec<Completion>>> = Arc::default();
    let producer = FakeProducer::new(caps(), {
        let kept = kept.clone();
        move |_, done| kept.lock().push(done)
    });
    let sender = sending(&producer).sender("q").window(2).await.unwrap();
    assert!(timeout(SEC, sender.send_batch(["a", "b", "c", "d"])).await.is_err());
    kept.lock().drain(..).for_each(Completion::accept_all);
    assert!(timeout(10 * SEC, sender.flush()).await.is_ok(), "flush waits for messages that were never handed over");
}

#[tokio::test(start_paused = true)]
async fn close_counts_only_what_was_handed_over_and_the_batch_resolves() {
    let producer = silent();
    let sender = sending(&producer).sender("q").window(2).await.unwrap();
    let mut batch = pin!(sender.send_batch(["a", "b", "c", "d"]));
    assert!(batch.as_mut().now_or_never().is_none());
    let report = sender.close(SEC).await;
    let done = timeout(60 * SEC, batch).await;
    assert!(done.is_ok(), "the batch hangs after a close (report {report:?})");
    assert_eq!(report.unconfirmed, 2, "c and d were never handed over");
}

/// Others go on sending: a flush waits for what was handed over before it, and not for a block that is begun meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flush_beside_sends_ends_with_the_verdicts_before_it() {
    let producer = FakeProducer::new(caps(), |_, done| done.accept_all());
    let sender = sending(&producer).sender("q").await.unwrap();
    for _ in 0..300 {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let sender = sender.clone();
                tokio::spawn(async move {
                    for _ in 0..5 {
                        sender.send("x").await.unwrap();
                    }
                })
            })
            .collect();
        timeout(5 * SEC, sender.flush()).await.expect("a flush waits for what is sent after it").unwrap();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

// ---------------------------------------------------------------- deadlines, order

/// A waits for room from 0 s, B from 20 s; both get it at 25 s, and B's task happens to run first.
#[tokio::test(start_paused = true)]
async fn deadline_holds_when_room_comes_in_another_order() {
    let kept: Arc<Mutex<Vec<Completion>>> = Arc::default();
    let producer = FakeProducer::new(caps(), {
        let kept = kept.clone();
        move |_, done| kept.lock().push(done)
    });
    let sender = sending(&producer).sender("q").window(2).await.unwrap();
    advance(Duration::from_millis(1)).await;
    let _x = sender.submit("x").await.unwrap();
    let _y = sender.submit("y").await.unwrap();
    let started = Instant::now();
    let mut a = pin!(sender.submit("a"));
    assert!(a.as_mut().now_or_never().is_none());
    advance(20 * SEC).await;
    let mut b = pin!(sender.submit("b"));
    assert!(b.as_mut().now_or_never().is_none());
    advance(5 * SEC).await;
    kept.lock().drain(..).for_each(Completion::accept_all);
    let _b = b.await.unwrap();
    let a = a.await.unwrap();
    a.await.unwrap_err();
    assert!(started.elapsed() < 31 * SEC, "the deadline of 30 s was told after {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_tells_what_is_wrong_with_the_broker() {
    let sender = sending(&silent()).sender("blocked").window(1).deadline(SEC).await.unwrap();
    let (in_flight, waiting) = tokio::join!(sender.send("x"), sender.send("y"));
    for error in [in_flight.unwrap_err(), waiting.unwrap_err()] {
        assert_eq!((error.kind(), error.context("health")), (ErrorKind::Timeout, Some("blocked by the broker")));
    }
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_task_keep_their_order_over_a_retry() {
    let mut first = true;
    let producer = FakeProducer::new(caps(), move |batch, done| {
        if std::mem::take(&mut first) {
            done.fail_all(&Error::new(ErrorKind::Connection, "away"), batch);
        } else {
            done.accept_all();
        }
    });
    let sender = sending(&producer).sender("q").await.unwrap();
    sender.send_batch((0..20).map(|i| i.to_string())).await.unwrap();
    let order = producer.order().split_off(20);
    assert_eq!(order, (0..20).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn submit_then_batch_keep_their_order_where_sends_are_coalesced() {
    let mut c = caps();
    c.per_request = true;
    let producer = FakeProducer::new(c, |_, done| done.accept_all());
    let sender = sending(&producer).sender("q").await.unwrap();
    let first = sender.submit("1").await.unwrap();
    sender.send_batch(["2", "3"]).await.unwrap();
    first.await.unwrap();
    assert_eq!(producer.order(), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn coalesced_sends_keep_to_max_batch() {
    let mut c = caps();
    c.per_request = true;
    c.max_batch = 10;
    let producer = FakeProducer::new(c, |_, done| done.accept_all());
    let sender = sending(&producer).sender("q").await.unwrap();
    futures::future::try_join_all((0..100).map(|i| sender.send(i.to_string()))).await.unwrap();
    let most = producer.calls.lock().iter().map(Vec::len).max().unwrap();
    assert!(most <= 10, "one call of Producer::send got {most} messages");
}

#[tokio::test(start_paused = true)]
async fn close_reports_given_up_retries_as_unconfirmed() {
    let producer = FakeProducer::new(caps(), |batch, done| {
        done.fail_all(&Error::new(ErrorKind::Connection, "broke").with_outcome(Outcome::Unknown), batch);
    });
    // The try is Unknown; a second close finds it waiting for its retry.
    let sender = sending(&producer).sender("q").await.unwrap();
    let verdict = sender.submit("x").await.unwrap();
    let report = sender.close(Duration::ZERO).await;
    let error = verdict.await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(report.unconfirmed, 1);
}

// ---------------------------------------------------------------- Duration::MAX

#[tokio::test]
async fn duration_max_does_not_panic_send() {
    let client = memory("memory://").await;
    let sender = client.sender("q").deadline(Duration::MAX).await.unwrap();
    sender.send("x").await.unwrap();
}
#[tokio::test]
async fn duration_max_does_not_panic_receive_within() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send("x").await.unwrap();
    let mut inbox = client.receiver("q").await.unwrap();
    inbox.receive_batch_within(1, Duration::MAX).await.unwrap().ack();
}
#[tokio::test]
async fn duration_max_does_not_panic_close() {
    memory("memory://").await.close(Duration::MAX).await;
}
/// The panic is in a spawned task: the receiver that was dropped is never closed.
#[tokio::test(start_paused = true)]
async fn duration_max_handler_time_closes_after_drop() {
    let client = memory("memory://?profile=amqp").await;
    client.sender("q").await.unwrap().send("x").await.unwrap();
    let mut inbox = client.receiver("q").max_handler_time(Duration::MAX).await.unwrap();
    inbox.receive().await.unwrap().ack();
    let control = inbox.control();
    drop(inbox);
    sleep(SEC).await;
    assert!(control.flush().await.is_err(), "the receiver was dropped, and is not closed");
}
#[tokio::test]
async fn backoff_of_duration_max_does_not_panic() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send("x").await.unwrap();
    let mut inbox = client.receiver("q").backoff(Duration::MAX, Duration::MAX).await.unwrap();
    inbox.receive().await.unwrap().retry();
}

// ---------------------------------------------------------------- leases

#[tokio::test(start_paused = true)]
async fn extend_of_one_delivery_does_not_stop_the_renewal_of_its_neighbours() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send_batch(["a", "b"]).await.unwrap();
    let mut inbox = client.receiver("q").await.unwrap();
    let a = inbox.receive().await.unwrap();
    let b = inbox.receive().await.unwrap();
    a.extend(Duration::from_secs(600)).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(b.ack(), Answered::Accepted, "the lease of b was not renewed");
    a.ack();
}

/// Three fetches whose leases end at 6, 30 and 10 s.
#[tokio::test(start_paused = true)]
async fn leases_are_renewed_at_half_time_in_any_order() {
    let mut c = caps();
    c.max_lease = Some(Duration::from_secs(3600));
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(c), ..Default::default() });
    let client = receiving(&consumer);
    let mut inbox = client.receiver("q").discard_dead_letters().await.unwrap();
    let start = Instant::now();
    let mut held = Vec::new();
    for (number, lease) in [(1, 6), (2, 30), (3, 10)] {
        consumer.feed(Message::new("x"), number, 1, Some(start + lease * SEC));
        held.push(inbox.receive().await.unwrap());
    }
    sleep(20 * SEC).await;
    let renewed = |number| {
        let settled = consumer.settled.lock();
        settled.iter().find(|(_, a)| a.token().0 == number).map(|(at, _)| *at - start)
    };
    let third = renewed(3).unwrap();
    assert!(third < 10 * SEC, "the lease of 10 s was renewed after {third:?}");
    for d in held {
        d.ack();
    }
}

/// A delivery whose handler is lost comes again while the queue is busy.
#[tokio::test(start_paused = true)]
async fn a_lease_ends_on_a_busy_queue() {
    let client = memory("memory://").await;
    let sender = client.sender("q").await.unwrap();
    let lease = SEC;
    let mut inbox = client.receiver("q").lease(lease).max_handler_time(lease).await.unwrap();
    sender.send("stuck").await.unwrap();
    let stuck = inbox.receive().await.unwrap();
    let started = Instant::now();
    let mut again = None;
    while started.elapsed() < 60 * SEC && again.is_none() {
        sender.send("busy").await.unwrap();
        let next = inbox.receive().await.unwrap();
        if next.text() == Some("stuck") {
            again = Some(started.elapsed());
        }
        next.ack();
        sleep(Duration::from_millis(5)).await;
    }
    drop(stuck);
    assert!(again.is_some_and(|a| a < 3 * SEC), "a lease of 1 s ended after {again:?} (None: not within 60 s)");
}

// ---------------------------------------------------------------- receiver

#[tokio::test]
async fn flush_waits_for_rejects() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send("x").await.unwrap();
    let mut inbox = client.receiver("q").await.unwrap();
    inbox.receive().await.unwrap().reject("bad");
    inbox.flush().await.unwrap();
    let stats = client.stats(&Source::new("q".parse().unwrap())).await.unwrap();
    assert_eq!(stats.in_flight, Some(0), "flush returned before the answer was with the broker");
}

#[tokio::test]
async fn close_report_counts_released() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send_batch(["a", "b", "c"]).await.unwrap();
    let mut inbox = client.receiver("q").await.unwrap();
    inbox.receive().await.unwrap().ack();
    let report = inbox.close(SEC).await;
    assert_eq!(report.released, 2, "b and c were fetched and given back");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_client_close_can_be_done_again() {
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(caps()), ..Default::default() });
    let closes = Arc::new(AtomicUsize::new(0));
    let producer = silent();
    let client = Client::from_broker(Arc::new(Fake {
        caps: Arc::new(caps()),
        producer: Box::new(move |_| Ok(producer.clone())),
        consumer: Some(consumer.clone() as Arc<dyn Consumer>),
        closes: closes.clone(),
    }));
    let mut inbox = client.receiver("q").await.unwrap();
    consumer.feed(Message::new("x"), 1, 1, None);
    let out = inbox.receive().await.unwrap();
    assert!(timeout(SEC, client.close(60 * SEC)).await.is_err());
    out.ack();
    client.close(SEC).await;
    assert_eq!(closes.load(Atomic::SeqCst), 1, "the broker was never closed");
}

/// Opening fails after the dead-letter outbox was started.
#[tokio::test(start_paused = true)]
async fn a_failed_open_leaks_no_task() {
    let mut c = caps();
    c.retry_via = RetryVia::Copy;
    let c = Arc::new(c);
    let consumer = Arc::new(FakeConsumer { caps: c.clone(), ..Default::default() });
    let gone: Arc<Mutex<Option<Arc<AtomicBool>>>> = Arc::default();
    let client = Client::from_broker(Arc::new(Fake {
        caps: c,
        producer: Box::new({
            let gone = gone.clone();
            move |to| {
                if to.name().ends_with("-dlq") {
                    let producer = silent();
                    *gone.lock() = Some(producer.gone.clone());
                    Ok(producer)
                } else {
                    Err(Error::new(ErrorKind::Unauthorized, "no right to send here"))
                }
            }
        }),
        consumer: Some(consumer),
        closes: Arc::default(),
    }));
    client.receiver("q").await.unwrap_err();
    drop(client);
    sleep(Duration::from_secs(3600)).await;
    let gone = gone.lock().clone().unwrap();
    assert!(gone.load(Atomic::SeqCst), "the producer of the dead letters lives for ever, with its task");
}

/// B is dead-lettered on arrival while A of the same key is out; C must wait for A.
#[tokio::test(start_paused = true)]
async fn per_key_order_survives_a_dead_letter_on_arrival() {
    let mut c = caps();
    c.ordering = Ordering::PerKey;
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(c), ..Default::default() });
    let client = receiving(&consumer);
    let mut inbox = client.receiver("q").ordering(Ordering::PerKey).await.unwrap();
    consumer.feed(Message::new("A").key("k"), 1, 1, None);
    consumer.feed(Message::new("B").key("k"), 2, 100, None);
    consumer.feed(Message::new("C").key("k"), 3, 1, None);
    let a = inbox.receive().await.unwrap();
    assert_eq!(a.text(), Some("A"));
    let next = timeout(SEC, inbox.receive()).await;
    assert!(next.is_err(), "{:?} was handed out while A is unanswered", next.unwrap().unwrap().text());
    a.ack();
}

#[tokio::test(start_paused = true)]
async fn attempt_zero_does_not_panic() {
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(caps()), ..Default::default() });
    let client = receiving(&consumer);
    let mut inbox = client.receiver("q").await.unwrap();
    consumer.feed(Message::new("A"), 1, 0, None);
    inbox.receive().await.unwrap().retry();
}

/// Handing out again in place does not ask whether the message is still ours: here another receiver has even acked it.
#[tokio::test(start_paused = true)]
async fn a_retry_in_place_is_not_handed_out_after_its_lease_was_lost() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send(Message::new("x").key("k")).await.unwrap();
    let open = || client.receiver("q").ordering(Ordering::PerKey).lease(SEC).max_handler_time(2 * SEC);
    let mut inbox = open().await.unwrap();
    inbox.receive().await.unwrap().retry_after(20 * SEC);
    let mut other = client.receiver("q").await.unwrap();
    let again = timeout(10 * SEC, other.receive()).await.unwrap().unwrap();
    assert_eq!(again.ack(), Answered::Accepted);
    let next = timeout(60 * SEC, inbox.receive()).await;
    assert!(next.is_err(), "a message that was acked 17 s ago is handed out: {:?}", next.unwrap().unwrap().ack());
}

/// "Gives the message back for another receiver, at once."
#[tokio::test(start_paused = true)]
async fn a_release_reaches_another_receiver_with_order_by_key() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send(Message::new("x").key("k")).await.unwrap();
    let mut one = client.receiver("q").ordering(Ordering::PerKey).await.unwrap();
    let mut two = client.receiver("q").ordering(Ordering::PerKey).await.unwrap();
    one.receive().await.unwrap().release();
    assert!(timeout(600 * SEC, two.receive()).await.is_ok(), "the message stays with the receiver that released it");
}

/// A close that is dropped while the consumer closes: nothing closes the rest any more.
#[tokio::test(start_paused = true)]
async fn a_dropped_receiver_close_leaks_no_task() {
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(caps()), ..Default::default() });
    consumer.slow_close.store(true, Atomic::SeqCst);
    let gone: Arc<Mutex<Vec<Arc<AtomicBool>>>> = Arc::default();
    let client = Client::from_broker(Arc::new(Fake {
        caps: Arc::new(caps()),
        producer: Box::new({
            let gone = gone.clone();
            move |_| {
                let producer = silent();
                gone.lock().push(producer.gone.clone());
                Ok(producer)
            }
        }),
        consumer: Some(consumer.clone() as Arc<dyn Consumer>),
        closes: Arc::default(),
    }));
    let mut inbox = client.receiver("q").await.unwrap();
    assert!(timeout(SEC, inbox.close(2 * SEC)).await.is_err());
    consumer.slow_close.store(false, Atomic::SeqCst);
    drop(inbox);
    drop(client);
    sleep(Duration::from_secs(7200)).await;
    assert!(gone.lock().iter().all(|g| g.load(Atomic::SeqCst)), "the dead-letter producer lives for ever");
}

/// A try a second for a day: the count of tries is a u16.
#[tokio::test(start_paused = true)]
async fn a_deadline_of_a_day_holds() {
    let producer = FakeProducer::new(caps(), |batch, done| {
        done.fail_all(&Error::new(ErrorKind::Connection, "away"), batch);
    });
    let sender = sending(&producer).sender("q").deadline(Duration::from_secs(86_400)).await.unwrap();
    let done = timeout(Duration::from_secs(90_000), sender.send("x")).await;
    assert!(done.is_ok(), "the task panicked after {} tries, and nobody keeps the deadline", producer.sent());
}

// ---------------------------------------------------------------- controls: these pass, the scripts above work

#[tokio::test(start_paused = true)]
async fn control_window_of_two() {
    let sender = sending(&silent()).sender("q").window(2).deadline(5 * SEC).await.unwrap();
    let verdicts = futures::future::join_all((0..12).map(|i| sender.submit(i.to_string()).now_or_never_owned())).await;
    assert_eq!(verdicts.iter().filter(|v| v.is_some()).count(), 2);
    let sender = sending(&silent()).sender("q").deadline(5 * SEC).await.unwrap();
    let error = sender.send("x").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
}
#[tokio::test(start_paused = true)]
async fn control_unknown_stays_unknown() {
    let producer = FakeProducer::new(caps(), |b, d| {
        d.fail_all(&Error::new(ErrorKind::Connection, "gone").with_outcome(Outcome::Unknown), b);
    });
    let sender = sending(&producer).sender("q").deadline(3 * SEC).await.unwrap();
    assert_eq!(sender.send("x").await.unwrap_err().outcome(), Outcome::Unknown);
}
#[tokio::test(start_paused = true)]
async fn control_neighbours_are_renewed_without_extend() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send_batch(["a", "b"]).await.unwrap();
    let mut inbox = client.receiver("q").await.unwrap();
    let a = inbox.receive().await.unwrap();
    let b = inbox.receive().await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!((a.ack(), b.ack()), (Answered::Accepted, Answered::Accepted));
}
#[tokio::test(start_paused = true)]
async fn control_a_lease_ends_on_an_idle_queue() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap().send("stuck").await.unwrap();
    let mut inbox = client.receiver("q").lease(SEC).max_handler_time(SEC).await.unwrap();
    let _stuck = inbox.receive().await.unwrap();
    timeout(3 * SEC, inbox.receive()).await.unwrap().unwrap().ack();
}
#[tokio::test(start_paused = true)]
async fn control_replay_without_one_in_flight() {
    let client = memory("memory://").await;
    let sender = client.sender("topic:t").await.unwrap();
    let mut one = client.receiver("topic:t").group("g").await.unwrap();
    sender.send_batch((0..10).map(|i| i.to_string())).await.unwrap();
    one.receive_batch(10).await.unwrap().ack();
    let mut two = client.receiver("topic:t").group("g").start(Start::Earliest).await.unwrap();
    two.receive_batch(10).await.unwrap().ack();
    sender.send("later").await.unwrap();
    let got = timeout(5 * SEC, async {
        tokio::select! { d = two.receive() => d, d = one.receive() => d }
    })
    .await;
    got.unwrap().unwrap().ack();
}
#[tokio::test(start_paused = true)]
async fn control_producers_go_after_a_normal_close() {
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(caps()), ..Default::default() });
    let gone: Arc<Mutex<Vec<Arc<AtomicBool>>>> = Arc::default();
    let client = Client::from_broker(Arc::new(Fake {
        caps: Arc::new(caps()),
        producer: Box::new({
            let gone = gone.clone();
            move |_| {
                let producer = silent();
                gone.lock().push(producer.gone.clone());
                Ok(producer)
            }
        }),
        consumer: Some(consumer),
        closes: Arc::default(),
    }));
    drop(client.receiver("q").await.unwrap());
    drop(client);
    sleep(Duration::from_secs(7200)).await;
    assert!(gone.lock().len() == 1 && gone.lock().iter().all(|g| g.load(Atomic::SeqCst)));
}
#[tokio::test(start_paused = true)]
async fn control_per_key_parks() {
    let mut c = caps();
    c.ordering = Ordering::PerKey;
    let consumer = Arc::new(FakeConsumer { caps: Arc::new(c), ..Default::default() });
    let mut inbox = receiving(&consumer).receiver("q").ordering(Ordering::PerKey).await.unwrap();
    consumer.feed(Message::new("A").key("k"), 1, 1, None);
    consumer.feed(Message::new("C").key("k"), 3, 1, None);
    let a = inbox.receive().await.unwrap();
    assert!(timeout(SEC, inbox.receive()).await.is_err());
    a.ack();
    assert_eq!(inbox.receive().await.unwrap().text(), Some("C"));
}
#[test]
fn control_answers_after_the_runtime_is_gone() {
    for profile in ["memory", "amqp", "kafka", "sqs"] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (batch, inbox, sender) = runtime.block_on(async {
            let client = memory(&format!("memory://?profile={profile}")).await;
            let sender = client.sender("q").await.unwrap();
            sender.send_batch(["a", "b", "c"]).await.unwrap();
            let mut inbox = client.receiver("q").await.unwrap();
            (inbox.receive_batch(3).await.unwrap(), inbox, sender)
        });
        drop(runtime);
        let mut all = batch.into_iter();
        drop(all.next());
        all.next().unwrap().reject("x");
        all.next().unwrap().ack();
        drop((inbox, sender));
    }
}
/// Room, flush and prefetch under two threads: no lost wakeup shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_stress() {
    let (tx, rx) = std::sync::mpsc::channel::<(Vec<Message>, Completion)>();
    let thread = std::thread::spawn(move || {
        for (batch, done) in rx {
            if fastrand::u8(..) < 3 {
                done.fail_all(&Error::new(ErrorKind::Connection, "x"), batch);
            } else {
                done.accept_all();
            }
        }
    });
    let producer = FakeProducer::new(caps(), move |b, d| tx.send((b, d)).unwrap());
    let client = sending(&producer);
    let sender = client.sender("q").window(4).await.unwrap();
    let tasks = (0..4).map(|_| {
        let sender = sender.clone();
        tokio::spawn(async move {
            for i in 0..1500 {
                if i % 7 == 0 {
                    sender.send_batch((0..6).map(|i| i.to_string())).await.unwrap();
                } else {
                    drop(sender.submit("x").await.unwrap());
                }
                if i % 50 == 0 {
                    sender.flush().await.unwrap();
                }
            }
        })
    });
    timeout(60 * SEC, futures::future::try_join_all(tasks)).await.expect("no hang").unwrap();
    let memory = memory("memory://").await;
    let sender = memory.sender("q").await.unwrap();
    let mut inbox = memory.receiver("q").prefetch(2).await.unwrap();
    let feed = tokio::spawn(async move {
        for _ in 0..20_000 {
            sender.send("x").await.unwrap();
        }
    });
    let read = async {
        for _ in 0..20_000 {
            let d = inbox.receive().await.unwrap();
            tokio::spawn(async move { d.ack() });
        }
    };
    timeout(60 * SEC, read).await.expect("no hang");
    feed.await.unwrap();
    drop((client, producer));
    drop(thread);
}

#[tokio::test]
async fn a_busy_loop_lets_others_run() {
    let client = memory("memory://").await;
    let sender = client.sender("q").await.unwrap();
    let mut inbox = client.receiver("q").await.unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let ran = ran.clone();
        async move { ran.store(true, Atomic::SeqCst) }
    });
    for _ in 0..20_000 {
        sender.send("x").await.unwrap();
        inbox.receive().await.unwrap().ack();
    }
    assert!(ran.load(Atomic::SeqCst), "20,000 sends and receives gave no other task its turn");
}

#[tokio::test]
async fn a_loop_over_verdicts_that_are_there_lets_others_run() {
    let client = memory("memory://").await;
    let sender = client.sender("q").await.unwrap();
    let mut verdicts = Vec::new();
    for _ in 0..5_000 {
        verdicts.push(sender.submit("x").await.unwrap());
    }
    let ran = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let ran = ran.clone();
        async move { ran.store(true, Atomic::SeqCst) }
    });
    for verdict in verdicts {
        verdict.await.unwrap();
    }
    assert!(ran.load(Atomic::SeqCst), "5,000 verdicts gave no other task its turn");
}

// ---------------------------------------------------------------- memory broker

#[tokio::test(start_paused = true)]
async fn a_replay_loses_no_later_message() {
    let client = memory("memory://").await;
    let sender = client.sender("topic:t").await.unwrap();
    let mut one = client.receiver("topic:t").group("g").await.unwrap();
    sender.send_batch((0..10).map(|i| i.to_string())).await.unwrap();
    let mut batch: Vec<_> = one.receive_batch(10).await.unwrap().into_iter().collect();
    assert_eq!(batch.len(), 10);
    let last = batch.pop().unwrap();
    for d in batch {
        d.ack();
    }
    let mut two = client.receiver("topic:t").group("g").start(Start::Earliest).await.unwrap();
    let replayed = two.receive_batch(10).await.unwrap();
    assert_eq!(replayed.len(), 10);
    replayed.ack();
    sender.send("later").await.unwrap();
    let got = timeout(5 * SEC, async {
        tokio::select! { d = two.receive() => d, d = one.receive() => d }
    })
    .await;
    assert!(got.is_ok(), "the message was accepted and never comes");
    drop(last);
}

#[tokio::test]
async fn a_group_without_receivers_is_bounded() {
    let client = memory("memory://?capacity=10").await;
    let sender = client.sender("topic:t").deadline(Duration::from_millis(200)).await.unwrap();
    drop(client.receiver("topic:t").group("g").await.unwrap());
    for i in 0..1000 {
        let _ = timeout(Duration::from_millis(1), sender.send(i.to_string())).await;
    }
    let source = Source::new("topic:t".parse().unwrap()).with_group("g").unwrap();
    let ready = client.stats(&source).await.unwrap().ready.unwrap();
    assert!(ready <= 10, "{ready} messages are kept with capacity=10");
}

#[tokio::test(start_paused = true)]
async fn messages_that_timed_out_before_a_full_queue_are_not_kept() {
    let client = memory("memory://?capacity=1").await;
    let sender = client.sender("q").window(1).deadline(SEC).await.unwrap();
    sender.send("first").await.unwrap();
    for _ in 0..50 {
        sender.send("late").await.unwrap_err();
    }
    let mut inbox = client.receiver("q").await.unwrap();
    let mut got = 0;
    while let Ok(d) = timeout(SEC, inbox.receive()).await {
        d.unwrap().ack();
        got += 1;
    }
    assert!(got <= 2, "a queue of capacity 1 with a window of 1 kept {got} messages");
}

#[tokio::test]
async fn a_destination_does_not_bypass_capacity() {
    let client = memory("memory://?capacity=1").await;
    let q: Address = "q".parse().unwrap();
    client.sender("q").await.unwrap();
    let sender = client.sender("other").deadline(Duration::from_millis(100)).await.unwrap();
    let mut accepted = 0;
    for _ in 0..20 {
        accepted += usize::from(sender.send(Message::new("x").to(q.clone())).await.is_ok());
    }
    assert!(accepted <= 1, "{accepted} accepted by a queue with capacity=1");
}

#[tokio::test]
async fn require_route_holds_beside_a_destination() {
    let client = memory("memory://").await;
    client.sender("q").await.unwrap();
    let sender = client.sender("topic:t").require_route(true).await.unwrap();
    assert_eq!(sender.send("x").await.unwrap_err().kind(), ErrorKind::Unroutable);
    let done = sender.send_batch([Message::new("a"), Message::new("b").to("q".parse().unwrap())]).await;
    assert!(done.is_err(), "a message that reached no queue was accepted");
}

#[derive(Debug)]
struct Same;
impl BrokerLayer for Same {
    fn layer(&self, inner: Arc<dyn Broker>) -> Arc<dyn Broker> {
        inner
    }
}
#[tokio::test(start_paused = true)]
async fn closing_the_broker_ends_its_receivers() {
    let client = memory("memory://").await;
    let second = client.layer(&Same);
    let mut inbox = second.receiver("q").await.unwrap();
    let waiting = tokio::spawn(async move { inbox.next().await.map(|r| r.map(drop)) });
    sleep(SEC).await;
    client.close(SEC).await;
    assert!(timeout(60 * SEC, waiting).await.is_ok(), "the receiver waits for ever on a closed broker");
}

// ---------------------------------------------------------------- secrets, environment

#[test]
fn a_password_that_is_not_encoded_is_not_shown() {
    for url in ["amqp://user:hunter2/x@host", "amqp://user:hunter2#x@host", "amqp://user:hunter2?x@host"] {
        let error = url.parse::<Endpoint>().unwrap_err();
        assert!(!format!("{error}").contains("hunter2"), "{error}");
    }
}
#[test]
fn debug_of_an_endpoint_shows_no_secret_option() {
    let endpoint: Endpoint = "kafka://h?kafka.sasl.password=hunter2&secret_access_key=hunter2".parse().unwrap();
    assert!(!format!("{endpoint:?}").contains("hunter2"), "{endpoint:?}");
}
#[test]
fn a_url_in_the_wrong_place_of_a_file_is_not_shown() {
    let error = Bindings::parse("[brokers]\nmain = \"amqp://user:hunter2@host\"\n").unwrap_err();
    assert!(!format!("{error}").contains("hunter2"), "{error}");
}
#[test]
fn debug_of_bindings_shows_no_secret() {
    let b =
        Bindings::parse("[brokers.main]\nurl = \"kafka://h\"\n[brokers.main.kafka]\n\"sasl.password\" = \"hunter2\"\n")
            .unwrap();
    assert!(!format!("{b:?}").contains("hunter2"), "shown");
}
#[cfg(unix)]
#[test]
fn a_variable_that_is_no_unicode_does_not_panic() {
    use std::os::unix::ffi::OsStrExt as _;
    if std::env::var_os("REVIEW_CHILD").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(Client::from_env_with(&[memory::DRIVER]));
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_variable_that_is_no_unicode_does_not_panic"])
        .env("REVIEW_CHILD", "1")
        .env("QUEUE_URL", "memory://")
        .env("ODD", std::ffi::OsStr::from_bytes(b"\xff"))
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
}

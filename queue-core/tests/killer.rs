//! A message that kills its process, and what is fetched beside it, on a broker that counts receives and hands out in any
//! order: many times, without a server.
#![allow(missing_docs, clippy::unwrap_used)]

mod fake;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Atomic};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use fake::Fake;
use parking_lot::Mutex;
use queue_core::*;
use tokio::time::{Instant, timeout};

const MAX_DELIVERIES: u32 = 5;
const KILLER: &str = "killer";

struct Stored {
    number: u64,
    message: Message,
    receives: u32,
    /// The process that has it.
    holder: Option<usize>,
}

/// What outlives a process.
#[derive(Default)]
struct Queue {
    stored: Mutex<Vec<Stored>>,
    dead: Mutex<Vec<String>>,
    numbers: AtomicU64,
    random: Mutex<fastrand::Rng>,
    waker: Mutex<Option<Waker>>,
}

impl Queue {
    fn store(&self, message: Message) {
        let number = self.numbers.fetch_add(1, Atomic::Relaxed);
        self.stored.lock().push(Stored { number, message, receives: 0, holder: None });
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }
}

/// The broker as one process sees it.
#[derive(Clone)]
struct Process {
    queue: Arc<Queue>,
    number: usize,
    is_dead: Arc<AtomicBool>,
    /// Where it sends to.
    to: String,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

impl Process {
    fn is_dead(&self) -> bool {
        self.is_dead.load(Atomic::Acquire)
    }

    fn client(&self) -> Client {
        let of = self.clone();
        Client::from_broker(Arc::new(Fake {
            caps: Self::capable(),
            producer: Box::new(move |to| Ok(Arc::new(Self { to: to.name().to_owned(), ..of.clone() }))),
            consumer: Some(Arc::new(self.clone())),
            closes: Arc::default(),
        }))
    }

    /// Nothing that it does reaches the broker any more, and what it had is there again.
    fn kill(&self) {
        self.is_dead.store(true, Atomic::Release);
        self.queue.stored.lock().iter_mut().filter(|s| s.holder == Some(self.number)).for_each(|s| s.holder = None);
    }

    fn capable() -> Arc<Capabilities> {
        let mut able = Capabilities::default();
        able.delivery_count = DeliveryCount::Receives;
        able.retry_via = RetryVia::Copy;
        able.durable = true;
        Arc::new(able)
    }

    fn take(&self, token: AckToken) -> bool {
        let mut stored = self.queue.stored.lock();
        let place = stored.iter().position(|s| s.number == token.0 && s.holder == Some(self.number));
        !self.is_dead() && place.map(|place| stored.remove(place)).is_some()
    }
}

#[async_trait]
impl Producer for Process {
    fn capabilities(&self) -> Arc<Capabilities> {
        Self::capable()
    }
    fn send(&self, batch: Vec<Message>, done: Completion) {
        if self.is_dead() {
            std::mem::forget(done);
            return;
        }
        for message in batch {
            match self.to.ends_with("-dlq") {
                true => self.queue.dead.lock().push(message.text().unwrap().to_owned()),
                false => self.queue.store(message),
            }
        }
        done.accept_all();
    }
    async fn close(&self, _: Instant) -> CloseReport {
        CloseReport::default()
    }
}

#[async_trait]
impl Consumer for Process {
    fn capabilities(&self) -> Arc<Capabilities> {
        Self::capable()
    }
    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        let mut stored = self.queue.stored.lock();
        let mut free: Vec<_> = stored.iter_mut().filter(|s| s.holder.is_none()).collect();
        if free.is_empty() || self.is_dead() {
            *self.queue.waker.lock() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut random = self.queue.random.lock();
        random.shuffle(&mut free);
        // Few at a time, as a server of many nodes does it.
        let some = random.usize(1..=10).min(max.get());
        for entry in free.into_iter().take(some) {
            entry.holder = Some(self.number);
            entry.receives += 1;
            into.push(Received {
                message: Ok(entry.message.clone()),
                token: AckToken(entry.number, 0),
                attempt: entry.receives,
                lease: None,
                position: Position::default(),
            });
        }
        Poll::Ready(Ok(()))
    }
    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        let mut report = AckReport::default();
        report.stale = (0..tokens.len()).filter(|index| !self.take(tokens[*index])).collect();
        report
    }
    fn settle(&self, answers: Vec<Answer>) -> Settled {
        let mut stored = self.queue.stored.lock();
        for answer in answers {
            let token = answer.token();
            stored.iter_mut().filter(|s| s.number == token.0 && !self.is_dead()).for_each(|s| s.holder = None);
        }
        drop(stored);
        self.queue.wake();
        Settled::default()
    }
    fn holds(&self, token: AckToken) -> bool {
        self.queue.stored.lock().iter().any(|s| s.number == token.0 && s.holder == Some(self.number))
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn set_paused(&self, _: bool) {}
    async fn stop(&self) {}
    async fn close(&self, _: Instant) -> CloseReport {
        CloseReport::default()
    }
}

/// How many processes the killer took, and which messages others processed.
async fn run(seed: u64, neighbours: usize) -> (usize, Vec<String>, Vec<String>) {
    let queue = Arc::new(Queue { random: Mutex::new(fastrand::Rng::with_seed(seed)), ..Queue::default() });
    queue.store(Message::new(KILLER).id("id-of-the-killer"));
    (0..neighbours).for_each(|n| queue.store(Message::new(format!("m-{n}")).id(format!("id-{n}"))));
    let (mut kills, mut processed) = (0, Vec::new());
    for number in 0.. {
        let process = Process { queue: queue.clone(), number, is_dead: Arc::default(), to: String::new() };
        let mut receiver = process.client().receiver("jobs").max_deliveries(MAX_DELIVERIES).await.unwrap();
        // Handlers that take a second; the killer kills at once.
        let mut busy: Vec<Delivery> = Vec::new();
        loop {
            let wait = Duration::from_secs(if busy.is_empty() { 60 } else { 1 });
            let Ok(received) = timeout(wait, receiver.receive()).await else {
                if busy.is_empty() {
                    assert!(queue.stored.lock().is_empty(), "seed {seed}: nothing comes, and messages are left");
                    return (kills, processed, queue.dead.lock().clone());
                }
                for delivery in std::mem::take(&mut busy) {
                    processed.push(delivery.text().unwrap().to_owned());
                    delivery.ack();
                }
                continue;
            };
            let delivery = received.unwrap();
            let is_killer = delivery.text() == Some(KILLER);
            busy.push(delivery);
            if is_killer {
                process.kill();
                kills += 1;
                std::mem::forget(busy);
                break;
            }
        }
        assert!(kills < 100, "seed {seed}: it never ends");
    }
    unreachable!()
}

#[tokio::test(start_paused = true)]
async fn a_killer_ends_after_three_more_in_whatever_order_messages_come() {
    for (seed, neighbours) in (0..60).zip([0, 1, 5, 20, 60].into_iter().cycle()) {
        let (kills, mut processed, dead) = run(seed, neighbours).await;
        assert_eq!(dead, [KILLER], "seed {seed}");
        processed.sort();
        processed.dedup();
        assert_eq!(processed.len(), neighbours, "seed {seed}");
        let most = MAX_DELIVERIES as usize + 3;
        assert!((MAX_DELIVERIES as usize..=most).contains(&kills), "seed {seed}, {neighbours} neighbours: {kills}");
    }
}

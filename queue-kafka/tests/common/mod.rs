//! What the tests of this crate share.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Trial};
use queue_core::{
    Address, Broker, Completion, Consumer, ConsumerOptions, Entry, Events, Message, Producer, ProducerOptions,
    Received, Result, Source, Topology,
};
use queue_kafka::DRIVER;
use tokio::time::{Instant, timeout};

/// The broker's URL; without it every test is reported as ignored.
pub fn url() -> Option<String> {
    std::env::var("ANYQUEUE_TEST_KAFKA_URL").ok()
}

pub type Test = (&'static str, fn());

/// Runs the tests, or reports them as ignored.
pub fn run(tests: &[Test]) {
    let missing = url().is_none();
    if missing {
        eprintln!("ANYQUEUE_TEST_KAFKA_URL is not set: the tests against a broker are ignored");
    }
    let trials = tests.iter().map(|(name, test)| {
        let test = *test;
        Trial::test(*name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(missing)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Runs one test on a runtime of its own, within a bound.
pub fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(300), test).await.expect("the test took too long") });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

pub fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    format!("t-{now}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub async fn connect_to(url: &str) -> Result<Arc<dyn Broker>> {
    connect_with(url, Events::new()).await
}

pub async fn connect_with(url: &str, events: Events) -> Result<Arc<dyn Broker>> {
    (DRIVER.connect)(url.parse()?, events).await
}

/// A broker and a fresh queue on it.
pub struct Rig {
    pub broker: Arc<dyn Broker>,
    pub queue: Address,
}

impl Rig {
    pub async fn new(partitions: u32) -> Self {
        Self::at(&url().unwrap(), partitions).await
    }

    pub async fn at(url: &str, partitions: u32) -> Self {
        Self::made(url, fresh_name().parse().unwrap(), partitions).await
    }

    /// With a queue of this name.
    pub async fn named(queue: &Address, partitions: u32) -> Self {
        Self::made(&url().unwrap(), queue.clone(), partitions).await
    }

    async fn made(url: &str, queue: Address, partitions: u32) -> Self {
        let broker = connect_to(url).await.unwrap();
        let mut entry = Entry::new(queue.clone());
        entry.partitions = Some(partitions);
        broker.declare(&Topology::from_iter([entry])).await.unwrap();
        Self { broker, queue }
    }

    pub async fn producer(&self) -> Arc<dyn Producer> {
        self.broker.producer(&self.queue, &ProducerOptions::default()).await.unwrap()
    }

    pub async fn consumer(&self) -> Arc<dyn Consumer> {
        self.consumer_with(ConsumerOptions::default()).await
    }

    pub async fn consumer_with(&self, options: ConsumerOptions) -> Arc<dyn Consumer> {
        self.broker.consumer(&Source::new(self.queue.clone()), &options).await.unwrap()
    }

    pub async fn send(&self, messages: Vec<Message>) {
        send(&*self.producer().await, messages).await;
    }

    pub async fn end(self) {
        let report = self.broker.close(in_secs(10)).await;
        assert!(report.errors.is_empty(), "{report:?}");
    }
}

pub fn in_secs(secs: u64) -> Instant {
    Instant::now() + Duration::from_secs(secs)
}

pub async fn send(producer: &dyn Producer, messages: Vec<Message>) {
    let (done, verdict) = Completion::new(messages.len());
    producer.send(messages, done);
    verdict.await.unwrap();
}

pub fn numbered(range: std::ops::Range<u32>) -> Vec<Message> {
    range.map(|i| Message::new(i.to_string()).key(i.to_string())).collect()
}

/// One poll with messages, or the end of time.
pub async fn some(consumer: &dyn Consumer, max: usize) -> Result<Vec<Received>> {
    let max = NonZeroUsize::new(max).unwrap();
    let mut into = Vec::new();
    poll_fn(|cx| consumer.poll_receive(cx, max, &mut into)).await?;
    Ok(into)
}

/// Exactly `count` messages.
pub async fn receive(consumer: &dyn Consumer, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        let more = timeout(Duration::from_secs(90), some(consumer, count - all.len())).await;
        all.extend(more.unwrap_or_else(|_| panic!("{} of {count} messages came", all.len())).unwrap());
    }
    all
}

/// Whether nothing comes for a while.
pub async fn nothing(consumer: &dyn Consumer, within: Duration) -> bool {
    timeout(within, some(consumer, 1)).await.is_err()
}

pub fn text(received: &Received) -> String {
    received.message.as_ref().unwrap().text().unwrap().to_owned()
}

pub fn texts(received: &[Received]) -> BTreeSet<String> {
    received.iter().map(text).collect()
}

//! What the tests against a real broker share; none of them uses all of it.
#![allow(dead_code, reason = "every test program uses a part of it")]

use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Conclusion, Trial};
use queue_amqp::DRIVER;
use queue_core::{
    Address, Broker, Completion, Consumer, ConsumerOptions, Endpoint, Entry, Error, Events, Message, Producer,
    ProducerOptions, Received, Source, Topology,
};
use tokio::time::timeout;

/// The variable with the broker's URL.
pub(crate) const URL: &str = "ANYQUEUE_TEST_AMQP_URL";
/// The same of a newer server.
pub(crate) const URL_4: &str = "ANYQUEUE_TEST_AMQP4_URL";
/// Longest wait for anything: a machine may be slow, and only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// A test: its name, and what it does with the broker at a URL.
pub(crate) struct Case(pub(crate) &'static str, pub(crate) Body);

type Body = fn(String) -> futures::future::LocalBoxFuture<'static, ()>;

/// Runs the cases on one server.
pub(crate) fn run(variable: &'static str, cases: Vec<Case>) {
    conclude(variable, cases).exit();
}

/// The same, with something left to do before the exit.
pub(crate) fn conclude(variable: &'static str, cases: Vec<Case>) -> Conclusion {
    run_trials(cases.into_iter().map(|Case(name, body)| trial(name.to_owned(), variable, body)).collect())
}

/// Runs the cases on each server there is: RabbitMQ 3.10, and 4.3 or newer.
pub(crate) fn run_on_each(cases: Vec<Case>) {
    let on = |(server, variable): (&str, &'static str)| {
        let of = move |Case(name, body): &Case| trial(format!("{server}/{name}"), variable, *body);
        cases.iter().map(of).collect::<Vec<_>>()
    };
    run_trials([("rabbitmq", URL), ("rabbitmq4", URL_4)].into_iter().flat_map(on).collect()).exit();
}

fn run_trials(trials: Vec<Trial>) -> Conclusion {
    let mut arguments = Arguments::from_args();
    // The broker and the machine are shared.
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, trials)
}

/// Reported as ignored when there is no broker, or as failed where one is required.
fn trial(name: String, variable: &'static str, body: Body) -> Trial {
    let url = std::env::var(variable).ok();
    let required = std::env::var("ANYQUEUE_REQUIRE_BROKERS").as_deref() == Ok("1");
    let ignored = url.is_none() && !required;
    Trial::test(name, move || {
        let url = url.ok_or_else(|| format!("{variable} is not set"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(body(url));
        Ok(())
    })
    .with_ignored_flag(ignored)
}

/// A name that nobody used.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("t-{name}-{:x}-{}", now.as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) async fn connect(url: &str) -> Result<Arc<dyn Broker>, Error> {
    let endpoint: Endpoint = url.parse()?;
    (DRIVER.connect)(endpoint, Events::new()).await
}

/// Declares a fresh queue.
pub(crate) async fn queue(broker: &Arc<dyn Broker>, name: &str) -> Address {
    let address = Address::queue(&unique(name)).unwrap();
    broker.declare(&Topology::from_iter([Entry::new(address.clone())])).await.unwrap();
    address
}

pub(crate) async fn producer(broker: &Arc<dyn Broker>, address: &Address) -> Arc<dyn Producer> {
    broker.producer(address, &ProducerOptions::default()).await.unwrap()
}

pub(crate) async fn consumer(broker: &Arc<dyn Broker>, address: &Address) -> Arc<dyn Consumer> {
    broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await.unwrap()
}

/// Sends and waits for every verdict: the error of each message, `None` where there is none.
pub(crate) async fn send(producer: &Arc<dyn Producer>, batch: Vec<Message>) -> Vec<Option<Error>> {
    let mut verdicts = vec![None; batch.len()];
    let (done, verdict) = Completion::new(batch.len());
    producer.send(batch, done);
    if let Err(error) = soon(verdict).await {
        for (index, error) in error.failures() {
            verdicts[index] = Some(error);
        }
    }
    verdicts
}

pub(crate) async fn send_all(producer: &Arc<dyn Producer>, batch: Vec<Message>) {
    for failure in send(producer, batch).await {
        assert!(failure.is_none(), "{failure:?}");
    }
}

/// Receives what is there, at least one.
pub(crate) async fn receive(consumer: &Arc<dyn Consumer>) -> Result<Vec<Received>, Error> {
    let mut into = Vec::new();
    poll_fn(|cx| consumer.poll_receive(cx, NonZeroUsize::new(1000).unwrap(), &mut into)).await?;
    Ok(into)
}

/// Receives exactly so many.
pub(crate) async fn receive_count(consumer: &Arc<dyn Consumer>, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(soon(receive(consumer)).await.unwrap());
    }
    assert_eq!(all.len(), count);
    all
}

pub(crate) fn text(received: &Received) -> String {
    received.message.as_ref().unwrap().text().unwrap().to_owned()
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

//! What the tests against a real broker share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Trial};
use queue_core::{
    Address, Broker, Completion, Consumer, ConsumerOptions, Entry, Error, Events, Message, Producer, ProducerOptions,
    Received, Source, Topology,
};
use tokio::time::{Instant, timeout, timeout_at};

/// Where the tests find a broker; without it they are reported as ignored.
pub const URL: &str = "ANYQUEUE_TEST_SQS_URL";

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome = Result<(), Failure>;

/// One test.
pub type Case = (&'static str, fn() -> Pin<Box<dyn Future<Output = Outcome> + Send>>);

/// Runs the cases; each has five minutes.
pub fn main(cases: &[Case]) {
    main_on(URL, cases);
}

/// Runs the cases on the broker that this variable tells.
pub fn main_on(variable: &str, cases: &[Case]) {
    let missing = std::env::var(variable).is_err();
    if missing {
        eprintln!("{variable} is not set: every test that needs a broker is ignored");
    }
    let trials = cases.iter().map(|(name, case)| {
        let case = *case;
        let run = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async move {
                timeout(Duration::from_secs(300), case()).await.map_err(|_| "the test took more than five minutes")?
            })?;
            Ok(())
        };
        Trial::test(*name, run).with_ignored_flag(missing)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Lists functions as cases.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), || Box::pin($name()))),*] };
}

pub fn url() -> String {
    std::env::var(URL).unwrap_or_default()
}

pub async fn connect(options: &str) -> Result<Arc<dyn Broker>, Error> {
    connect_to(&format!("{}{options}", url()), Events::new()).await
}

pub async fn connect_to(url: &str, events: Events) -> Result<Arc<dyn Broker>, Error> {
    (queue_sqs::DRIVER.connect)(url.parse()?, events).await
}

/// A name that no other test uses.
pub fn fresh(stem: &str) -> Address {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let (stem, fifo) = stem.strip_suffix(".fifo").map_or((stem, ""), |s| (s, ".fifo"));
    let name = format!("test-{stem}-{now:x}-{}{fifo}", NEXT.fetch_add(1, Ordering::Relaxed));
    Address::queue(&name).expect("the name is portable")
}

/// Declares a queue of its own and opens both ends.
pub struct Pair {
    pub broker: Arc<dyn Broker>,
    pub address: Address,
    pub producer: Arc<dyn Producer>,
    pub consumer: Arc<dyn Consumer>,
}

impl Pair {
    pub async fn new(stem: &str, url_options: &str, options: ConsumerOptions) -> Result<Self, Error> {
        let broker = connect(url_options).await?;
        let address = fresh(stem);
        broker.declare(&Topology::from_iter([Entry::new(address.clone())])).await?;
        let producer = broker.producer(&address, &ProducerOptions::default()).await?;
        let consumer = broker.consumer(&Source::new(address.clone()), &options).await?;
        Ok(Self { broker, address, producer, consumer })
    }

    pub async fn end(self) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(5);
        self.producer.close(deadline).await;
        self.consumer.close(deadline).await;
        self.broker.delete(&self.address).await?;
        Ok(())
    }
}

/// Short polls, so that tests end soon; long enough to be long ones.
pub const QUICK: &str = "&wait_time=1s";

pub async fn send(producer: &dyn Producer, batch: Vec<Message>) -> Vec<Result<(), Error>> {
    let count = batch.len();
    let (done, verdict) = Completion::new(count);
    producer.send(batch, done);
    let mut outcomes: Vec<Result<(), Error>> = (0..count).map(|_| Ok(())).collect();
    if let Err(error) = verdict.await {
        for (index, error) in error.failures() {
            outcomes[index] = Err(error);
        }
    }
    outcomes
}

/// Sends messages that are all to be accepted.
pub async fn deliver(producer: &dyn Producer, batch: Vec<Message>) -> Outcome {
    send(producer, batch).await.into_iter().collect::<Result<Vec<()>, Error>>()?;
    Ok(())
}

/// What arrives next, at most `max`; an error after `within`.
pub async fn receive(consumer: &dyn Consumer, max: usize, within: Duration) -> Result<Vec<Received>, Failure> {
    let mut into = Vec::new();
    let max = NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN);
    timeout(within, poll_fn(|cx| consumer.poll_receive(cx, max, &mut into))).await.map_err(|_| "nothing arrived")??;
    Ok(into)
}

/// Exactly `count` messages, as they come.
pub async fn collect(consumer: &dyn Consumer, count: usize, within: Duration) -> Result<Vec<Received>, Failure> {
    let deadline = Instant::now() + within;
    let mut all = Vec::new();
    while all.len() < count {
        match timeout_at(deadline, receive(consumer, count - all.len(), within)).await {
            Ok(Ok(mut some)) => all.append(&mut some),
            _ => return Err(format!("{} of {count} messages arrived", all.len()).into()),
        }
    }
    Ok(all)
}

/// Makes sure that nothing arrives for a while.
pub async fn silence(consumer: &dyn Consumer, time: Duration) -> Outcome {
    match receive(consumer, 1, time).await {
        Ok(got) => Err(format!("{} messages arrived unexpectedly", got.len()).into()),
        Err(_) => Ok(()),
    }
}

pub fn text(received: &Received) -> String {
    let message = received.message.as_ref().expect("it was decoded");
    message.text().unwrap_or("(no text)").to_owned()
}

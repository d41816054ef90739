//! What the cases are written with.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::harness::Harness;
use crate::address::{Address, Source};
use crate::capability::Capabilities;
use crate::client::Client;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind};
use crate::message::Message;
use crate::receiver::{Receiver, ReceiverBuilder};
use crate::sender::Sender;

/// How much longer than it says something may take.
pub(super) const WAIT: Duration = Duration::from_secs(20);

/// Longest wait for something that should happen: a machine may be slow, and only a case that fails waits so long.
const LONGEST: Duration = Duration::from_secs(90);

/// How long something must stay away to count as absent.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// How long a handle has to close.
pub(super) const CLOSE: Duration = Duration::from_secs(10);

/// Shortest backoff of the receivers in the suite.
pub(super) const BACKOFF: Duration = Duration::from_millis(300);

/// The least lease that every broker with leases knows.
pub(super) const LEASE: Duration = Duration::from_secs(2);

/// Why a case did not pass.
pub(super) enum Failure {
    /// The promise was broken.
    Broken(String),
    /// The harness cannot cause what the case needs.
    Cannot(&'static str),
}

pub(super) type CaseResult<T = ()> = Result<T, Failure>;

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self::Broken(format!("unexpected error at {}: {error:?}", Place(Location::caller())))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Broken(text)
    }
}

struct Place(&'static Location<'static>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.0.file().rsplit('/').next().unwrap_or_default();
        write!(f, "{file}:{}", self.0.line())
    }
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($cond:expr, $($arg:tt)+) => {
        if !$cond {
            return Err($crate::conformance::case::broken(format!($($arg)+)));
        }
    };
}
pub(super) use ensure;

/// Lists the cases of a group: a name that says the promise, and what stands for it where a capability is missing.
macro_rules! cases {
    ($group:literal: $($(#[$alone:ident])? $name:ident $([$cap:literal, $declared:expr, else $twin:expr])?;)+) => {
        pub(super) const CASES: &[$crate::conformance::case::Case] = &[$($crate::conformance::case::Case {
            group: $group,
            promise: stringify!($name),
            run: |ctx| Box::pin($name(ctx)),
            needs: $crate::conformance::case::cases!(@needs $([$cap, $declared, $twin])?),
            alone: $crate::conformance::case::cases!(@alone $($alone)?),
        }),+];
    };
    (@needs) => { None };
    (@needs [$cap:literal, $declared:expr, $twin:expr]) => {
        Some($crate::conformance::case::Need {
            capability: $cap,
            declared: $declared,
            twin: |ctx| Box::pin($twin(ctx)),
        })
    };
    (@alone) => { false };
    (@alone alone) => { true };
}
pub(super) use cases;

/// Makes a failure that says where in the suite it was found.
#[track_caller]
pub(super) fn broken(text: String) -> Failure {
    Failure::Broken(format!("{text} [{}]", Place(Location::caller())))
}

pub(super) type Run = fn(Ctx) -> BoxFuture<'static, CaseResult>;

/// A promise and how it is proven.
pub(super) struct Case {
    pub(super) group: &'static str,
    pub(super) promise: &'static str,
    pub(super) run: Run,
    pub(super) needs: Option<Need>,
    /// Counts things of the whole process, so that no other case may run meanwhile.
    pub(super) alone: bool,
}

impl Case {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.group, self.promise)
    }
}

/// A capability that a case needs, and the case that runs where it is missing.
pub(super) struct Need {
    pub(super) capability: &'static str,
    pub(super) declared: fn(&Probe) -> bool,
    pub(super) twin: Run,
}

/// The capabilities that handles of the harness' addresses have.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) broker: Arc<Capabilities>,
    pub(super) sender: Arc<Capabilities>,
    pub(super) receiver: Arc<Capabilities>,
    /// Of a group's receiver; the broker's own where it has no topics.
    pub(super) topic: Arc<Capabilities>,
    /// Whether something can be read again: a group, or a queue that the harness makes for it.
    pub(super) replay: bool,
}

/// What a case works with: a client of its own and fresh addresses.
#[derive(Clone)]
pub(super) struct Ctx {
    pub(super) harness: Arc<dyn Harness>,
    pub(super) client: Client,
    pub(super) probe: Arc<Probe>,
    pub(super) seed: u64,
    pub(super) made: Arc<Made>,
}

/// What has to be cleaned up after a case.
#[derive(Default)]
pub(super) struct Made {
    pub(super) addresses: Mutex<Vec<Address>>,
    pub(super) clients: Mutex<Vec<Client>>,
}

impl Ctx {
    fn name(&self) -> String {
        // Not from the seed: a repeated run must not meet what an earlier one left.
        self.harness.address(&format!("conf-{:016x}", fastrand::u64(..)))
    }

    /// A queue of its own, not yet made.
    pub(super) fn queue(&self) -> CaseResult<Address> {
        let queue = Address::queue(&self.name())?;
        self.made.addresses.lock().extend([queue.clone(), queue.dead_letter()]);
        Ok(queue)
    }

    /// A topic of its own, not yet made.
    pub(super) fn topic(&self) -> CaseResult<Address> {
        let topic = Address::topic(&self.name())?;
        self.made.addresses.lock().push(topic.clone());
        Ok(topic)
    }

    /// The dead-letter queue of a source, to be removed in the end.
    pub(super) fn dead_letter_of(&self, topic: &Address, group: &str) -> CaseResult<Address> {
        let source = Source::new(topic.clone()).with_group(group)?;
        let Some(queue) = source.dead_letter() else {
            return Err(broken(format!("{source:?} has no dead-letter queue")));
        };
        self.made.addresses.lock().push(queue.clone());
        Ok(queue)
    }

    /// Another client of the same broker.
    pub(super) async fn another(&self) -> CaseResult<Client> {
        let client = within("a connection", self.harness.connect()).await??;
        self.made.clients.lock().push(client.clone());
        Ok(client)
    }

    /// Opens a sender.
    pub(super) async fn sender(&self, to: &Address) -> CaseResult<Sender> {
        Ok(within("a sender to open", async { self.client.sender(to).await }).await??)
    }

    /// A receiver with a short backoff, to be opened with [`open`].
    pub(super) fn receiver(&self, from: &Address) -> ReceiverBuilder {
        self.receiver_of(&self.client, from)
    }

    /// A receiver of another client.
    pub(super) fn receiver_of(&self, client: &Client, from: &Address) -> ReceiverBuilder {
        let receiver = client.receiver(from).backoff(BACKOFF, BACKOFF * 2);
        if self.probe.receiver.dead_letter { receiver } else { receiver.discard_dead_letters() }
    }

    /// Opens a receiver with a short backoff.
    pub(super) async fn open(&self, from: &Address) -> CaseResult<Receiver> {
        open(self.receiver(from)).await
    }

    /// Random numbers from the seed.
    pub(super) fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }
}

/// Opens a receiver.
pub(super) async fn open(receiver: ReceiverBuilder) -> CaseResult<Receiver> {
    Ok(within("a receiver to open", async { receiver.await }).await??)
}

/// Message `n`, independent of all others: its key is its own.
pub(super) fn message(n: usize) -> Message {
    Message::new(format!("m{n}")).key(format!("k{n}"))
}

/// The bodies of messages 0 to `n`.
pub(super) fn bodies(n: usize) -> Vec<String> {
    let mut all: Vec<_> = (0..n).map(|i| format!("m{i}")).collect();
    all.sort();
    all
}

/// The body of a message of the suite.
pub(super) fn body(message: &Message) -> String {
    message.text().unwrap_or("not text").to_owned()
}

/// Waits, but not for ever.
pub(super) async fn within<T>(what: impl fmt::Display, work: impl Future<Output = T>) -> CaseResult<T> {
    within_time(LONGEST, what, work).await
}

/// Waits for at most `limit`.
pub(super) async fn within_time<T>(
    limit: Duration,
    what: impl fmt::Display,
    work: impl Future<Output = T>,
) -> CaseResult<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done),
        Err(_) => Err(Failure::Broken(format!("waited {limit:?} for {what}"))),
    }
}

/// The next delivery.
pub(super) async fn next(from: &mut Receiver) -> CaseResult<Delivery> {
    next_of(from, "a message").await
}

/// The next delivery; `what` says which was expected.
pub(super) async fn next_of(from: &mut Receiver, what: &str) -> CaseResult<Delivery> {
    Ok(within(format!("{what} from {:?}", from.source().address), from.receive()).await??)
}

/// The next `n` deliveries, all held.
pub(super) async fn hold(from: &mut Receiver, n: usize) -> CaseResult<Vec<Delivery>> {
    let mut held = Vec::with_capacity(n);
    while held.len() < n {
        held.push(next_of(from, &format!("message {} of {n}", held.len() + 1)).await?);
    }
    Ok(held)
}

/// Receives and acknowledges `n` messages; their bodies, sorted.
pub(super) async fn drain(from: &mut Receiver, n: usize) -> CaseResult<Vec<String>> {
    let mut got = Vec::with_capacity(n);
    while got.len() < n {
        let delivery = next_of(from, &format!("message {} of {n}", got.len() + 1)).await?;
        got.push(body(&delivery));
        delivery.ack();
    }
    got.sort();
    Ok(got)
}

/// Fails when anything arrives within `time`.
pub(super) async fn quiet(from: &mut Receiver, time: Duration) -> CaseResult {
    match tokio::time::timeout(time, from.receive()).await {
        Err(_) => Ok(()),
        Ok(Ok(delivery)) => Err(broken(format!(
            "{:?} with attempt {} arrived where nothing should",
            body(&delivery),
            delivery.attempt()
        ))),
        Ok(Err(error)) => Err(error.into()),
    }
}

/// Sends a marker and fails unless it is all that arrives: whatever was sent before came to nothing.
pub(super) async fn only_a_marker_arrives(sender: &Sender, from: &mut Receiver) -> CaseResult {
    within("the marker to be sent", sender.send(Message::new("marker"))).await??;
    let delivery = next_of(from, "the marker").await?;
    ensure!(body(&delivery) == "marker", "{:?} arrived where only the marker should", body(&delivery));
    delivery.ack();
    quiet(from, QUIET).await
}

/// Fails unless the result is an error of one of these kinds.
#[track_caller]
pub(super) fn expect_error<T>(result: Result<T, Error>, kinds: &[ErrorKind], what: &str) -> CaseResult<Error> {
    match result {
        Ok(_) => Err(broken(format!("{what} succeeded; {kinds:?} was expected"))),
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) => Err(broken(format!("{what} failed with {error:?}; {kinds:?} was expected"))),
    }
}

/// Fails unless both hold the same texts; says which are missing, surplus or doubled.
#[track_caller]
pub(super) fn expect_same(got: &[String], expected: &[String], what: &str) -> CaseResult {
    let mut count: BTreeMap<&str, i64> = BTreeMap::new();
    expected.iter().for_each(|e| *count.entry(e).or_default() -= 1);
    got.iter().for_each(|g| *count.entry(g).or_default() += 1);
    count.retain(|_, n| *n != 0);
    if count.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = count.iter().take(10).map(|(text, n)| format!("{text:?} {n:+}")).collect();
    Err(broken(format!(
        "{what}: {} of {} expected; too few or too many: {}",
        got.len(),
        expected.len(),
        shown.join(", ")
    )))
}

/// A twin: the receiver must refuse to open.
pub(super) async fn refuses_to_open(receiver: ReceiverBuilder, what: &str) -> CaseResult {
    let opened = within(format!("{what} to be refused"), async { receiver.await }).await?;
    expect_error(opened.map(drop), &[ErrorKind::Unsupported], what).map(drop)
}

/// A twin: the sender must refuse the message, and nothing of it may arrive.
pub(super) async fn refuses_to_send(ctx: &Ctx, message: Message, what: &str) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let sent = within(format!("{what} to be refused"), sender.send(message)).await?;
    expect_error(sent, &[ErrorKind::Unsupported], what)?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

//! The client, and the layer that it stands on.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::consumer::TestConsumer;
use super::expect::Expect;
use super::fault::Faults;
use super::journal::{Entry, Journal};
use super::producer::TestProducer;
use super::record::{AnswerRecord, ReceivedRecord, Record, RecordedAnswer, SentRecord};
use crate::address::Address;
use crate::broker::{Broker, BrokerLayer};
use crate::client::Client;
use crate::interpose::Interpose;
use crate::memory::{MemoryBroker, MemoryConfig, Profile};

/// A layer that records what passes, and lets go wrong what [`Faults`] say. See [`TestClient`], which has one.
#[derive(Clone)]
pub struct Recorder {
    pub(super) journal: Arc<Journal>,
    pub(super) faults: Faults,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { journal: Arc::new(Journal::new()), faults: Faults::new() }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl BrokerLayer for Recorder {
    fn layer(&self, inner: Arc<dyn Broker>) -> Arc<dyn Broker> {
        let (to, from) = (self.clone(), self.clone());
        let layer = Interpose::at(
            Arc::new(move |inner, address, options| Arc::new(TestProducer::new(inner, address, options, &to))),
            Arc::new(move |inner, source, options| Arc::new(TestConsumer::new(inner, source, options, &from))),
        );
        layer.layer(inner)
    }
}

/// A [`Client`] for tests: on an embedded broker of its own, and it records.
///
/// Pass it, or a clone of the client in it, to the program under test. An address is named as it prints: `orders`,
/// `topic:orders`, `orders-dlq`; `*` means every one.
///
/// ```
/// use queue_core::memory::Profile;
/// use queue_core::testing::{RecordedAnswer, TestClient};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> queue_core::Result<()> {
/// let client = TestClient::with_profile(Profile::Sqs);
/// client.sender("orders").await?.send("7").await?;
/// client.receiver("orders").await?.receive().await?.reject("no such customer");
///
/// let dead = client.dead_lettered("orders").one().await;
/// assert!(matches!(dead.answer, RecordedAnswer::DeadLettered { reason, .. } if reason == "no such customer"));
/// client.sent("orders-dlq").one().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TestClient {
    client: Client,
    recorder: Recorder,
}

impl Default for TestClient {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for TestClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl TestClient {
    /// A client on an embedded broker of its own, which can do everything.
    #[must_use]
    pub fn new() -> Self {
        Self::with_profile(Profile::Memory)
    }

    /// A client on an embedded broker of its own, with the limits and habits of another broker.
    #[must_use]
    pub fn with_profile(profile: Profile) -> Self {
        let config = MemoryConfig { profile, ..MemoryConfig::default() };
        Self::over(&Client::from_broker(Arc::new(MemoryBroker::new(&config))))
    }

    /// Records what goes through the client that this returns, on the connection of another: any broker, and with the
    /// options of its URL. What is acknowledged by a transaction is not recorded.
    #[must_use]
    pub fn over(client: &Client) -> Self {
        let recorder = Recorder::default();
        Self { client: client.layer(&recorder), recorder }
    }

    /// What the broker has of what was sent there, whatever the sender was told. Dead letters are sent to
    /// `<queue>-dlq`; copies by which the library makes a retry are not counted.
    pub fn sent(&self, address: &str) -> Expect<SentRecord> {
        self.sends("sent to", address, |record| record.stored)
    }

    /// Every try of a send, also those that failed.
    pub fn tried(&self, address: &str) -> Expect<SentRecord> {
        self.sends("tried sends to", address, |_| true)
    }

    /// What receivers fetched from there, by any group.
    pub fn received(&self, address: &str) -> Expect<ReceivedRecord> {
        let name = Named::new(address);
        self.expect("received from", address, move |entry| match entry {
            Entry::Received(record) if name.is(&record.source.address) => Some(record.clone()),
            _ => None,
        })
    }

    /// What was answered, by any group.
    pub fn answered(&self, address: &str) -> Expect<AnswerRecord> {
        self.answers("answered from", address, |_| true)
    }

    /// What was acknowledged, by any group.
    pub fn acked(&self, address: &str) -> Expect<AnswerRecord> {
        self.answers("acked from", address, |answer| *answer == RecordedAnswer::Acked)
    }

    /// What is to come again, counted, by any group.
    pub fn retried(&self, address: &str) -> Expect<AnswerRecord> {
        self.answers("retried from", address, |answer| matches!(answer, RecordedAnswer::Retried { .. }))
    }

    /// What became a dead letter, by any group. One that is discarded is acknowledged.
    pub fn dead_lettered(&self, address: &str) -> Expect<AnswerRecord> {
        self.answers("dead-lettered from", address, |answer| matches!(answer, RecordedAnswer::DeadLettered { .. }))
    }

    /// What was given back, by any group.
    pub fn released(&self, address: &str) -> Expect<AnswerRecord> {
        self.answers("released from", address, |answer| *answer == RecordedAnswer::Released)
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.recorder.faults
    }

    fn sends(&self, what: &str, address: &str, is_meant: fn(&SentRecord) -> bool) -> Expect<SentRecord> {
        let name = Named::new(address);
        self.expect(what, address, move |entry| match entry {
            Entry::Sent(record) if name.is(&record.address) && is_meant(record) => Some(record.clone()),
            _ => None,
        })
    }

    fn answers(&self, what: &str, address: &str, is_meant: fn(&RecordedAnswer) -> bool) -> Expect<AnswerRecord> {
        let name = Named::new(address);
        self.expect(what, address, move |entry| match entry {
            Entry::Answered(record) if name.is(&record.source.address) && is_meant(&record.answer) => {
                Some(record.clone())
            }
            _ => None,
        })
    }

    fn expect<R: Record>(
        &self,
        what: &str,
        address: &str,
        pick: impl Fn(&Entry) -> Option<R> + Send + Sync + 'static,
    ) -> Expect<R> {
        let Recorder { journal, faults } = &self.recorder;
        Expect::new(journal.clone(), faults.clone(), format!("{what} {address}"), Arc::new(pick))
    }
}

/// An address as a test names it.
#[derive(Debug)]
pub(super) struct Named(String);

impl Named {
    pub(super) fn new(address: &str) -> Self {
        Self(address.strip_prefix("queue:").unwrap_or(address).to_owned())
    }

    pub(super) fn is(&self, address: &Address) -> bool {
        self.0 == "*" || self.0 == address.to_string()
    }
}

//! A producer that fails on purpose, so that what the handles promise about failed sends shows on every broker.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::broker::CloseReport;
use crate::capability::Capabilities;
use crate::client::Client;
use crate::completion::Completion;
use crate::error::{Error, ErrorKind, Outcome};
use crate::interpose::Interpose;
use crate::message::Message;
use crate::producer::Producer;

/// What happens to the messages that carry the header [`MARK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The first try fails before the broker has the message.
    NotSentOnce,
    /// The broker takes the message at the first try, and that is not known.
    UnknownOnce,
    /// Every try fails before the broker has the message.
    NeverSent,
    /// No try is ever answered.
    NeverAnswered,
    /// The verdict is lost.
    VerdictLost,
}

/// The header that marks messages; its value names the message.
pub(super) const MARK: &str = "conformance-mark";

/// A client of the same broker whose marked messages meet this fate.
pub(super) fn flaky(client: &Client, fate: Fate) -> Client {
    let layer = Interpose::default()
        .producers(move |inner| Arc::new(Flaky { inner, fate, seen: Arc::default(), held: Mutex::default() }));
    client.layer(&layer)
}

#[derive(Debug)]
struct Flaky {
    inner: Arc<dyn Producer>,
    fate: Fate,
    seen: Arc<Mutex<HashSet<String>>>,
    held: Mutex<Vec<Completion>>,
}

impl Flaky {
    /// Whether this try of the message meets the fate.
    fn meets(&self, message: &Message) -> bool {
        let Some(mark) = message.headers().get(MARK).and_then(|v| v.as_str()) else { return false };
        match self.fate {
            Fate::NotSentOnce | Fate::UnknownOnce => self.seen.lock().insert(mark.to_owned()),
            Fate::NeverSent | Fate::NeverAnswered | Fate::VerdictLost => true,
        }
    }
}

fn failure(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Connection, "broken by the suite").with_operation("send").with_outcome(outcome)
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Producer for Flaky {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.inner.capabilities()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        let mut through = Vec::new();
        let mut marked = Vec::new();
        for (index, message) in batch.into_iter().enumerate() {
            if !self.meets(&message) {
                through.push((index, message, false));
            } else if self.fate == Fate::UnknownOnce {
                through.push((index, message, true));
            } else {
                marked.push((index, message));
            }
        }
        for (index, message) in marked {
            if matches!(self.fate, Fate::NotSentOnce | Fate::NeverSent) {
                done.fail(index, failure(Outcome::NotSent), Some(message));
            }
        }
        if through.is_empty() {
            match self.fate {
                Fate::NeverAnswered => self.held.lock().push(done),
                _ => drop(done),
            }
            return;
        }
        let (inner_done, verdicts) = Completion::new(through.len());
        self.inner.send(through.iter().map(|(_, m, _)| m.clone()).collect(), inner_done);
        // Ends with the verdicts, which every producer gives in the end.
        tokio::spawn(async move {
            let (receipts, failures) = match verdicts.await {
                Ok(receipts) => (receipts, Vec::new()),
                Err(error) => (error.receipts().clone(), error.failures()),
            };
            for (at, (index, message, lie)) in through.into_iter().enumerate() {
                match receipts.get(at) {
                    Some(_) if lie => done.fail(index, failure(Outcome::Unknown), Some(message)),
                    Some(receipt) => done.accept(index, receipt),
                    None => {
                        let error = failures.iter().find(|(i, _)| *i == at).map(|(_, e)| e.clone());
                        done.fail(index, error.unwrap_or_else(|| failure(Outcome::Unknown)), Some(message));
                    }
                }
            }
        });
    }

    fn send_one(&self, message: Message, done: Completion) {
        self.send(vec![message], done);
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.held.lock().clear();
        self.inner.close(deadline).await
    }
}

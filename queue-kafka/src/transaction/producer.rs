//! Sending within a transaction.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use queue_core::{Capabilities, CloseReport, Completion, Error, Message, Producer};
use tokio::time::Instant;

use super::{Session, Stage};
use crate::flights::Share;
use crate::producer::enqueue;

/// Sends to one topic within the transactions of a name.
pub(crate) struct TransactionalProducer {
    topic: Arc<str>,
    session: Arc<Session>,
    share: Arc<Share>,
}

impl TransactionalProducer {
    pub(super) fn new(topic: &str, session: Arc<Session>) -> Self {
        Self { topic: topic.into(), session, share: Arc::default() }
    }
}

impl fmt::Debug for TransactionalProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalProducer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

#[async_trait]
impl Producer for TransactionalProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.session.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        let native = match &*self.session.stage.lock() {
            Stage { native: Some(native), open: true, .. } => Some(native.clone()),
            _ => None,
        };
        let Some(native) = native else {
            return done.fail_all(&Error::closed("transaction").with_operation("send"), batch);
        };
        let departure = native.flights.depart(batch.len(), done, &self.share);
        let mut failed = Vec::new();
        for (index, message) in batch.iter().enumerate() {
            if let Err((error, _)) = enqueue(&native, &self.topic, message, departure.word(index), 0) {
                failed.push((index, error));
            }
        }
        native.flights.departed(&departure, batch, failed);
    }

    async fn close(&self, _: Instant) -> CloseReport {
        // The transaction waits for its messages.
        CloseReport::default()
    }
}

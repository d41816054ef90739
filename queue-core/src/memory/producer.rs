//! Sends into queues and topics.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::broker::Connection;
use super::queue::Queue;
use crate::address::Address;
use crate::broker::CloseReport;
use crate::capability::Capabilities;
use crate::completion::Completion;
use crate::error::{Error, ErrorKind};
use crate::message::Message;
use crate::producer::Producer;

#[derive(Debug)]
pub(super) struct MemoryProducer {
    connection: Arc<Connection>,
    to: Address,
    capabilities: Arc<Capabilities>,
    require_route: bool,
    /// The queue as it was last found.
    queue: RwLock<Option<Arc<Queue>>>,
}

impl MemoryProducer {
    pub(super) fn new(connection: Arc<Connection>, to: Address, require_route: bool) -> Self {
        let capabilities = Arc::new(connection.profile.at(to.name(), to.is_topic()));
        let queue = RwLock::new(connection.queue(to.name()));
        Self { connection, to, capabilities, require_route, queue }
    }

    fn missing(to: &Address) -> Error {
        Error::new(ErrorKind::NotFound, "there is no such address").with_context("address", to)
    }

    fn to_queue(&self, batch: Vec<Message>, done: Completion) {
        let known = self.queue.read().clone();
        let (batch, done) = match known {
            Some(queue) => match queue.push(batch, done) {
                Ok(()) => return,
                Err(back) => back,
            },
            None => (batch, done),
        };
        // Not there, or deleted: it may have been made since.
        self.queue.write().clone_from(&self.connection.queue(self.to.name()));
        self.anew(&self.to, batch, done);
    }

    /// Sends to an address that is looked up now.
    fn anew(&self, to: &Address, batch: Vec<Message>, done: Completion) {
        if to.is_topic() {
            return match self.connection.topic(to.name()).and_then(|topic| topic.push(&batch)) {
                None => done.fail_all(&Self::missing(to), batch),
                Some(0) if self.require_route => {
                    let error = Error::new(ErrorKind::Unroutable, "the topic has no group and no subscriber");
                    done.fail_all(&error.with_context("address", to), batch);
                }
                Some(_) => done.accept_all(),
            };
        }
        let refused = match self.connection.queue(to.name()) {
            Some(queue) => queue.push(batch, done).err(),
            None => Some((batch, done)),
        };
        if let Some((batch, done)) = refused {
            done.fail_all(&Self::missing(to), batch);
        }
    }

    /// Messages with destinations of their own.
    fn one_by_one(&self, batch: Vec<Message>, done: Completion) {
        for (mut message, done) in batch.into_iter().zip(done.split()) {
            let to = message.destination().cloned().unwrap_or_else(|| self.to.clone());
            message.clear_destination();
            self.anew(&to, vec![message], done);
        }
    }
}

#[async_trait]
impl Producer for MemoryProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        if self.connection.is_closed() {
            let error = Error::closed("broker");
            done.fail_all(&error, batch);
        } else if batch.iter().any(|m| m.destination().is_some()) {
            self.one_by_one(batch, done);
        } else if self.to.is_topic() {
            self.anew(&self.to, batch, done);
        } else {
            self.to_queue(batch, done);
        }
    }

    async fn close(&self, _deadline: Instant) -> CloseReport {
        // A verdict is given before `send` returns, or waits in the queue for room; there is nothing to wait for here.
        CloseReport::default()
    }
}

//! What a transaction has sent and is to acknowledge.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::Shared;
use crate::address::Address;
use crate::block::{Block, Owner, Resend};
use crate::completion::Completion;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::inbox::{Held, Inbox};
use crate::message::Message;
use crate::observe::{Sending, Subject};
use crate::outbox::check::check;
use crate::producer::Producer;
use crate::transaction::Acks;
use crate::verdict::BatchVerdict;

/// Bytes and messages of the transactions of a name that wait for the broker.
const WINDOW_BYTES: usize = 64 << 20;
const WINDOW: usize = 8192;
/// The least that a message takes of the window.
const UNIT: usize = WINDOW_BYTES / WINDOW;
/// Messages that are handed over at once.
const CHUNK: usize = 256;

/// Bounds what is in flight, by count and bytes at once. Nothing is sent again: what failed ends the transaction.
#[derive(Debug)]
pub(super) struct Window(Semaphore);

impl Window {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Semaphore::new(WINDOW_BYTES)))
    }

    async fn room(&self, cost: usize, deadline: Instant) -> Result<()> {
        let permits = u32::try_from(cost).unwrap_or(u32::MAX);
        match timeout_at(deadline, self.0.acquire_many(permits)).await {
            Ok(Ok(permit)) => permit.forget(),
            Ok(Err(_)) => return Err(Error::closed("transactor")),
            Err(_) => {
                let why = "no room in the window before the deadline: the broker is slow or out of reach";
                return Err(Error::new(ErrorKind::Timeout, why));
            }
        }
        Ok(())
    }
}

impl Owner for Window {
    fn retries(&self, _: &Error, _: Instant) -> bool {
        false
    }

    fn resend(&self, item: Resend) {
        item.slot.give_up(item.error);
    }

    fn release(&self, cost: usize) {
        self.0.add_permits(cost);
    }
}

/// A transaction that is open, with all that it holds.
pub(super) struct Open {
    shared: Arc<Shared>,
    /// The next begins when this goes.
    turn: OwnedSemaphorePermit,
    /// What is to be acknowledged.
    held: Vec<Held>,
    /// Messages without a verdict, in order.
    sent: VecDeque<Arc<Block>>,
    /// Why it cannot be committed.
    failed: Option<Error>,
}

impl Open {
    pub(super) fn new(shared: Arc<Shared>, turn: OwnedSemaphorePermit) -> Self {
        Self { shared, turn, held: Vec::new(), sent: VecDeque::new(), failed: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(super) fn acks(&self) -> usize {
        self.held.len()
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    pub(super) fn named(&self, error: Error, operation: &'static str) -> Error {
        self.shared.named(error, operation)
    }

    /// Forgets what has a verdict; the first that failed fails the transaction.
    fn sort_out(&mut self) {
        while self.sent.front().is_some_and(|block| block.is_done()) {
            let Some(block) = self.sent.pop_front() else { return };
            let error = block.told().and_then(|side| side.failures.first().map(|(_, error)| error.clone()));
            if self.failed.is_none() {
                self.failed = error;
            }
        }
    }

    /// The send is over when the messages are handed over: the commit is what tells more.
    pub(super) async fn send(&mut self, to: &Address, mut messages: Vec<Message>) -> Result<()> {
        let deadline = self.shared.until();
        let opened = timeout_at(deadline, self.shared.producer(to)).await;
        let producer = opened
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "the address could not be opened in time")))?;
        let (subject, count) = (Subject::address(self.shared.client.system, to), messages.len());
        let mut sending = Sending::begin(&subject, &mut messages, &producer.capabilities());
        let sent = self.hand_over(to, &*producer, messages, deadline).await;
        sending.end(if sent.is_err() { count } else { 0 }, sent.as_ref().err());
        sent
    }

    async fn hand_over(
        &mut self,
        to: &Address,
        producer: &dyn Producer,
        messages: Vec<Message>,
        deadline: Instant,
    ) -> Result<()> {
        let capabilities = producer.capabilities();
        for (index, message) in messages.iter().enumerate() {
            let checked = check(&capabilities, to, false, message, message.size());
            checked.map_err(|e| e.with_context("batch_index", index))?;
        }
        let most = capabilities.max_batch.clamp(1, CHUNK);
        let mut messages = messages.into_iter().peekable();
        while let Some(first) = messages.next() {
            let mut bytes = first.size();
            let mut chunk = vec![first];
            while let Some(message) = messages.next_if(|m| chunk.len() < most && bytes + m.size() <= WINDOW_BYTES / 4) {
                bytes += message.size();
                chunk.push(message);
            }
            let cost = bytes.div_ceil(chunk.len()).clamp(UNIT, WINDOW_BYTES);
            self.shared.window.room(cost * chunk.len(), deadline).await?;
            self.sort_out();
            if let Some(error) = &self.failed {
                self.shared.window.release(cost * chunk.len());
                return Err(error.clone());
            }
            let block = Block::new(chunk.len(), cost, deadline, Some(self.shared.window.clone()));
            block.hand(chunk.len());
            self.sent.push_back(block.clone());
            producer.send(chunk, Completion::whole(&block));
        }
        Ok(())
    }

    pub(super) fn ack(&mut self, held: Vec<Held>) -> Result<()> {
        let refused = held.iter().find_map(|one| {
            let inbox = &one.fetch.inbox;
            if !Arc::ptr_eq(&inbox.client, &self.shared.client) {
                Some(Error::new(ErrorKind::InvalidInput, "the receiver is of another client"))
            } else if inbox.consumer.participant().is_none() {
                Some(Error::unsupported("what this receiver acknowledges cannot be part of a transaction"))
            } else if !inbox.consumer.holds(one.token) {
                Some(Error::new(ErrorKind::LeaseLost, "a message is no longer its receiver's").with_retryable(true))
            } else {
                None
            }
            .map(|error| error.with_context("source", &inbox.source))
        });
        match refused {
            None => {
                self.held.extend(held);
                Ok(())
            }
            Some(error) => {
                release(held);
                self.failed.get_or_insert_with(|| error.clone());
                Err(error)
            }
        }
    }

    /// Waits until the broker has everything that was sent.
    async fn flush(&mut self, deadline: Instant) -> Result<()> {
        while let Some(block) = self.sent.front() {
            if timeout_at(deadline, BatchVerdict(block.clone())).await.is_err() {
                let why = "not every message was with the broker before the deadline";
                return Err(Error::new(ErrorKind::Timeout, why));
            }
            self.sort_out();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        let deadline = self.shared.until();
        if let Err(error) = self.flush(deadline).await {
            let error = self.named(error, "commit").with_outcome(Outcome::NotSent);
            // It is the first failure that tells, unless another instance is behind it.
            return Err(match self.abort_until(deadline).await {
                Err(fenced) if fenced.kind() == ErrorKind::Conflict => fenced.with_operation("commit"),
                _ => error,
            });
        }
        let mut acks: Vec<(&Arc<Inbox>, Acks)> = Vec::new();
        for held in &self.held {
            let inbox = &held.fetch.inbox;
            match acks.iter_mut().find(|(other, _)| Arc::ptr_eq(other, inbox)) {
                Some((_, acks)) => acks.tokens.push(held.token),
                None => {
                    let Some(participant) = inbox.consumer.participant() else { continue };
                    acks.push((inbox, Acks { participant, tokens: vec![held.token] }));
                }
            }
        }
        let acks = acks.into_iter().map(|(_, acks)| acks).collect();
        match self.shared.session.commit(acks, deadline).await {
            Ok(()) => {
                self.held.iter().for_each(|held| held.fetch.inbox.finish(held));
                Ok(())
            }
            Err(uncommitted) => {
                let error = self.shared.named(uncommitted.error, "commit");
                let held = std::mem::take(&mut self.held);
                match uncommitted.known {
                    // Not in this task: the caller is told, and the next transaction may be what makes it known.
                    Some(known) => drop(self.shared.runtime.spawn(async move {
                        known.await;
                        release(held);
                    })),
                    None => release(held),
                }
                Err(error)
            }
        }
    }

    pub(super) async fn abort(self) -> Result<()> {
        let deadline = self.shared.until();
        self.abort_until(deadline).await
    }

    async fn abort_until(mut self, deadline: Instant) -> Result<()> {
        let aborted = self.shared.session.abort(deadline).await;
        release(std::mem::take(&mut self.held));
        let aborted = aborted.map_err(|e| self.named(e, "abort").with_outcome(Outcome::NotSent));
        drop(self.turn);
        aborted
    }
}

/// Hands messages out again; those that are answered or gone meanwhile are only taken off the books.
fn release(held: Vec<Held>) {
    for one in held {
        let inbox = one.fetch.inbox.clone();
        inbox.release(one);
    }
}

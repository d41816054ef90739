//! A message on its way to the broker, and what is told about it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use lapin::message::BasicReturnMessage;
use lapin::{Confirmation, PublisherConfirm};
use queue_core::{Address, Completion, Error, ErrorKind, Message, Outcome, Receipt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::slots::Slots;

/// The producer that a message came from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) address: Address,
    /// Whether a topic wants a route too. Queues always do.
    pub(crate) require_route: bool,
    /// Messages without a verdict.
    in_flight: AtomicUsize,
    /// Tells that there are none.
    idle: Notify,
}

impl Origin {
    pub(crate) fn new(address: Address, require_route: bool) -> Arc<Self> {
        Arc::new(Self { address, require_route, in_flight: AtomicUsize::new(0), idle: Notify::new() })
    }

    pub(crate) fn take_off(&self, count: usize) {
        self.in_flight.fetch_add(count, Ordering::AcqRel);
    }

    fn land(&self, count: usize) {
        if self.in_flight.fetch_sub(count, Ordering::AcqRel) == count {
            self.idle.notify_waiters();
        }
    }

    /// Waits until every message has its verdict, or until the deadline.
    pub(crate) async fn landed(&self, deadline: Instant) {
        loop {
            // Listening before looking, so that nothing is missed.
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 || timeout_at(deadline, idle).await.is_err() {
                return;
            }
        }
    }
}

/// Messages that were handed over together.
pub(crate) struct Batch {
    /// Number of its first flight.
    pub(crate) first: u64,
    pub(crate) flights: u32,
    pub(crate) undecided: u32,
    /// Whether a verdict was given to one of its messages alone.
    pub(crate) partial: bool,
    pub(crate) origin: Arc<Origin>,
    pub(crate) done: Done,
}

/// Who takes the verdicts of a batch.
#[derive(Debug)]
pub(crate) enum Done {
    /// Of the whole batch, and nowhere else.
    Sole(Completion),
    Shared(Arc<Completion>),
    /// On its way from the first to the second.
    Nobody,
}

impl Done {
    /// Shares it, for a verdict of one message.
    pub(crate) fn share(&mut self) -> Arc<Completion> {
        let shared = match std::mem::replace(self, Self::Nobody) {
            Self::Sole(done) => Arc::new(done),
            Self::Shared(done) => done,
            Self::Nobody => Arc::new(Completion::new(0).0),
        };
        *self = Self::Shared(shared.clone());
        shared
    }

    pub(crate) fn is_over_for(&self, index: u32) -> bool {
        match self {
            Self::Sole(done) => done.is_over_for(index as usize),
            Self::Shared(done) => done.is_over_for(index as usize),
            Self::Nobody => true,
        }
    }

    /// How many messages it takes the verdicts of.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Sole(done) => done.len(),
            Self::Shared(done) => done.len(),
            Self::Nobody => 0,
        }
    }
}

/// How far a message got.
pub(crate) enum State {
    /// The client does not have it.
    Waiting(Message),
    /// Its frames are not all written; see [`Slots`].
    Writing(usize),
    /// The broker has not answered.
    Confirming(PublisherConfirm, Message),
    /// The broker took it (or refused it), no verdict was given.
    Answered(Message, bool),
    /// The channel broke.
    Lost(Message),
    /// A verdict was given.
    Decided,
}

pub(crate) struct Flight {
    pub(crate) state: State,
    /// Place in its batch.
    pub(crate) index: u32,
    /// The return code and text.
    pub(crate) returned: Option<Box<(u16, String)>>,
}

/// What a look at a flight found.
pub(crate) enum Seen {
    /// Nothing that is final.
    Nothing,
    /// An answer, perhaps with a message that came back: of this flight or of any other.
    Answer(Option<Box<BasicReturnMessage>>),
    /// The channel broke.
    Broken(lapin::Error),
    /// Nothing new.
    Old,
}

impl Flight {
    /// Looks whether there is news.
    pub(crate) fn look(&mut self, slots: &mut dyn Slots, cx: &mut Context<'_>) -> Seen {
        if let State::Writing(slot) = self.state {
            match slots.poll(slot, cx) {
                Poll::Pending => return Seen::Nothing,
                Poll::Ready((Ok(confirm), message)) => self.state = State::Confirming(confirm, message),
                Poll::Ready((Err(error), message)) => {
                    self.state = State::Lost(message);
                    return Seen::Broken(error);
                }
            }
        }
        let State::Confirming(confirm, message) = &mut self.state else {
            return if matches!(self.state, State::Waiting(_)) { Seen::Nothing } else { Seen::Old };
        };
        let Poll::Ready(answer) = Pin::new(confirm).poll(cx) else { return Seen::Nothing };
        let message = std::mem::take(message);
        let (state, seen) = match answer {
            Ok(Confirmation::Ack(returned)) => (State::Answered(message, true), Seen::Answer(returned.map(Box::new))),
            Ok(Confirmation::Nack(returned)) => (State::Answered(message, false), Seen::Answer(returned.map(Box::new))),
            // Only on a channel without confirmations.
            Ok(Confirmation::NotRequested) => (State::Lost(message), Seen::Answer(None)),
            Err(error) => (State::Lost(message), Seen::Broken(error)),
        };
        self.state = state;
        seen
    }

    /// Makes sure that a message which the client has written is not `Writing` any more.
    pub(crate) fn settle_writing(&mut self, slots: &mut dyn Slots) -> Option<lapin::Error> {
        let State::Writing(slot) = self.state else { return None };
        match slots.poll(slot, &mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Pending => None,
            Poll::Ready((Ok(confirm), message)) => {
                self.state = State::Confirming(confirm, message);
                None
            }
            Poll::Ready((Err(error), message)) => {
                self.state = State::Lost(message);
                Some(error)
            }
        }
    }
}

/// A verdict, to be given when no lock is held: whoever gets it may send again at once.
pub(crate) enum Verdict {
    /// The broker has every message of the batch.
    All(Batch),
    Accepted(Arc<Origin>, Arc<Completion>, u32),
    Failed(Box<Failure>),
}

/// A message that the broker does not have, or may not have.
pub(crate) struct Failure {
    pub(crate) origin: Arc<Origin>,
    pub(crate) done: Arc<Completion>,
    pub(crate) index: u32,
    pub(crate) error: Error,
    /// To be sent again.
    pub(crate) message: Option<Message>,
}

impl Verdict {
    /// A message of the batch failed.
    pub(crate) fn failed(batch: &mut Batch, index: u32, error: Error, message: Option<Message>) -> Self {
        let (origin, done) = (batch.origin.clone(), batch.done.share());
        Self::Failed(Box::new(Failure { origin, done, index, error, message }))
    }

    pub(crate) fn give(self) {
        let (origin, count) = match self {
            Self::All(Batch { origin, done, flights, .. }) => {
                match done {
                    Done::Sole(done) => done.accept_all(),
                    Done::Shared(done) => done.accept_up_to(done.len()),
                    Done::Nobody => {}
                }
                (origin, flights as usize)
            }
            Self::Accepted(origin, done, index) => {
                done.accept(index as usize, Receipt::accepted());
                (origin, 1)
            }
            Self::Failed(failure) => {
                let Failure { origin, done, index, error, message } = *failure;
                done.fail(index as usize, error, message);
                (origin, 1)
            }
        };
        origin.land(count);
    }
}

/// The error of a message that was with the client when the channel broke.
pub(crate) fn unknown(cause: Option<&Error>) -> Error {
    let error = Error::new(ErrorKind::Connection, "the connection broke before the broker answered")
        .with_operation("send")
        .with_outcome(Outcome::Unknown);
    match cause {
        Some(cause) => error.with_source(cause.clone()),
        None => error,
    }
}

//! What was published on one channel and has no verdict yet.
//!
//! The client tells which message was returned as unroutable by attaching the return to *a* confirmation: with several
//! messages confirmed at once, often to that of another message. So a return is matched by what it contains, and no
//! verdict is given before every confirmation that may carry the message's return has been seen:
//! * a confirmation of several messages completes them in any order, all under one lock of the client. Touching that
//!   lock ([`fence`]) after a look and looking once more sees all of them;
//! * other confirmations come in the order of the messages, behind their returns.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, PublisherConfirm};
use queue_core::{Address, Completion, Error, ErrorKind, Message, Outcome, Receipt, Result};

use crate::convert::{Outgoing, outgoing};
use crate::delay::Ladder;
use crate::error::map;

type Writing = Pin<Box<dyn Future<Output = (lapin::Result<PublisherConfirm>, Message)> + Send>>;

/// How far a message got.
enum State {
    /// Its frames are not all written.
    Writing(Writing),
    /// The broker has not answered.
    Confirming(PublisherConfirm, Message),
    /// The broker took it (or refused it), no verdict was given.
    Answered(Message, bool),
    /// The channel broke.
    Lost(Message),
    /// A verdict was given.
    Decided,
}

struct Flight {
    state: State,
    /// Place in its batch.
    index: u32,
    /// The return code and text.
    returned: Option<(u16, String)>,
}

struct Batch {
    /// Number of its first flight.
    first: u64,
    flights: u32,
    undecided: u32,
    /// Whether a verdict was given to one of its messages alone.
    partial: bool,
    done: Arc<Completion>,
}

/// A verdict, to be given when no lock is held: whoever gets it may send again at once.
pub(crate) enum Verdict {
    All(Arc<Completion>),
    Accepted(Arc<Completion>, u32),
    Failed(Arc<Completion>, u32, Error, Option<Message>),
}

impl Verdict {
    pub(crate) fn give(self) {
        match self {
            Self::All(done) => match Arc::try_unwrap(done) {
                Ok(done) => done.accept_all(),
                Err(done) => done.accept_up_to(done.len()),
            },
            Self::Accepted(done, index) => done.accept(index as usize, Receipt::accepted()),
            Self::Failed(done, index, error, message) => done.fail(index as usize, error, message),
        }
    }
}

/// Flights in the order in which they were published.
pub(crate) struct Window {
    address: Address,
    ladder: Arc<Ladder>,
    frame_max: usize,
    mandatory: bool,
    flights: VecDeque<Flight>,
    /// Number of the first flight.
    base: u64,
    /// How many flights from the front on have been answered.
    answered: usize,
    batches: VecDeque<Batch>,
    /// Why the channel is of no more use.
    broken: Option<lapin::Error>,
}

/// Returns when no confirmation of several messages is half done. Its side effect is on what nobody asks for.
fn fence(channel: &Channel) {
    let _ = channel.wait_for_confirms().now_or_never();
}

impl Window {
    /// `mandatory`: topics want a route too. Queues always do.
    pub(crate) fn new(address: Address, mandatory: bool, ladder: Arc<Ladder>) -> Self {
        Self {
            address,
            ladder,
            frame_max: usize::MAX,
            mandatory,
            flights: VecDeque::new(),
            base: 0,
            answered: 0,
            batches: VecDeque::new(),
            broken: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    /// Number of the first flight.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    pub(crate) fn set_frame_max(&mut self, bytes: usize) {
        self.frame_max = bytes;
        self.broken = None;
    }

    /// Publishes a batch, in order; each message is with the client when this returns.
    pub(crate) fn publish(
        &mut self,
        channel: &Arc<Channel>,
        cx: &mut Context<'_>,
        batch: Vec<Message>,
        done: Completion,
        verdicts: &mut Vec<Verdict>,
    ) {
        let done = Arc::new(done);
        let first = self.base + self.flights.len() as u64;
        let mut flights = 0;
        let mut partial = false;
        self.flights.reserve(batch.len());
        for (index, message) in (0..).zip(batch) {
            let started = match self.prepare(&message) {
                Ok(out) => self.start(channel, cx, out, message),
                Err(error) => Err((error, message)),
            };
            match started {
                Ok(state) => {
                    self.flights.push_back(Flight { state, index, returned: None });
                    flights += 1;
                }
                Err((error, message)) => {
                    partial = true;
                    verdicts.push(Verdict::Failed(done.clone(), index, error, Some(message)));
                }
            }
        }
        if flights > 0 {
            self.batches.push_back(Batch { first, flights, undecided: flights, partial, done });
        }
    }

    fn prepare(&self, message: &Message) -> Result<Outgoing> {
        let out = outgoing(&self.address, message, self.frame_max)?;
        if let Some(delay) = out.delay {
            self.ladder.ready(message.destination().unwrap_or(&self.address).name(), delay)?;
        }
        Ok(out)
    }

    fn start(
        &mut self,
        channel: &Arc<Channel>,
        cx: &mut Context<'_>,
        out: Outgoing,
        message: Message,
    ) -> Result<State, (Error, Message)> {
        let options = BasicPublishOptions { mandatory: out.to_queue || self.mandatory, immediate: false };
        let channel = channel.clone();
        let mut writing: Writing = Box::pin(async move {
            let Outgoing { exchange, routing_key, properties, .. } = out;
            let confirm = channel.basic_publish(exchange, routing_key, options, message.payload(), properties).await;
            (confirm, message)
        });
        // The first poll hands the frames to the client, and takes the place in the order.
        match writing.as_mut().poll(cx) {
            Poll::Pending => Ok(State::Writing(writing)),
            Poll::Ready((Ok(confirm), message)) => {
                // Written already, and nothing watches the confirmation yet.
                cx.waker().wake_by_ref();
                Ok(State::Confirming(confirm, message))
            }
            Poll::Ready((Err(error), message)) => {
                let mapped = Error::new(ErrorKind::Connection, "the channel is gone")
                    .with_operation("send")
                    .with_source(error.clone());
                self.broken.get_or_insert(error);
                Err((mapped, message))
            }
        }
    }

    /// Looks at a flight; says whether it has been answered.
    fn look(&mut self, place: usize, cx: &mut Context<'_>) -> bool {
        loop {
            let flight = &mut self.flights[place];
            let (state, returned) = match &mut flight.state {
                State::Writing(writing) => match writing.as_mut().poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready((Ok(confirm), message)) => (State::Confirming(confirm, message), None),
                    Poll::Ready((Err(error), message)) => {
                        self.broken.get_or_insert(error);
                        (State::Lost(message), None)
                    }
                },
                State::Confirming(confirm, message) => match Pin::new(confirm).poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(answer) => {
                        let message = std::mem::take(message);
                        match answer {
                            Ok(Confirmation::Ack(returned)) => (State::Answered(message, true), returned),
                            Ok(Confirmation::Nack(returned)) => (State::Answered(message, false), returned),
                            // Only on a channel without confirmations.
                            Ok(Confirmation::NotRequested) => (State::Lost(message), None),
                            Err(error) => {
                                self.broken.get_or_insert(error);
                                (State::Lost(message), None)
                            }
                        }
                    }
                },
                State::Answered(..) | State::Lost(_) | State::Decided => return true,
            };
            flight.state = state;
            if let Some(returned) = returned {
                self.attribute(place, returned, cx);
            }
        }
    }

    /// Looks at the flights from the front on, up to the first without an answer. Every verdict that is certain goes to
    /// `verdicts`.
    pub(crate) fn advance(&mut self, channel: &Channel, cx: &mut Context<'_>, verdicts: &mut Vec<Verdict>) {
        loop {
            let before = self.answered;
            while self.answered < self.flights.len() && self.look(self.answered, cx) {
                self.answered += 1;
            }
            if self.broken.is_some() {
                return;
            }
            let seen = self.answered > before;
            // What was seen before the fence is certain now.
            self.decide_front(before, verdicts);
            if !seen {
                return;
            }
            fence(channel);
        }
    }

    /// Looks at every flight, for those whose predecessors are stuck.
    pub(crate) fn sweep(&mut self, channel: &Channel, cx: &mut Context<'_>, verdicts: &mut Vec<Verdict>) {
        let seen: Vec<usize> = (self.answered..self.flights.len()).filter(|place| self.look(*place, cx)).collect();
        fence(channel);
        for place in self.answered..self.flights.len() {
            self.look(place, cx);
        }
        if self.broken.is_some() {
            return;
        }
        for place in seen {
            self.decide(place, verdicts);
        }
    }

    /// Gives verdicts to the first `count` flights, and lets them go.
    fn decide_front(&mut self, count: usize, verdicts: &mut Vec<Verdict>) {
        let mut left = count;
        while left > 0 {
            // Batches that the sweep decided.
            while self.batches.front().is_some_and(|b| b.undecided == 0) {
                self.batches.pop_front();
            }
            if let Some(batch) = self.batches.front()
                && batch.first == self.base
                && !batch.partial
                && batch.flights as usize <= left
                && batch.flights as usize == batch.done.len()
                && self
                    .flights
                    .range(..batch.flights as usize)
                    .all(|f| matches!(f.state, State::Answered(_, true)) && f.returned.is_none())
            {
                let whole = batch.flights as usize;
                if let Some(batch) = self.batches.pop_front() {
                    verdicts.push(Verdict::All(batch.done));
                }
                self.release(whole);
                left -= whole;
                continue;
            }
            self.decide(0, verdicts);
            self.release(1);
            left -= 1;
        }
    }

    fn release(&mut self, count: usize) {
        self.flights.drain(..count);
        self.base += count as u64;
        self.answered -= count;
    }

    /// Gives an answered flight its verdict.
    fn decide(&mut self, place: usize, verdicts: &mut Vec<Verdict>) {
        let number = self.base + place as u64;
        let flight = &mut self.flights[place];
        if matches!(flight.state, State::Decided) {
            return;
        }
        let state = std::mem::replace(&mut flight.state, State::Decided);
        let (index, returned) = (flight.index, flight.returned.take());
        let Some(batch) = batch_of(&mut self.batches, number) else { return };
        batch.partial = true;
        batch.undecided -= 1;
        let done = batch.done.clone();
        verdicts.push(match state {
            State::Answered(message, acked) => match (acked, returned) {
                (_, Some((code, text))) => {
                    let error = Error::new(ErrorKind::Unroutable, text)
                        .with_operation("send")
                        .with_context("address", message.destination().unwrap_or(&self.address))
                        .with_context("code", code);
                    Verdict::Failed(done, index, error, Some(message))
                }
                (true, None) => Verdict::Accepted(done, index),
                (false, None) => {
                    let error = Error::new(ErrorKind::Rejected, "the queue refused the message")
                        .with_operation("send")
                        .with_context("address", message.destination().unwrap_or(&self.address));
                    Verdict::Failed(done, index, error, Some(message))
                }
            },
            State::Lost(message) => Verdict::Failed(done, index, unknown(None), Some(message)),
            State::Confirming(_, message) => Verdict::Failed(done, index, unknown(None), Some(message)),
            State::Writing(_) | State::Decided => Verdict::Failed(done, index, unknown(None), None),
        });
    }

    /// Finds the message that was returned: at `place`, or any other of the same content. Of several with the same
    /// content and destination, the broker has as many as were not returned, whichever they are.
    fn attribute(&mut self, place: usize, returned: BasicReturnMessage, cx: &mut Context<'_>) {
        let BasicReturnMessage { mut delivery, reply_code, reply_text } = returned;
        let payload = Bytes::from(std::mem::take(&mut delivery.data));
        let found = if self.is_return_of(&self.flights[place], &payload, &delivery, true) {
            Some(place)
        } else {
            // What was returned has been written.
            for flight in &mut self.flights {
                let State::Writing(writing) = &mut flight.state else { continue };
                match writing.as_mut().poll(cx) {
                    Poll::Pending => {}
                    Poll::Ready((Ok(confirm), message)) => {
                        cx.waker().wake_by_ref();
                        flight.state = State::Confirming(confirm, message);
                    }
                    Poll::Ready((Err(error), message)) => {
                        self.broken.get_or_insert(error);
                        flight.state = State::Lost(message);
                    }
                }
            }
            let find = |exact| self.flights.iter().position(|f| self.is_return_of(f, &payload, &delivery, exact));
            find(true).or_else(|| find(false))
        };
        match found {
            Some(found) => self.flights[found].returned = Some((reply_code, reply_text.to_string())),
            None => tracing::error!(address = %self.address, "a message came back that nobody sent"),
        }
    }

    fn is_return_of(&self, flight: &Flight, payload: &Bytes, delivery: &Delivery, exact: bool) -> bool {
        let (State::Confirming(_, message) | State::Answered(message, _)) = &flight.state else { return false };
        flight.returned.is_none()
            && message.payload() == payload
            && outgoing(&self.address, message, self.frame_max).is_ok_and(|out| {
                out.exchange == delivery.exchange
                    && out.routing_key == delivery.routing_key
                    && (!exact || out.properties == delivery.properties)
            })
    }

    /// Gives up everything: the channel is gone. Looks once more, for messages to hand back.
    pub(crate) fn fail(&mut self, cx: &mut Context<'_>) -> Vec<Verdict> {
        for place in 0..self.flights.len() {
            self.look(place, cx);
        }
        let culprit = self.culprit();
        let mut verdicts = Vec::with_capacity(self.flights.len());
        let cause = self.broken.take().map(|e| map(&e, "send"));
        for place in 0..self.flights.len() {
            self.decide(place, &mut verdicts);
        }
        // The broker took nothing from the message on that it closed the channel for.
        if let (Some((done, index)), Some(cause)) = (culprit, &cause) {
            let mut behind = false;
            for verdict in &mut verdicts {
                let Verdict::Failed(of, at, error, _) = verdict else { continue };
                if behind {
                    *error = Error::new(ErrorKind::Connection, "the channel was closed before").with_operation("send");
                } else if Arc::ptr_eq(of, &done) && *at == index {
                    *error = cause.clone().with_retryable(false);
                    behind = true;
                } else {
                    *error = unknown(Some(cause));
                }
            }
        } else {
            for verdict in &mut verdicts {
                if let Verdict::Failed(_, _, error, _) = verdict
                    && error.outcome() == Outcome::Unknown
                {
                    *error = unknown(cause.as_ref());
                }
            }
        }
        self.base += self.flights.len() as u64;
        self.flights.clear();
        self.batches.clear();
        self.answered = 0;
        verdicts
    }

    /// The message that the broker closed the channel for: the first to the exchange that it says is missing, or of
    /// the size that it says is too large.
    fn culprit(&mut self) -> Option<(Arc<Completion>, u32)> {
        let lapin::ErrorKind::ProtocolError(refusal) = self.broken.as_ref()?.kind() else { return None };
        let text = refusal.get_message().as_str().to_owned();
        let place = self.flights.iter().position(|flight| {
            let State::Lost(message) = &flight.state else { return false };
            let to = message.destination().unwrap_or(&self.address);
            (to.is_topic() && text.contains(&format!("'{}'", to.name())))
                || text.contains(&format!("message size {} ", message.payload().len()))
        })?;
        let index = self.flights[place].index;
        let batch = batch_of(&mut self.batches, self.base + place as u64)?;
        Some((batch.done.clone(), index))
    }
}

fn batch_of(batches: &mut VecDeque<Batch>, number: u64) -> Option<&mut Batch> {
    let behind = batches.partition_point(|b| b.first <= number);
    batches.get_mut(behind.checked_sub(1)?)
}

fn unknown(cause: Option<&Error>) -> Error {
    let error = Error::new(ErrorKind::Connection, "the connection broke before the broker answered")
        .with_operation("send")
        .with_outcome(Outcome::Unknown);
    match cause {
        Some(cause) => error.with_source(cause.clone()),
        None => error,
    }
}

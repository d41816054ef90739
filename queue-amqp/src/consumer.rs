//! Receiving and answering.

use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::task::AtomicWaker;
use futures::{FutureExt, Stream, StreamExt};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicQosOptions, BasicRejectOptions};
use parking_lot::Mutex;
use queue_core::{
    AckReport, AckToken, Answer, Capabilities, CloseReport, Consumer, ConsumerOptions, Error, ErrorKind, Events,
    Ordering, Position, Received, Result, Settled, Source,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::broker::Shared as BrokerShared;
use crate::convert::incoming;
use crate::error::within;
use crate::ledger::Ledger;
use crate::link::{Task, hang_up};
use crate::stream::{Place, offset};
use crate::subscription;
use crate::topology::{Native, QueueType};
use crate::turns::Patient;

/// Waits for an answer while closing, also when the deadline has passed.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Receives from one queue, on a channel of its own.
pub(crate) struct AmqpConsumer {
    capabilities: Arc<Capabilities>,
    pub(crate) inbox: Arc<Inbox>,
    driver: Mutex<Option<Task>>,
}

/// What the handle and the task behind it share.
pub(crate) struct Inbox {
    pub(crate) source: Source,
    /// How the own queue of a topic's receiver without a group is made and bound.
    pub(crate) native: Native,
    pub(crate) prefetch: u16,
    /// Whether messages go back all at once and in order, when the channel ends: a single active consumer that ended
    /// its subscription first, or gave them back one by one, would let others overtake.
    pub(crate) ordered: bool,
    pub(crate) state: Mutex<State>,
    /// Wakes whoever polls.
    pub(crate) poller: AtomicWaker,
    /// Wakes the task behind.
    pub(crate) work: Notify,
    /// Tells that what was wanted was done.
    pub(crate) done: Notify,
    pub(crate) events: Events,
    pub(crate) broker: Arc<BrokerShared>,
}

/// What the application wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Messages,
    Pause,
    Stop,
    /// As `Stop`, and the subscription ends with the channel, which is about to be closed.
    Close,
}

impl Want {
    pub(crate) fn is_end(self) -> bool {
        matches!(self, Self::Stop | Self::Close)
    }
}

pub(crate) struct State {
    /// Counts channels; part of each token.
    pub(crate) epoch: u64,
    pub(crate) channel: Option<Channel>,
    pub(crate) stream: Option<lapin::Consumer>,
    /// Of whoever polls.
    patient: Patient,
    pub(crate) ledger: Ledger,
    /// Of a stream.
    pub(crate) place: Option<Place>,
    pub(crate) want: Want,
    /// Why there will be no more messages.
    pub(crate) failed: Option<Error>,
    /// Whether acknowledgements wait for the task to write them.
    pub(crate) armed: bool,
    /// Whether answers were given since the last flush.
    pub(crate) unflushed: bool,
    /// How many times answers were given.
    pub(crate) answers: u64,
    /// Why answers may not have reached the broker.
    pub(crate) lost: Option<Error>,
    /// Messages given back that were not handed out.
    pub(crate) released: usize,
    /// A message that says where in a stream it stood, though the queue is none: it is of a queue that was made anew, or
    /// a copy of one that is.
    pub(crate) doubtful: Option<Delivery>,
    /// Whether it is known for this channel that such messages are copies.
    pub(crate) copies: bool,
    /// Whether the subscription is being ended.
    pub(crate) cancelling: bool,
    pub(crate) closed: bool,
}

impl State {
    pub(crate) fn is_alive(&self) -> bool {
        self.channel.as_ref().is_some_and(|c| c.status().connected())
    }

    /// Whether there is nothing to give back: nothing is out, and nothing has arrived.
    fn is_empty(&mut self) -> bool {
        if self.ledger.held() > 0 || self.doubtful.is_some() {
            return false;
        }
        let Some(stream) = &mut self.stream else { return true };
        match stream.next().now_or_never() {
            Some(Some(Ok(delivery))) => {
                self.ledger.hand_out(delivery.delivery_tag);
                // Given back when the subscription has ended.
                self.doubtful = Some(delivery);
                false
            }
            Some(_) => false,
            None => true,
        }
    }

    /// Notes that an answer was given.
    fn answered(&mut self) {
        self.unflushed = true;
        self.answers += 1;
    }

    /// Lets go of the channel; its tokens are stale from here on.
    pub(crate) fn lose_channel(&mut self, prefetch: u16) {
        self.write();
        if let Some(channel) = self.channel.take() {
            hang_up(&channel);
        }
        self.stream = None;
        self.doubtful = None;
        self.copies = false;
        self.epoch += 1;
        self.ledger = Ledger::new(prefetch.into());
        if let Some(place) = &mut self.place {
            place.lost();
        }
        if std::mem::take(&mut self.unflushed) {
            let error = Error::new(ErrorKind::Connection, "the connection broke; answers may be lost with it");
            self.lost = Some(error.with_operation("flush"));
        }
    }

    /// Gives back deliveries that are recorded as gone, in order of their tags.
    pub(crate) fn give_back(&mut self, tags: &[u64]) {
        let Some(channel) = &self.channel else { return };
        if self.place.is_none() {
            return self.ledger.give_back(channel, tags);
        }
        // A stream takes nothing back, and closes the connection of who tries; an acknowledgement makes the same room.
        for tag in tags {
            let _ = channel.basic_ack(*tag, BasicAckOptions { multiple: false }).now_or_never();
        }
    }

    /// Writes the acknowledgements that wait.
    pub(crate) fn write(&mut self) {
        if self.ledger.acked() > 0
            && let Some(channel) = &self.channel
        {
            self.ledger.write(channel);
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.state.get_mut().lose_channel(self.prefetch);
    }
}

impl AmqpConsumer {
    pub(crate) async fn open(
        broker: &Arc<BrokerShared>,
        source: &Source,
        options: &ConsumerOptions,
        native: Native,
        capabilities: Arc<Capabilities>,
    ) -> Result<Arc<Self>> {
        let prefetch = u16::try_from(options.prefetch.max(1)).unwrap_or(u16::MAX);
        let inbox = Arc::new(Inbox {
            source: source.clone(),
            native,
            prefetch,
            ordered: options.ordering != Ordering::None && !capabilities.replay,
            state: Mutex::new(State {
                epoch: 0,
                channel: None,
                stream: None,
                patient: Patient::default(),
                ledger: Ledger::new(prefetch.into()),
                place: capabilities.replay.then(|| Place::new(source.start)),
                want: Want::Messages,
                failed: None,
                armed: false,
                unflushed: false,
                answers: 0,
                lost: None,
                released: 0,
                doubtful: None,
                copies: false,
                cancelling: false,
                closed: false,
            }),
            poller: AtomicWaker::new(),
            work: Notify::new(),
            done: Notify::new(),
            events: options.events.clone(),
            broker: broker.clone(),
        });
        let mut sessions = broker.consume.sessions();
        subscription::connect(&inbox, &mut sessions).await?;
        let driver = Task(tokio::spawn(subscription::drive(inbox.clone(), sessions)));
        Ok(Arc::new(Self { capabilities, inbox, driver: Mutex::new(Some(driver)) }))
    }

    /// Makes the task behind end the subscription, and waits for it.
    async fn end(&self, want: Want, deadline: Instant) {
        self.inbox.state.lock().want = want;
        self.inbox.work.notify_one();
        self.inbox.poller.wake();
        if self.inbox.ordered || want == Want::Close {
            // Nothing ends before the channel does.
            return;
        }
        loop {
            let done = self.inbox.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            {
                let state = self.inbox.state.lock();
                if state.stream.is_none() && !state.cancelling || state.closed || !state.is_alive() {
                    return;
                }
            }
            if timeout_at(deadline, done).await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        self.inbox.poller.register(cx.waker());
        let mut guard = self.inbox.state.lock();
        let state = &mut *guard;
        if state.closed || state.want.is_end() {
            return Poll::Ready(Err(Error::closed("consumer")));
        }
        if let Some(error) = &state.failed {
            return Poll::Ready(Err(error.clone()));
        }
        if self.inbox.ordered && state.want == Want::Pause {
            return Poll::Pending;
        }
        if !state.is_alive() {
            // What is buffered will be delivered again.
            if state.stream.take().is_some() {
                self.inbox.work.notify_one();
            }
            return Poll::Pending;
        }
        let before = into.len();
        if state.doubtful.is_some() && !state.copies {
            return Poll::Pending;
        }
        if let Some(delivery) = state.doubtful.take() {
            into.push(received(state.epoch, delivery, None));
        }
        while into.len() - before < max.get()
            && let Some(stream) = &mut state.stream
        {
            match Pin::new(stream).poll_next(&mut Context::from_waker(state.patient.waker(cx.waker()))) {
                Poll::Ready(Some(Ok(delivery))) => {
                    let tag = delivery.delivery_tag;
                    state.ledger.hand_out(tag);
                    let offset = offset(&delivery);
                    if let (Some(place), Some(offset)) = (&mut state.place, offset)
                        && !place.arrived(tag, offset)
                    {
                        // Answered before the connection broke; the room it takes is given back.
                        state.ledger.ack(tag);
                        continue;
                    }
                    if offset.is_some() && state.place.is_none() && !state.copies {
                        state.doubtful = Some(delivery);
                        self.inbox.work.notify_one();
                        break;
                    }
                    into.push(received(state.epoch, delivery, offset.filter(|_| state.place.is_some())));
                }
                // Cancelled by the server, or the channel broke: the task behind finds out.
                Poll::Ready(Some(Err(_)) | None) => {
                    state.stream = None;
                    self.inbox.work.notify_one();
                }
                Poll::Pending => break,
            }
        }
        if into.len() > before {
            return Poll::Ready(Ok(()));
        }
        // Nothing to do: the time to tell what was done.
        state.write();
        Poll::Pending
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        let mut report = AckReport::default();
        let mut guard = self.inbox.state.lock();
        let state = &mut *guard;
        let alive = state.is_alive();
        for (index, token) in tokens.iter().enumerate() {
            if !alive || token.0 != state.epoch || !state.ledger.ack(token.1) {
                report.stale.push(index);
            } else if let Some(place) = &mut state.place {
                place.answered(token.1);
            }
        }
        if report.stale.len() < tokens.len() {
            state.answered();
        }
        if state.ledger.is_due() {
            state.write();
        } else if state.ledger.acked() > 0 && !std::mem::replace(&mut state.armed, true) {
            self.inbox.work.notify_one();
        }
        report
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        let mut settled = Settled::default();
        let mut guard = self.inbox.state.lock();
        let state = &mut *guard;
        let alive = state.is_alive();
        // Before anything is recorded as gone; see `Ledger::give_back`.
        state.write();
        let mut released = Vec::new();
        for (index, answer) in answers.into_iter().enumerate() {
            let AckToken(epoch, tag) = answer.token();
            let current = alive && epoch == state.epoch;
            let taken = match answer {
                // Held for as long as the connection lasts.
                Answer::Extend(..) => current && state.ledger.holds(tag),
                Answer::Release(_) if self.inbox.ordered => current && state.ledger.keep(tag),
                _ => current && state.ledger.settle(tag),
            };
            let Some(channel) = state.channel.as_ref().filter(|_| taken) else {
                settled.stale.push(index);
                continue;
            };
            if let Some(place) = &mut state.place
                && !matches!(answer, Answer::Extend(..))
            {
                place.gave_back(tag);
            }
            match answer {
                Answer::Release(_) if self.inbox.ordered => {}
                Answer::Release(_) => released.push(tag),
                Answer::Retry(..) if state.place.is_some() => released.push(tag),
                Answer::Retry(..) => {
                    // With the client when the first poll returns.
                    let _ = channel.basic_reject(tag, BasicRejectOptions { requeue: true }).now_or_never();
                    state.ledger.burst.gave(1);
                }
                _ => {}
            }
            state.answered();
        }
        released.sort_unstable();
        state.give_back(&released);
        settled
    }

    fn holds(&self, token: AckToken) -> bool {
        let state = self.inbox.state.lock();
        state.is_alive() && token.0 == state.epoch && state.ledger.holds(token.1)
    }

    async fn flush(&self) -> Result<()> {
        self.flush_until(Instant::now() + self.inbox.broker.timeout).await
    }

    fn set_paused(&self, paused: bool) {
        let mut state = self.inbox.state.lock();
        if !state.want.is_end() {
            state.want = if paused { Want::Pause } else { Want::Messages };
            drop(state);
            self.inbox.work.notify_one();
            self.inbox.poller.wake();
        }
    }

    async fn stop(&self) {
        self.end(Want::Stop, Instant::now() + self.inbox.broker.timeout).await;
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        let want = {
            let mut state = self.inbox.state.lock();
            if state.closed {
                return report;
            }
            // An end of the subscription that comes together with the end of its queue can cost the connection; see
            // `hang_up`.
            if self.inbox.ordered || state.is_empty() { Want::Close } else { Want::Stop }
        };
        self.end(want, deadline).await;
        self.outlast_burst(deadline).await;
        if let Err(error) = self.flush_until(deadline).await {
            report.errors.push(error);
        }
        let (channel, _stream) = {
            let mut state = self.inbox.state.lock();
            if std::mem::replace(&mut state.closed, true) {
                return CloseReport::default();
            }
            report.unanswered = state.ledger.held();
            report.released = state.released;
            state.unflushed = false;
            // Dropped before the channel is closed, it would end the subscription first; see `Inbox::ordered`.
            let ended = (state.channel.take(), state.stream.take());
            state.lose_channel(self.inbox.prefetch);
            ended
        };
        drop(self.driver.lock().take());
        self.inbox.poller.wake();
        if let Some(channel) = channel
            && channel.status().connected()
        {
            // The broker gives unanswered messages to others when the channel is closed.
            let until = deadline.max(Instant::now() + LAST_WORD);
            if let Err(error) = within(until, "close", channel.close(200, "OK".into())).await {
                report.errors.push(error);
            }
        }
        report
    }
}

impl AmqpConsumer {
    /// Waits until the server has taken what was answered lately, as far as that can be known.
    async fn outlast_burst(&self, deadline: Instant) {
        let queue = self.inbox.source.queue_name();
        let kind = queue.and_then(|queue| self.inbox.broker.known.of(&queue).kind);
        if !matches!(kind, None | Some(QueueType::Quorum)) {
            return;
        }
        loop {
            let over = {
                let mut state = self.inbox.state.lock();
                state.write();
                state.ledger.burst.over().map(|over| over.min(deadline))
            };
            match over {
                Some(over) if over > Instant::now() => sleep_until(over).await,
                _ => return,
            }
        }
    }

    async fn flush_until(&self, deadline: Instant) -> Result<()> {
        let (channel, epoch, answers) = {
            let mut state = self.inbox.state.lock();
            if let Some(error) = state.lost.take() {
                return Err(error);
            }
            if !state.unflushed {
                return Ok(());
            }
            state.write();
            (state.channel.clone(), state.epoch, state.answers)
        };
        let Some(channel) = channel else {
            return Err(Error::new(ErrorKind::Connection, "the connection broke").with_operation("flush"));
        };
        // The broker answers in order: what was written before, it has seen.
        within(deadline, "flush", channel.basic_qos(self.inbox.prefetch, BasicQosOptions { global: false })).await?;
        let mut state = self.inbox.state.lock();
        // Those that were given meanwhile may have been written behind the question.
        if state.epoch == epoch && state.answers == answers {
            state.unflushed = false;
        }
        Ok(())
    }
}

fn received(epoch: u64, delivery: Delivery, offset: Option<u64>) -> Received {
    let token = AckToken(epoch, delivery.delivery_tag);
    let (message, attempt) = incoming(delivery);
    Received { message, token, attempt, lease: None, position: Position::new(None, offset) }
}

impl fmt::Debug for AmqpConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConsumer").field("source", &self.inbox.source).finish_non_exhaustive()
    }
}

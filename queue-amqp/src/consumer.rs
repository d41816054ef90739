//! Receiving and answering.

use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, Stream};
use lapin::message::Delivery;
use lapin::options::{BasicQosOptions, BasicRejectOptions};
use parking_lot::Mutex;
use queue_core::{
    AckReport, AckToken, Answer, Capabilities, CloseReport, Consumer, ConsumerOptions, Error, ErrorKind, Position,
    Received, Result, Settled, Source,
};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::broker::Shared as BrokerShared;
use crate::convert::incoming;
use crate::error::within;
use crate::inbox::{Inbox, Want};
use crate::link::Task;
use crate::stream::offset;
use crate::subscription;
use crate::topology::{Native, QueueType};

/// Waits for an answer while closing, also when the deadline has passed.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Receives from one queue, on a channel of its own.
pub(crate) struct AmqpConsumer {
    capabilities: Arc<Capabilities>,
    pub(crate) inbox: Arc<Inbox>,
    driver: Mutex<Option<Task>>,
}

impl AmqpConsumer {
    pub(crate) async fn open(
        broker: &Arc<BrokerShared>,
        source: &Source,
        options: &ConsumerOptions,
        native: Native,
        capabilities: Arc<Capabilities>,
    ) -> Result<Arc<Self>> {
        let inbox = Inbox::new(broker, source, options, native, capabilities.replay);
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
            // What an earlier connection lost comes again on this one; a close tells of its own.
            if state.is_alive() {
                state.lost = None;
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
        let (lost, channel, epoch, answers) = {
            let mut state = self.inbox.state.lock();
            let lost = state.lost.take().map_or(Ok(()), Err);
            if !state.unflushed {
                return lost;
            }
            state.write();
            (lost, state.channel.clone(), state.epoch, state.answers)
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
        lost
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

//! The task behind a consumer: it subscribes, again after every loss, and does what takes a round trip.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::ShortString;
use queue_core::{Error, ErrorKind, EventKind, Result};
use tokio::time::{Instant, sleep};

use crate::convert::{arguments, short};
use crate::error::{is_final, within};
use crate::inbox::{Inbox, Want};
use crate::ledger::Ledger;
use crate::link::{Sessions, open_channel, while_up};
use crate::stream::{OFFSET, Place};
use crate::topology::{Native, QueueType, bind};

/// Longest time that an acknowledgement waits for others to be written with.
const MAX_AGE: Duration = Duration::from_millis(5);
/// Wait before another attempt to subscribe.
const AGAIN: Duration = Duration::from_millis(200);

/// What the task does next.
enum Step {
    Connect,
    Subscribe(Channel),
    Cancel(Channel, lapin::Consumer),
    Look,
    Wait { armed: bool },
}

/// Keeps a subscription until the task is ended, or nothing but a person can help.
pub(crate) async fn drive(inbox: Arc<Inbox>, mut sessions: Sessions) {
    loop {
        // Before looking, so that no loss is missed.
        sessions.mark_unchanged();
        let result = match next(&inbox) {
            Step::Connect => connect(&inbox, &mut sessions).await,
            Step::Subscribe(channel) => while_up(&sessions, subscribe(&inbox, channel)).await,
            Step::Cancel(channel, stream) => {
                cancel(&inbox, &channel, stream, &sessions).await;
                Ok(())
            }
            Step::Look => while_up(&sessions, look(&inbox)).await,
            Step::Wait { armed } => {
                tokio::select! {
                    () = inbox.work.notified() => {}
                    _ = sessions.changed() => {}
                    () = sleep(MAX_AGE), if armed => {
                        let mut state = inbox.state.lock();
                        state.armed = false;
                        state.write();
                    }
                }
                Ok(())
            }
        };
        inbox.done.notify_waiters();
        let Err(error) = result else { continue };
        if is_final(&error) {
            if let (ErrorKind::NotFound, Some(queue)) = (error.kind(), inbox.source.queue_name()) {
                // Who makes it anew may make another.
                inbox.broker.forget(&queue);
            }
            let mut state = inbox.state.lock();
            state.failed = Some(error);
            if state.channel.is_some() {
                state.lose_channel(inbox.prefetch);
            }
            drop(state);
            inbox.poller.wake();
            return;
        }
        tracing::debug!(%error, source = %inbox.source, "subscribing again failed");
        sleep(AGAIN).await;
    }
}

fn next(inbox: &Inbox) -> Step {
    let mut guard = inbox.state.lock();
    let state = &mut *guard;
    if !state.is_alive() {
        if state.channel.is_some() {
            state.lose_channel(inbox.prefetch);
        }
        // Once stopped, there is nothing to come back for.
        return if state.want.is_end() { Step::Wait { armed: false } } else { Step::Connect };
    }
    let Some(channel) = state.channel.clone() else { return Step::Connect };
    if state.doubtful.is_some() && !state.copies && state.want == Want::Messages {
        return Step::Look;
    }
    match (state.want, state.stream.take()) {
        (Want::Messages, None) if inbox.source.queue_name().is_none() => {
            // The queue was this channel's own, and is gone.
            state.lose_channel(inbox.prefetch);
            Step::Connect
        }
        (Want::Messages, None) => Step::Subscribe(channel),
        (Want::Pause | Want::Stop, Some(stream)) if !inbox.ordered => {
            state.cancelling = true;
            Step::Cancel(channel, stream)
        }
        (_, stream) => {
            state.stream = stream;
            Step::Wait { armed: state.armed }
        }
    }
}

/// Opens a channel and subscribes.
pub(crate) async fn connect(inbox: &Inbox, sessions: &mut Sessions) -> Result<()> {
    let deadline = Instant::now() + inbox.broker.timeout;
    let channel = open_channel(sessions, deadline).await?;
    while_up(sessions, begin(inbox, channel, deadline)).await
}

/// Subscribes on a channel that is new.
async fn begin(inbox: &Inbox, channel: Channel, deadline: Instant) -> Result<()> {
    within(deadline, "subscribe", channel.basic_qos(inbox.prefetch, BasicQosOptions { global: false })).await?;
    let again = {
        let mut state = inbox.state.lock();
        state.epoch += 1;
        state.ledger = Ledger::new(inbox.prefetch.into());
        state.channel = Some(channel.clone());
        state.epoch > 1
    };
    subscribe(inbox, channel).await?;
    if again && let Some(why) = gap(inbox) {
        let error = Error::new(ErrorKind::Connection, why);
        inbox.events.emit(EventKind::Gap, &inbox.source.to_string(), Some(error));
    }
    Ok(())
}

/// Lets go of the channel when dropped: a question that nobody waits for any more is still answered, and a subscription
/// that nobody reads would keep its messages for itself.
struct OrLose<'a>(&'a Inbox);

impl Drop for OrLose<'_> {
    fn drop(&mut self) {
        self.0.state.lock().lose_channel(self.0.prefetch);
    }
}

/// Why messages may have passed by unseen while there was no subscription.
fn gap(inbox: &Inbox) -> Option<&'static str> {
    if inbox.source.queue_name().is_none() {
        return Some("a topic without a group keeps nothing while disconnected");
    }
    let loose = inbox.state.lock().place.as_ref().is_some_and(Place::is_loose);
    loose.then_some("a stream that is read from its end was disconnected before anything came")
}

async fn subscribe(inbox: &Inbox, channel: Channel) -> Result<()> {
    let or_lose = OrLose(inbox);
    let deadline = Instant::now() + inbox.broker.timeout;
    let queue = match inbox.source.queue_name() {
        Some(name) => short(&name)?,
        None => own_queue(inbox, &channel, deadline).await?,
    };
    let start = inbox.state.lock().place.as_ref().map(Place::next);
    let arguments = arguments(start.map(|start| (OFFSET, start)))?;
    let consume =
        channel.basic_consume(queue.clone(), ShortString::default(), BasicConsumeOptions::default(), arguments);
    let stream = within(deadline, "subscribe", consume).await.map_err(|e| e.with_context("queue", queue.as_str()))?;
    inbox.state.lock().stream = Some(stream);
    std::mem::forget(or_lose);
    inbox.poller.wake();
    Ok(())
}

/// Finds out whether the queue has become a stream, which would have to be read and answered as one.
async fn look(inbox: &Inbox) -> Result<()> {
    let kind = match inbox.source.queue_name() {
        Some(queue) => inbox.broker.topologist()?.kind(&queue).await?,
        None => None,
    };
    if kind == Some(QueueType::Stream) {
        let why = "the queue was made anew as a stream: open a receiver that says where to start";
        return Err(Error::unsupported(why).with_operation("receive").with_context("source", &inbox.source));
    }
    inbox.state.lock().copies = true;
    inbox.poller.wake();
    Ok(())
}

/// Makes the queue of a topic's receiver without a group, which ends with the connection.
async fn own_queue(inbox: &Inbox, channel: &Channel, deadline: Instant) -> Result<ShortString> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let asked = arguments(inbox.native.queue.iter().map(|(name, value)| (name.as_str(), value.clone())))?;
    let declared = channel.queue_declare(ShortString::default(), options, asked);
    let queue = within(deadline, "subscribe", declared).await?.name().clone();
    let Native { binding, exchange_type, .. } = &inbox.native;
    bind(channel, queue.as_str(), inbox.source.address.name(), binding, *exchange_type, deadline).await?;
    Ok(queue)
}

/// Ends the subscription and gives back what was not handed out. What was handed out can still be answered.
async fn cancel(inbox: &Inbox, channel: &Channel, mut stream: lapin::Consumer, sessions: &Sessions) {
    let deadline = Instant::now() + inbox.broker.timeout;
    let cancelled = channel.basic_cancel(stream.tag(), BasicCancelOptions::default());
    let cancelled = while_up(sessions, within(deadline, "cancel", cancelled)).await;
    let mut state = inbox.state.lock();
    state.cancelling = false;
    if let Err(error) = cancelled {
        // Without the channel nothing is delivered either.
        tracing::debug!(%error, source = %inbox.source, "cancelling failed");
        state.lose_channel(inbox.prefetch);
        return;
    }
    // Before anything is recorded as gone; see `Ledger::give_back`.
    state.write();
    let mut tags = Vec::new();
    if let Some(delivery) = state.doubtful.take()
        && state.ledger.settle(delivery.delivery_tag)
    {
        tags.push(delivery.delivery_tag);
    }
    while let Some(Some(Ok(delivery))) = stream.next().now_or_never() {
        state.ledger.gave_back(delivery.delivery_tag);
        tags.push(delivery.delivery_tag);
    }
    state.released += tags.len();
    state.give_back(&tags);
}

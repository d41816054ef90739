//! What a receiver and the task behind it share.

use std::sync::Arc;

use futures::task::AtomicWaker;
use futures::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use parking_lot::Mutex;
use queue_core::{ConsumerOptions, Error, ErrorKind, Events, Ordering, Source};
use tokio::sync::Notify;

use crate::broker::Shared as BrokerShared;
use crate::ledger::Ledger;
use crate::link::hang_up;
use crate::stream::Place;
use crate::topology::Native;
use crate::turns::Patient;

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

impl Inbox {
    pub(crate) fn new(
        broker: &Arc<BrokerShared>,
        source: &Source,
        options: &ConsumerOptions,
        native: Native,
        stream: bool,
    ) -> Arc<Self> {
        let prefetch = u16::try_from(options.prefetch.max(1)).unwrap_or(u16::MAX);
        Arc::new(Self {
            source: source.clone(),
            native,
            prefetch,
            ordered: options.ordering != Ordering::None && !stream,
            state: Mutex::new(State {
                epoch: 0,
                channel: None,
                stream: None,
                patient: Patient::default(),
                ledger: Ledger::new(prefetch.into()),
                place: stream.then(|| Place::new(source.start)),
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
        })
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.state.get_mut().lose_channel(self.prefetch);
    }
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
    pub(crate) patient: Patient,
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
    pub(crate) fn is_empty(&mut self) -> bool {
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
    pub(crate) fn answered(&mut self) {
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

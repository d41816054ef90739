//! What all producers of a broker send through: two channels with confirmations.
//!
//! A channel costs the client time for every frame of its connection, so there is not one for each producer. There are
//! two, because the broker closes a channel for a message to an exchange that does not exist: so that disturbs no
//! message to a queue.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::poll_fn;
use futures::task::AtomicWaker;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, Message, Result};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::config::AmqpConfig;
use crate::delay::Ladder;
use crate::error::{not_connected, within};
use crate::flight::{Done, Origin, Verdict};
use crate::link::{Blocked, Link, Sessions, Task, open_channel, while_up};
use crate::renewal::{Renew, Renewal};
use crate::turns::{Cork, Patient, behind_others, woken};
use crate::window::Window;

/// How long the first message in flight may hold up the verdicts of those behind it.
const STUCK: Duration = Duration::from_millis(10);
/// How often messages that wait are let go when nobody waits for them any more.
pub(crate) const EXPIRE: Duration = Duration::from_millis(250);
/// How long the client may take to hand back what it has not written when its channel is gone. It does so at once, on a
/// task of its own.
const HAND_BACK: Duration = Duration::from_millis(500);
/// From so many messages on, the client's thread writes them in one go. Fewer are with it before it has slept and woken.
const MANY: usize = 32;
/// Messages that the client is given at most before its thread may write them, and bytes of their payloads.
const AT_ONCE: (usize, usize) = (128, 1 << 20);
/// How long another channel may take to open, in place of one that refuses messages.
const RENEW: Duration = Duration::from_secs(1);
/// Wait before a channel is opened again.
const REOPEN: Duration = Duration::from_millis(100);

/// The channels that publish, with the tasks that keep them.
pub(crate) struct Publisher {
    /// For the default exchange, which always exists.
    pub(crate) queues: Arc<Lane>,
    /// For exchanges with a name.
    pub(crate) topics: Arc<Lane>,
    drivers: Mutex<Vec<Task>>,
}

impl Publisher {
    pub(crate) async fn open(link: &Link, ladder: &Arc<Ladder>) -> Result<Self> {
        let AmqpConfig { operation_timeout: timeout, max_unconfirmed, .. } = *link.config();
        let mut drivers = Vec::new();
        let mut open = async || {
            let lane = Arc::new(Lane::new(timeout, Window::new(max_unconfirmed, ladder.clone())));
            let mut sessions = link.sessions();
            lane.connect(&mut sessions, timeout).await?;
            drivers.push(Task(tokio::spawn(lane.clone().drive(sessions, link.blocked()))));
            Ok::<_, Error>(lane)
        };
        Ok(Self { queues: open().await?, topics: open().await?, drivers: Mutex::new(drivers) })
    }

    /// Closes the channels. What is in flight is `Unknown`.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.drivers.lock().clear();
        for lane in [&self.queues, &self.topics] {
            let channel = lane.give_up(true);
            if let Some(channel) = channel.filter(|channel| channel.status().connected()) {
                // A broker that does not answer now has nothing that was not counted.
                let until = deadline.max(Instant::now() + REOPEN);
                let _ = within(until, "close", channel.close(200, "OK".into())).await;
            }
        }
    }
}

/// One channel with confirmations, and what is in flight on it.
///
/// Whoever sends only puts messages into the inbox. The task behind gives them to the client: so those of many senders
/// go together, and nobody waits for another's lock.
pub(crate) struct Lane {
    inbox: Mutex<Inbox>,
    state: Mutex<State>,
    /// Wakes the task behind.
    work: AtomicWaker,
    timeout: Duration,
}

struct Inbox {
    parcels: Vec<Parcel>,
    /// Why nothing is taken now.
    refused: Option<Error>,
    closed: bool,
}

/// Messages of a producer.
pub(crate) struct Parcel {
    pub(crate) origin: Arc<Origin>,
    pub(crate) done: Done,
    pub(crate) load: Load,
}

/// Messages of one batch.
pub(crate) enum Load {
    One(Message),
    All(Vec<Message>),
    /// Some of it, with their places.
    Part(Vec<(u32, Message)>),
}

impl Load {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::All(messages) => messages.len(),
            Self::Part(messages) => messages.len(),
        }
    }

    fn places(self) -> Vec<(u32, Message)> {
        match self {
            Self::One(message) => vec![(0, message)],
            Self::All(messages) => (0..).zip(messages).collect(),
            Self::Part(messages) => messages,
        }
    }
}

struct State {
    channel: Option<Arc<Channel>>,
    /// Of the connection of the channel.
    cork: Cork,
    window: Window,
}

impl Parcel {
    fn refuse(mut self, error: &Error) {
        let done = self.done.share();
        for (place, message) in self.load.places() {
            done.fail(place as usize, error.clone(), Some(message));
        }
    }
}

impl Lane {
    fn new(timeout: Duration, window: Window) -> Self {
        Self {
            inbox: Mutex::new(Inbox { parcels: Vec::new(), refused: Some(not_connected()), closed: false }),
            state: Mutex::new(State { channel: None, cork: Cork::default(), window }),
            work: AtomicWaker::new(),
            timeout,
        }
    }

    /// Takes messages of a producer, in call order.
    pub(crate) fn send(&self, parcel: Parcel) {
        let mut inbox = self.inbox.lock();
        if let Some(error) = &inbox.refused {
            let error = error.clone();
            drop(inbox);
            return parcel.refuse(&error);
        }
        parcel.origin.take_off(parcel.load.len());
        inbox.parcels.push(parcel);
        let first = inbox.parcels.len() == 1;
        drop(inbox);
        // Whoever put in the first has woken the task.
        if first {
            self.work.wake();
        }
    }

    /// How many messages are kept here.
    pub(crate) fn kept(&self) -> usize {
        let published = self.state.lock().window.kept();
        published + self.inbox.lock().parcels.iter().map(|parcel| parcel.load.len()).sum::<usize>()
    }

    /// Moves what was put in to the window.
    fn collect(&self, window: &mut Window, spare: &mut Vec<Parcel>) {
        std::mem::swap(&mut self.inbox.lock().parcels, spare);
        for parcel in spare.drain(..) {
            window.push(parcel);
        }
    }

    /// From now on, messages are refused with this error; those that wait are failed with it.
    fn refuse(&self, error: &Error, window: &mut Window, verdicts: &mut Vec<Verdict>) {
        let mut inbox = self.inbox.lock();
        let parcels = std::mem::take(&mut inbox.parcels);
        if !inbox.closed {
            inbox.refused = Some(error.clone().with_operation("send"));
        }
        drop(inbox);
        parcels.into_iter().for_each(|parcel| window.push(parcel));
        window.fail_waiting(error, verdicts);
    }

    /// Gives every message of a producer a verdict; answers how many the broker may have.
    pub(crate) fn let_go(&self, origin: &Arc<Origin>, error: &Error) -> usize {
        let mut verdicts = Vec::new();
        let mut state = self.state.lock();
        self.collect(&mut state.window, &mut Vec::new());
        let left = state.window.let_go(origin, error, &mut verdicts);
        drop(state);
        // The task may have been meant to take them.
        self.work.wake();
        verdicts.into_iter().for_each(Verdict::give);
        left
    }

    /// Opens a channel with confirmations.
    async fn connect(&self, sessions: &mut Sessions, within_time: Duration) -> Result<()> {
        let deadline = Instant::now() + within_time;
        let channel = open_channel(sessions, deadline).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        while_up(sessions, within(deadline, "open channel", confirms)).await?;
        let (frame_max, cork) = match &*sessions.borrow() {
            Some(session) => (session.connection.configuration().frame_max(), session.cork.clone()),
            None => (0, Cork::default()),
        };
        let mut state = self.state.lock();
        state.cork = cork;
        state.window.begin(usize::try_from(frame_max).unwrap_or(usize::MAX));
        let before = state.channel.replace(Arc::new(channel));
        drop(state);
        // Closes it.
        drop(before);
        self.accept();
        Ok(())
    }

    /// Gives verdicts for as long as the broker is open, and keeps a channel.
    async fn drive(self: Arc<Self>, mut sessions: Sessions, mut blocked: Blocked) {
        let (stuck, expired) = (Box::pin(sleep(STUCK)), Instant::now());
        let (spare, patient) = (Vec::new(), Patient::default());
        let mut watch = Watch { stuck, mark: None, expired, spare, patient, renewal: Renewal::new() };
        loop {
            sessions.mark_unchanged();
            while sessions.borrow().is_some() {
                self.set_blocked(blocked.borrow_and_update().as_deref());
                tokio::select! {
                    end = self.work(&mut watch) => match end {
                        End::Broken => break,
                        // The broker would not open one now.
                        End::Refused if blocked.borrow().is_some() => {}
                        End::Refused => {
                            // Nothing is in flight; what waits stays where it is.
                            if let Err(error) = self.connect(&mut sessions, RENEW).await {
                                tracing::debug!(%error, "the channel that refused messages stays");
                            }
                        }
                    },
                    // Gone with the connection; an error here is the end of the broker.
                    _ = sessions.changed() => break,
                    Ok(()) = blocked.changed() => {}
                }
            }
            // Without its message, none could be sent again.
            let _ = timeout(HAND_BACK, poll_fn(|cx| self.state.lock().window.poll_written(cx))).await;
            self.give_up(false);
            while let Err(error) = self.connect(&mut sessions, self.timeout).await {
                tracing::debug!(%error, "opening the channel that publishes failed");
                sleep(REOPEN).await;
            }
        }
    }

    /// While the broker blocks publishers, nothing more is given to the client, which would keep it for later.
    fn set_blocked(&self, reason: Option<&str>) {
        let mut state = self.state.lock();
        if state.channel.is_none() {
            return;
        }
        let mut verdicts = Vec::new();
        match reason {
            Some(reason) => {
                let why = format!("the broker blocks publishers: {reason}");
                let error = Error::new(ErrorKind::Throttled, why).with_operation("send");
                self.refuse(&error, &mut state.window, &mut verdicts);
            }
            None => self.accept(),
        }
        drop(state);
        verdicts.into_iter().for_each(Verdict::give);
    }

    fn accept(&self) {
        let mut inbox = self.inbox.lock();
        if !inbox.closed {
            inbox.refused = None;
        }
    }

    /// Gives messages to the client and takes its answers, until the channel is of no more use.
    async fn work(&self, watch: &mut Watch) -> End {
        let mut verdicts = Vec::new();
        loop {
            let end = poll_fn(|cx| Poll::Ready(self.advance(cx, watch, &mut verdicts))).await;
            verdicts.drain(..).for_each(Verdict::give);
            if let Some(end) = end {
                return end;
            }
            woken().await;
            // Whoever else can run first has more to send, and the client more answers.
            behind_others().await;
        }
    }

    /// Why the channel is of no more use, if it is.
    fn advance(&self, cx: &mut Context<'_>, watch: &mut Watch, verdicts: &mut Vec<Verdict>) -> Option<End> {
        self.work.register(cx.waker());
        let mut state = self.state.lock();
        let State { channel: Some(channel), cork, window } = &mut *state else {
            return Some(End::Broken);
        };
        if !channel.status().connected() {
            return Some(End::Broken);
        }
        loop {
            let patient = watch.patient.waker(cx.waker());
            window.advance(channel, &mut Context::from_waker(patient), verdicts);
            self.collect(window, &mut watch.spare);
            let idle = window.is_idle();
            window.settle_written();
            match watch.renewal.of(window.is_refused(), window.is_drained()) {
                Renew::No => {
                    if window.ready() >= MANY {
                        let _corked = cork.hold();
                        window.publish(channel, AT_ONCE, verdicts);
                    }
                    // The rest while the client's thread writes.
                    while window.publish(channel, AT_ONCE, verdicts) > 0 {
                        window.settle_written();
                    }
                }
                Renew::Drained => {}
                Renew::Now => return Some(End::Refused),
            }
            // Nobody waits for the first yet.
            let unwatched = idle && !window.is_idle();
            if window.is_broken() {
                return Some(End::Broken);
            }
            if unwatched {
                continue;
            }
            let (waiting, first, in_client) = window.waiting();
            if waiting < 2 || !in_client {
                return None;
            }
            if watch.mark.is_none() {
                watch.set(first);
            }
            if watch.stuck.as_mut().poll(cx).is_pending() {
                return None;
            }
            let stuck = watch.mark == Some(first);
            // The clock goes on for as long as anything is behind another: no later answer of those wakes.
            watch.set(first);
            if stuck {
                let patient = watch.patient.waker(cx.waker());
                window.sweep(channel, &mut Context::from_waker(patient), verdicts);
                if window.is_broken() {
                    return Some(End::Broken);
                }
            }
            if window.is_full() {
                tracing::warn!(
                    "a message got no answer for long, others did: the channel that publishes is opened again"
                );
                return Some(End::Broken);
            }
            if watch.expired.elapsed() >= EXPIRE {
                window.drop_over(verdicts);
                watch.expired = Instant::now();
            }
        }
    }

    /// Lets go of the channel and of what was in flight.
    fn give_up(&self, close: bool) -> Option<Arc<Channel>> {
        let mut verdicts = Vec::new();
        let mut state = self.state.lock();
        let channel = state.channel.take();
        let error = if close { Error::closed("broker") } else { not_connected() };
        self.refuse(&error, &mut state.window, &mut verdicts);
        self.inbox.lock().closed |= close;
        verdicts.extend(state.window.fail(&mut Context::from_waker(std::task::Waker::noop())));
        drop(state);
        verdicts.into_iter().for_each(Verdict::give);
        channel
    }
}

/// Why a channel is of no more use.
enum End {
    Broken,
    /// It refused messages, and another may not.
    Refused,
}

/// What the task behind a lane remembers from one poll to the next.
struct Watch {
    stuck: Pin<Box<Sleep>>,
    /// The first message in flight when `stuck` was set.
    mark: Option<u64>,
    /// When messages were let go that nobody waits for.
    expired: Instant,
    /// An empty list, to be exchanged for the inbox.
    spare: Vec<Parcel>,
    patient: Patient,
    renewal: Renewal,
}

impl Watch {
    fn set(&mut self, first: u64) {
        self.mark = Some(first);
        self.stuck.as_mut().reset(Instant::now() + STUCK);
    }
}

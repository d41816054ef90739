//! Publishing with confirmations.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::poll_fn;
use futures::task::AtomicWaker;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use parking_lot::Mutex;
use queue_core::{
    Address, Capabilities, CloseReport, Completion, Error, ErrorKind, Message, Outcome, Producer, ProducerOptions,
    Result,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use crate::broker::Shared as BrokerShared;
use crate::error::{not_connected, within};
use crate::link::{Session, Task, open_channel};
use crate::window::{Verdict, Window};

/// How long the first message in flight may hold up the verdicts of those behind it.
const STUCK: Duration = Duration::from_millis(10);
/// Wait before a channel is opened again.
const REOPEN: Duration = Duration::from_millis(100);

/// Sends to one address, on a channel of its own.
pub(crate) struct AmqpProducer {
    capabilities: Arc<Capabilities>,
    lane: Arc<Lane>,
    driver: Mutex<Option<Task>>,
}

struct Lane {
    address: Address,
    state: Mutex<State>,
    /// Wakes the driver when a flight has news.
    news: Arc<News>,
    /// The same, as the client wants it.
    waker: Waker,
    /// Tells that the window is empty.
    idle: Notify,
    broker: Arc<BrokerShared>,
}

struct State {
    channel: Option<Arc<Channel>>,
    window: Window,
    closed: bool,
}

#[derive(Default)]
struct News(AtomicWaker);

impl Wake for News {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

type Sessions = watch::Receiver<Option<Arc<Session>>>;

impl AmqpProducer {
    pub(crate) async fn open(
        broker: &Arc<BrokerShared>,
        address: Address,
        options: &ProducerOptions,
        capabilities: Arc<Capabilities>,
    ) -> Result<Arc<Self>> {
        let news = Arc::new(News::default());
        let lane = Arc::new(Lane {
            state: Mutex::new(State {
                channel: None,
                window: Window::new(address.clone(), options.require_route, broker.ladder.clone()),
                closed: false,
            }),
            address,
            waker: Waker::from(news.clone()),
            news,
            idle: Notify::new(),
            broker: broker.clone(),
        });
        let mut sessions = broker.publish.sessions();
        lane.connect(&mut sessions).await?;
        let driver = Task(tokio::spawn(lane.clone().drive(sessions)));
        Ok(Arc::new(Self { capabilities, lane, driver: Mutex::new(Some(driver)) }))
    }
}

impl Lane {
    /// Opens a channel with confirmations.
    async fn connect(&self, sessions: &mut Sessions) -> Result<()> {
        let deadline = Instant::now() + self.broker.timeout;
        let channel = open_channel(sessions, deadline).await?;
        within(deadline, "open channel", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let frame_max = sessions.borrow().as_ref().map_or(0, |s| s.connection.configuration().frame_max());
        let mut state = self.state.lock();
        state.window.set_frame_max(usize::try_from(frame_max).unwrap_or(usize::MAX));
        state.channel = Some(Arc::new(channel));
        Ok(())
    }

    /// Gives verdicts for as long as the producer is open, and keeps a channel.
    async fn drive(self: Arc<Self>, mut sessions: Sessions) {
        let mut stuck = Box::pin(sleep(STUCK));
        let mut mark = None;
        loop {
            sessions.mark_unchanged();
            if sessions.borrow().is_some() {
                tokio::select! {
                    () = poll_fn(|cx| self.poll(cx, &mut stuck, &mut mark)) => {}
                    // Gone with the connection; an error here is the end of the broker.
                    _ = sessions.changed() => {}
                }
            }
            self.give_up();
            while let Err(error) = self.connect(&mut sessions).await {
                tracing::debug!(%error, address = %self.address, "opening the channel again failed");
                sleep(REOPEN).await;
            }
        }
    }

    /// Ready when the channel is of no more use.
    fn poll(&self, cx: &mut Context<'_>, stuck: &mut std::pin::Pin<Box<Sleep>>, mark: &mut Option<u64>) -> Poll<()> {
        self.news.0.register(cx.waker());
        let mut verdicts = Vec::new();
        let flights = &mut Context::from_waker(&self.waker);
        let (broken, pending, base) = {
            let mut state = self.state.lock();
            let State { channel: Some(channel), window, .. } = &mut *state else { return Poll::Ready(()) };
            if !channel.status().connected() {
                return Poll::Ready(());
            }
            window.advance(channel, flights, &mut verdicts);
            (window.is_broken(), window.len(), window.base())
        };
        self.give(verdicts);
        if broken {
            return Poll::Ready(());
        }
        if pending == 0 {
            self.idle.notify_waiters();
        } else if pending > 1 {
            if mark.is_none() {
                *mark = Some(base);
                stuck.as_mut().reset(Instant::now() + STUCK);
            }
            if stuck.as_mut().poll(cx).is_ready() && mark.take() == Some(base) {
                let mut verdicts = Vec::new();
                let mut state = self.state.lock();
                if let State { channel: Some(channel), window, .. } = &mut *state {
                    window.sweep(channel, flights, &mut verdicts);
                }
                let broken = state.window.is_broken();
                drop(state);
                self.give(verdicts);
                if broken {
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }

    fn give(&self, verdicts: Vec<Verdict>) {
        verdicts.into_iter().for_each(Verdict::give);
    }

    /// Lets go of the channel and of what was in flight.
    fn give_up(&self) {
        let mut state = self.state.lock();
        state.channel = None;
        let verdicts = state.window.fail(&mut Context::from_waker(&self.waker));
        drop(state);
        self.give(verdicts);
        self.idle.notify_waiters();
    }
}

#[async_trait]
impl Producer for AmqpProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        let mut verdicts = Vec::new();
        let mut state = self.lane.state.lock();
        let State { channel, window, closed } = &mut *state;
        let refused = if *closed { Some(Error::closed("producer")) } else { None };
        let Some(channel) = channel.as_ref().filter(|_| refused.is_none()) else {
            drop(state);
            done.fail_all(&refused.unwrap_or_else(not_connected).with_operation("send"), batch);
            return;
        };
        window.publish(channel, &mut Context::from_waker(&self.lane.waker), batch, done, &mut verdicts);
        let broken = window.is_broken();
        drop(state);
        if broken {
            self.lane.news.0.wake();
        }
        self.lane.give(verdicts);
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if std::mem::replace(&mut self.lane.state.lock().closed, true) {
            return report;
        }
        loop {
            // Listening before looking, so that nothing is missed.
            let idle = self.lane.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.lane.state.lock().window.len() == 0 || timeout_at(deadline, idle).await.is_err() {
                break;
            }
        }
        drop(self.driver.lock().take());
        let (channel, left) = {
            let mut state = self.lane.state.lock();
            let left = state.window.len();
            (state.channel.take(), left)
        };
        report.unconfirmed = left;
        self.lane.give_up();
        if left > 0 {
            let error = Error::new(ErrorKind::Timeout, "closed before the broker answered");
            report.errors.push(error.with_operation("close").with_outcome(Outcome::Unknown));
        }
        if let Some(channel) = channel
            && channel.status().connected()
        {
            // A broker that does not answer now has nothing that was not counted.
            let until = deadline.max(Instant::now() + REOPEN);
            let _ = within(until, "close", channel.close(200, "OK".into())).await;
        }
        report
    }
}

impl fmt::Debug for AmqpProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpProducer").field("address", &self.lane.address).finish_non_exhaustive()
    }
}

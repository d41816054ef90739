//! Requests where the broker has none of its own: a message, and a reply address for each client.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::line::{END, LIFE, Line};
use super::ways::Ways;
use super::{DEADLINE, late};
use crate::address::Address;
use crate::broker::{Broker, CloseReport};
use crate::client::ClientInner;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::event::Events;
use crate::message::Message;
use crate::observe::Subject;

/// Most requests that wait for a reply.
const MAX_PENDING: usize = 8192;

/// What a client has for its requests and replies; the line is opened by the first request.
pub(crate) struct Desk {
    pub(super) ways: Ways,
    line: Mutex<Option<Arc<Line>>>,
    /// Whoever opens one.
    opening: tokio::sync::Mutex<()>,
    room: Semaphore,
    closing: watch::Sender<bool>,
}

impl Desk {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            ways: Ways::default(),
            line: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
            room: Semaphore::new(MAX_PENDING),
            closing: watch::Sender::new(false),
        })
    }

    /// Resolves when the client begins to close.
    pub(super) async fn closing(&self) {
        // The sender is ours.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Requests fail from now on, those that wait too; replies can still be sent.
    pub(crate) fn begin_close(&self) {
        self.closing.send_replace(true);
    }

    /// Gives the reply address up.
    pub(crate) async fn close(&self, deadline: Instant) -> CloseReport {
        // One that is being opened sees that it is too late.
        let _one = timeout_at(deadline, self.opening.lock()).await;
        let line = self.line.lock().take();
        match line {
            Some(line) => line.end(deadline).await,
            None => CloseReport::default(),
        }
    }

    fn good_line(&self) -> Option<Arc<Line>> {
        self.line.lock().clone().filter(|line| line.is_good())
    }

    /// The reply address. It is opened in a task of its own, so that whoever asks may go away meanwhile.
    async fn line(self: &Arc<Self>, client: &ClientInner) -> Result<Arc<Line>> {
        if let Some(line) = self.good_line() {
            return Ok(line);
        }
        let opening = self.clone().open(client.broker.clone(), client.events.clone());
        let opened = tokio::spawn(opening).await;
        opened.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the reply address was not opened")))
    }

    async fn open(self: Arc<Self>, broker: Arc<dyn Broker>, events: Events) -> Result<Arc<Line>> {
        let _one = self.opening.lock().await;
        if let Some(line) = self.good_line() {
            return Ok(line);
        }
        if *self.closing.borrow() {
            return Err(Error::closed("client"));
        }
        let line = Line::open(broker, events).await?;
        if *self.closing.borrow() {
            line.end(Instant::now() + END).await;
            return Err(Error::closed("client"));
        }
        // One that has been used for long ends with its last request.
        *self.line.lock() = Some(line.clone());
        Ok(line)
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        client: &ClientInner,
        to: &Address,
        mut message: Message,
        timeout: Duration,
    ) -> Result<Message> {
        if timeout > LIFE {
            let error = Error::new(ErrorKind::InvalidInput, "a request waits for too long");
            return Err(error
                .with_context("limit", format!("{LIFE:?}"))
                .with_context("actual", format!("{timeout:?}")));
        }
        let Ok(_room) = self.room.try_acquire() else {
            let error = Error::new(ErrorKind::Throttled, "too many requests wait for a reply");
            return Err(error.with_context("limit", MAX_PENDING));
        };
        let deadline = Instant::now() + timeout;
        let ready = async { tokio::try_join!(self.ways.to(client, to), self.line(client)) };
        let (way, line) = timeout_at(deadline, ready).await.map_err(|_| late(Outcome::NotSent))??;
        Ways::check(&way, &message)?;
        let mut call = line.begin()?;
        let left = deadline.saturating_duration_since(Instant::now());
        let able = way.capabilities();
        if !able.ttl {
            let over = SystemTime::now() + left;
            let millis = over.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
            message = message.header(DEADLINE, i64::try_from(millis).unwrap_or(i64::MAX));
        } else if message.get_ttl().is_none() {
            message = message.ttl(left.min(able.max_ttl));
        }
        message.clear_destination();
        let message = message.correlation_id(call.correlation_id()).reply_to(line.name().to_owned());
        let subject = Subject::address(client.system, to);
        let answer = async {
            tokio::select! {
                // It may be faster than the broker's word for the request.
                reply = call.reply() => return reply,
                sent = self.ways.send(&subject, &way, message) => sent?,
            }
            call.reply().await
        };
        timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(late(Outcome::Unknown)))
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.lock();
        let address = line.as_ref().map(|line| line.name());
        let pending = line.as_ref().map_or(0, |line| line.pending());
        f.debug_struct("Desk").field("replies", &address).field("pending", &pending).finish()
    }
}

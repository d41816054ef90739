//! Requests with replies, over the server's direct reply-to.
//!
//! The server wants a request on the very channel that reads the replies, so there is one channel for all, on the
//! connection that publishes. It is opened for the first request, and again for the first one after it broke.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Connection};
use parking_lot::Mutex;
use queue_core::{Address, Error, ErrorKind, Message, Outcome, Result};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::capability::MAX_TTL;
use crate::convert::{DIRECT_REPLY, Outgoing, incoming, outgoing, short};
use crate::error::{map, not_connected, within};
use crate::link::{Session, Sessions, Task, hang_up, while_up};

/// Most requests that wait for a reply.
const MAX_PENDING: usize = 8192;
/// Requests on their way to the task behind.
const ORDERS: usize = 256;
/// Never written to disk: a request does not outlive whoever asks.
const TRANSIENT: u8 = 1;
const OPERATION: &str = "request";

/// Makes requests and finds whom a reply is for.
pub(crate) struct Requester {
    desk: Arc<Desk>,
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    driver: Mutex<Option<Task>>,
    sessions: Sessions,
    room: Semaphore,
}

/// What the callers and the task behind share.
struct Desk {
    /// Begins every correlation id.
    prefix: String,
    next: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    /// For opening the channel.
    timeout: Duration,
}

struct Pending {
    reply: oneshot::Sender<Result<Message>>,
    /// Whether the request may have left.
    sent: bool,
}

struct Order {
    number: u64,
    to: Address,
    message: Message,
}

/// Forgets a request that nobody waits for any more.
struct Waiting<'a>(&'a Desk, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pending.lock().remove(&self.1);
    }
}

impl Requester {
    pub(crate) fn new(sessions: Sessions, timeout: Duration) -> Self {
        let desk = Desk {
            prefix: format!("{:016x}-", fastrand::u64(..)),
            next: AtomicU64::new(0),
            pending: Mutex::default(),
            timeout,
        };
        Self {
            desk: Arc::new(desk),
            orders: Mutex::new(None),
            driver: Mutex::new(None),
            sessions,
            room: Semaphore::new(MAX_PENDING),
        }
    }

    pub(crate) async fn request(&self, to: &Address, mut message: Message, deadline: Instant) -> Result<Message> {
        if to.is_topic() {
            return Err(Error::unsupported("a request goes to a queue").with_operation(OPERATION));
        }
        if message.get_delay().is_some() {
            return Err(Error::unsupported("a request is not delayed").with_operation(OPERATION));
        }
        message.clear_destination();
        let late = |outcome| {
            let error = Error::new(ErrorKind::Timeout, "no reply before the deadline").with_operation(OPERATION);
            error.with_context("address", to).with_outcome(outcome)
        };
        let Ok(Ok(_room)) = timeout_at(deadline, self.room.acquire()).await else {
            let error = Error::new(ErrorKind::Throttled, "too many requests wait for a reply");
            return Err(error.with_operation(OPERATION).with_context("limit", MAX_PENDING));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(Outcome::NotSent));
        }
        match message.get_ttl() {
            None => message = message.ttl(left.min(MAX_TTL)),
            Some(ttl) if ttl > MAX_TTL => {
                let error = Error::unsupported("the time to live is longer than the server takes");
                let error =
                    error.with_context("limit", format!("{MAX_TTL:?}")).with_context("actual", format!("{ttl:?}"));
                return Err(error.with_operation(OPERATION));
            }
            Some(_) => {}
        }
        let number = self.desk.next.fetch_add(1, Ordering::Relaxed);
        let message = message.correlation_id(format!("{}{number}", self.desk.prefix)).reply_to(DIRECT_REPLY);
        let (reply, replied) = oneshot::channel();
        self.desk.pending.lock().insert(number, Pending { reply, sent: false });
        let waiting = Waiting(&self.desk, number);
        let answer = async {
            let orders = self.orders()?;
            if orders.send(Order { number, to: to.clone(), message }).await.is_err() {
                return Err(Error::closed("broker").with_operation(OPERATION));
            }
            // Without an answer only when the broker is closed.
            replied.await.unwrap_or_else(|_| Err(Error::closed("broker").with_operation(OPERATION)))
        };
        if let Ok(answer) = timeout_at(deadline, answer).await {
            return answer;
        }
        let sent = waiting.0.pending.lock().get(&number).is_some_and(|p| p.sent);
        Err(match sent {
            true => late(Outcome::Unknown),
            false if self.sessions.borrow().is_none() => not_connected().with_operation(OPERATION),
            false => late(Outcome::NotSent),
        })
    }

    /// The way to the task behind, which the first request starts.
    fn orders(&self) -> Result<mpsc::Sender<Order>> {
        let mut orders = self.orders.lock();
        if let Some(orders) = &*orders {
            return if orders.is_closed() {
                Err(Error::closed("broker").with_operation(OPERATION))
            } else {
                Ok(orders.clone())
            };
        }
        let (sender, receiver) = mpsc::channel(ORDERS);
        let task = tokio::spawn(self.desk.clone().drive(self.sessions.clone(), receiver));
        *self.driver.lock() = Some(Task(task));
        *orders = Some(sender.clone());
        Ok(sender)
    }

    /// Fails what waits; nothing new is taken.
    pub(crate) fn close(&self) {
        drop(self.driver.lock().take());
        // A receiver that is gone from the start: whoever asks now is told the same.
        self.orders.lock().get_or_insert_with(|| mpsc::channel(1).0);
        let pending = std::mem::take(&mut *self.desk.pending.lock());
        for one in pending.into_values() {
            let outcome = if one.sent { Outcome::Unknown } else { Outcome::NotSent };
            let _ = one.reply.send(Err(Error::closed("broker").with_operation(OPERATION).with_outcome(outcome)));
        }
    }
}

impl Desk {
    async fn drive(self: Arc<Self>, mut sessions: Sessions, mut orders: mpsc::Receiver<Order>) {
        while let Some(first) = orders.recv().await {
            if !self.waits(first.number) {
                continue;
            }
            match self.open(&mut sessions).await {
                Ok(open) => {
                    let error = self.serve(open, first, &mut orders).await;
                    tracing::debug!(%error, "the channel of the requests broke");
                    self.fail_sent(&error.with_operation(OPERATION).with_outcome(Outcome::Unknown));
                }
                Err(error) => self.fail(first.number, error.with_operation(OPERATION)),
            }
        }
    }

    async fn open(&self, sessions: &mut Sessions) -> Result<Open> {
        let deadline = Instant::now() + self.timeout;
        // One that is lost may not have been noticed yet.
        let lives = |s: &Option<Arc<Session>>| s.as_ref().is_some_and(|s| s.connection.status().connected());
        let session = match timeout_at(deadline, sessions.wait_for(lives)).await {
            Ok(Ok(session)) => session.clone(),
            Ok(Err(_)) => return Err(Error::closed("broker")),
            Err(_) => None,
        };
        let Some(session) = session else { return Err(not_connected()) };
        while_up(sessions, Self::open_on(session, deadline)).await
    }

    async fn open_on(session: Arc<Session>, deadline: Instant) -> Result<Open> {
        refuse_blocked(&session.connection)?;
        let channel = within(deadline, OPERATION, session.connection.create_channel()).await?;
        within(deadline, OPERATION, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(short(DIRECT_REPLY)?, short("")?, options, FieldTable::default());
        let replies = within(deadline, OPERATION, consume).await?;
        Ok(Open { session, channel, replies })
    }

    /// Works until the channel is of no more use, and tells why.
    async fn serve(&self, mut open: Open, first: Order, orders: &mut mpsc::Receiver<Order>) -> Error {
        let mut flights = FuturesUnordered::new();
        let mut next = Some(first);
        loop {
            if let Some(order) = next.take() {
                let number = order.number;
                match self.publish(&open, order) {
                    Ok(Some(flight)) => flights.push(flight),
                    Ok(None) => {}
                    Err(error) => self.fail(number, error.with_operation(OPERATION)),
                }
            }
            tokio::select! {
                reply = open.replies.next() => match reply {
                    Some(Ok(reply)) => match incoming(reply).0 {
                        Ok(reply) => self.answer(reply),
                        Err(undecodable) => tracing::warn!(error = %undecodable.error, "a reply that cannot be read"),
                    },
                    Some(Err(error)) => return map(&error, OPERATION),
                    None => return Error::new(ErrorKind::Connection, "the channel broke"),
                },
                Some((number, confirmed)) = flights.next(), if !flights.is_empty() => {
                    if let Err(error) = self.confirmed(number, confirmed) {
                        return error;
                    }
                }
                // A queue that confirms nothing gets no more: who waited for those may be long gone.
                order = orders.recv(), if flights.len() < MAX_PENDING => match order {
                    Some(order) => next = Some(order),
                    None => return Error::closed("broker"),
                },
            }
        }
    }

    /// Sends a request, unless nobody waits for it any more.
    fn publish(
        &self,
        open: &Open,
        order: Order,
    ) -> Result<Option<impl Future<Output = (u64, lapin::Result<Confirmation>)> + Send + use<>>> {
        refuse_blocked(&open.session.connection)?;
        let frame_max = usize::try_from(open.session.connection.configuration().frame_max()).unwrap_or(usize::MAX);
        let out = outgoing(&order.to, &order.message, None, frame_max)?;
        let Outgoing { exchange, routing_key, properties, delay: None, .. } = out else {
            return Err(Error::unsupported("a request cannot be delayed"));
        };
        match self.pending.lock().get_mut(&order.number) {
            Some(pending) => pending.sent = true,
            None => return Ok(None),
        }
        let (channel, number, payload) = (open.channel.clone(), order.number, order.message.into_payload());
        let properties = properties.with_delivery_mode(TRANSIENT);
        Ok(Some(async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let published = channel.basic_publish(exchange, routing_key, options, &payload, properties).await;
            let confirmed = match published {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (number, confirmed)
        }))
    }

    /// Takes note of what the broker says about a request.
    fn confirmed(&self, number: u64, confirmed: lapin::Result<Confirmation>) -> Result<()> {
        match confirmed {
            Err(error) => return Err(map(&error, OPERATION)),
            Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => {}
            Ok(Confirmation::Nack(None)) => {
                self.fail(number, Error::new(ErrorKind::Rejected, "the queue refused the request"));
            }
            // Which may be the return of another request: it names itself.
            Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
                let address = returned.delivery.routing_key.as_str().to_owned();
                let correlation =
                    returned.delivery.properties.correlation_id().as_ref().map(|id| id.as_str().to_owned());
                if let Some(number) = correlation.and_then(|id| self.number(&id)) {
                    let error = Error::new(ErrorKind::Unroutable, "there is no such queue").with_operation(OPERATION);
                    self.fail(number, error.with_context("address", address));
                }
            }
        }
        Ok(())
    }

    fn number(&self, correlation: &str) -> Option<u64> {
        correlation.strip_prefix(&self.prefix)?.parse().ok()
    }

    fn answer(&self, reply: Message) {
        let number = reply.get_correlation_id().and_then(|id| self.number(id));
        match number.and_then(|number| self.pending.lock().remove(&number)) {
            Some(pending) => drop(pending.reply.send(Ok(reply))),
            None => tracing::debug!("a reply that nobody waits for"),
        }
    }

    fn waits(&self, number: u64) -> bool {
        self.pending.lock().contains_key(&number)
    }

    fn fail(&self, number: u64, error: Error) {
        let pending = self.pending.lock().remove(&number);
        if let Some(pending) = pending {
            let _ = pending.reply.send(Err(error));
        }
    }

    fn fail_sent(&self, error: &Error) {
        let lost: Vec<_> = self.pending.lock().extract_if(|_, pending| pending.sent).collect();
        for (_, pending) in lost {
            let _ = pending.reply.send(Err(error.clone()));
        }
    }
}

struct Open {
    session: Arc<Session>,
    channel: Channel,
    replies: lapin::Consumer,
}

impl Drop for Open {
    fn drop(&mut self) {
        hang_up(&self.channel);
    }
}

/// A blocked connection writes nothing: the request would wait, and go out when nobody waits for it any more.
fn refuse_blocked(connection: &Connection) -> Result<()> {
    if connection.status().blocked() {
        return Err(Error::new(ErrorKind::Throttled, "the broker takes no messages now (memory or disk alarm)"));
    }
    Ok(())
}

impl fmt::Debug for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requester").field("pending", &self.desk.pending.lock().len()).finish_non_exhaustive()
    }
}

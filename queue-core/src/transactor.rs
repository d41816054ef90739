//! The handles of transactions.

use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::address::Address;
use crate::broker::{CloseReport, ProducerOptions};
use crate::client::{Client, ClientInner};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::far;
use crate::producer::Producer;
use crate::topology::{Declare, Entry, Topology};
use crate::transaction::{TransactionOptions, TransactionSession};

#[path = "transactor/open.rs"]
mod open;
#[path = "transactor/transaction.rs"]
mod transaction;

pub use transaction::{Enlist, Transaction};

use open::{Open, Window};

/// Opens a [`Transactor`]; await it.
#[must_use = "a builder does nothing until it is awaited"]
#[derive(Debug)]
pub struct TransactorBuilder {
    client: Client,
    name: String,
    deadline: Duration,
    expires_after: Duration,
    declare: Declare,
}

impl TransactorBuilder {
    pub(crate) fn new(client: Client, name: String) -> Self {
        let TransactionOptions { deadline, expires_after } = TransactionOptions::default();
        Self { client, name, deadline, expires_after, declare: Declare::Create }
    }

    /// How long a begin, the wait for room of a send, a commit or an abort may take. Default: 30 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long a transaction may stay open until the broker gives it up, and with it what a program that died had
    /// open: so long readers may have to wait for what stands behind. Default: 60 s.
    pub fn expires_after(mut self, time: Duration) -> Self {
        self.expires_after = time;
        self
    }

    /// What the first message to an address does about it. Default: creates what is missing.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.declare = declare;
        self
    }

    async fn open(self) -> Result<Transactor> {
        let Self { client, name, deadline, expires_after, declare } = self;
        let inner = client.inner().clone();
        inner.check_open()?;
        if name.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "transactions have a name"));
        }
        for (option, value) in [("deadline", deadline), ("expires_after", expires_after)] {
            if value.is_zero() {
                let why = format!("{option} is more than nothing");
                return Err(Error::new(ErrorKind::InvalidConfig, why).with_context("option", option));
            }
        }
        let session = match inner.broker.transactions() {
            Some(transactions) if inner.broker.capabilities().transactions => {
                transactions.open(&name, &TransactionOptions { deadline, expires_after }).await
            }
            _ => Err(Error::unsupported("this broker has no transactions")),
        };
        let session = session.map_err(|e| e.with_context("transactions", &name))?;
        Ok(Transactor(Arc::new(Shared {
            client: inner,
            session,
            name: name.into(),
            deadline,
            declare,
            producers: Mutex::default(),
            window: Window::new(),
            turn: Arc::new(Semaphore::new(1)),
            runtime: Handle::current(),
        })))
    }
}

impl IntoFuture for TransactorBuilder {
    type Output = Result<Transactor>;
    type IntoFuture = BoxFuture<'static, Result<Transactor>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.open().await.map_err(|e| e.with_operation("open transactions")) })
    }
}

/// What the clones of a transactor and its transactions share.
pub(crate) struct Shared {
    client: Arc<ClientInner>,
    session: Arc<dyn TransactionSession>,
    name: Arc<str>,
    deadline: Duration,
    declare: Declare,
    producers: Mutex<HashMap<Address, Arc<dyn Producer>>>,
    window: Arc<Window>,
    /// One transaction is open at a time.
    turn: Arc<Semaphore>,
    runtime: Handle,
}

impl Shared {
    fn named(&self, error: Error, operation: &'static str) -> Error {
        error.with_operation(operation).with_context("transactions", &self.name)
    }

    fn until(&self) -> Instant {
        far(Instant::now(), self.deadline)
    }

    /// The producer of an address, which is prepared when it is first used.
    async fn producer(&self, to: &Address) -> Result<Arc<dyn Producer>> {
        let mut producers = self.producers.lock().await;
        if let Some(producer) = producers.get(to) {
            return Ok(producer.clone());
        }
        self.client.register_name(to)?;
        self.client.prepare(self.declare, &Topology::from_iter([Entry::new(to.clone())])).await?;
        let options = ProducerOptions {
            deadline: self.deadline,
            events: self.client.events.clone(),
            ..ProducerOptions::default()
        };
        let producer = self.session.producer(to, &options).await?;
        producers.insert(to.clone(), producer.clone());
        Ok(producer)
    }
}

/// Transactions of one name: messages are consumed, others are sent, and both happen or neither does. Cheap to clone.
///
/// One transaction is open at a time; for more at once open more names. A name belongs to one instance of a program and
/// stays the same when it starts again: an instance that opens it shuts out whoever had it before, which is told
/// `Conflict`.
///
/// ```no_run
/// # use queue_core::{Client, Message, Result};
/// # fn invoice(order: &Message) -> Message { order.clone() }
/// # async fn run(client: Client) -> Result<()> {
/// let mut orders = client.receiver("topic:orders").group("billing").await?;
/// let transactions = client.transactions("billing-1").await?;
/// loop {
///     let batch = orders.receive_batch(100).await?;
///     let mut tx = transactions.begin().await?;
///     tx.send_batch("topic:invoices", batch.iter().map(|order| invoice(&order))).await?;
///     tx.ack(batch)?;
///     if let Err(error) = tx.commit().await {
///         // Nothing of it happened, or it is not known; either way what is not done comes again.
///         eprintln!("{error}");
///     }
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Transactor(Arc<Shared>);

impl fmt::Debug for Transactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactor").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Transactor {
    /// Begins a transaction, as soon as the one before is over.
    ///
    /// # Errors
    /// `Conflict`: another instance has opened the name. `Timeout`: the transaction before is still open, or the broker
    /// does not answer before the deadline. `Connection`, `Unauthorized`, `Closed`. Nothing is open then; unless it is
    /// `Conflict` or `Closed` the next call may succeed.
    ///
    /// # Cancel safety
    /// Dropped, nothing stays open.
    pub async fn begin(&self) -> Result<Transaction> {
        let shared = &self.0;
        shared.client.check_open().map_err(|e| shared.named(e, "begin"))?;
        let deadline = shared.until();
        let turn = match timeout_at(deadline, shared.turn.clone().acquire_owned()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(shared.named(Error::closed("transactor"), "begin")),
            Err(_) => {
                let why = "the transaction before is still open";
                return Err(shared.named(Error::new(ErrorKind::Timeout, why), "begin"));
            }
        };
        // In a task of its own: what was begun and is not taken is given up by its drop.
        let begun = shared.clone();
        let begun = shared.runtime.spawn(async move {
            begun.session.begin(deadline).await?;
            Ok(Transaction::new(Open::new(begun, turn)))
        });
        let begun = begun.await.unwrap_or_else(|e| Err(lost(e)));
        begun.map_err(|e: Error| shared.named(e, "begin"))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Begins no more, waits at most this long for the transaction that is open, and gives it up if it is open then.
    /// For every clone. Closing twice is fine.
    pub async fn close(&self, within: Duration) -> CloseReport {
        let deadline = far(Instant::now(), within);
        let _turn = timeout_at(deadline, self.0.turn.acquire()).await;
        self.0.turn.close();
        self.0.session.close(deadline).await
    }
}

/// A task of ours ended before its time.
fn lost(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "the task of the transaction was lost").with_source(error)
}

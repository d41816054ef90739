//! Queues, exchanges and bindings: looking, making, comparing, removing.

mod arguments;
mod declare;
mod kind;
mod known;
mod native;
mod refusal;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind, Queue};
use queue_core::{Address, Entry, Error, ErrorKind, Options, Result};
use tokio::time::Instant;

pub(crate) use self::arguments::of_classic;
pub(crate) use self::known::{Facts, Known, has_priorities};
pub(crate) use self::native::{Arguments, Binding, ExchangeType, Native, QueueType};
#[cfg(feature = "management")]
pub(crate) use self::{arguments::Wanted, declare::shown};

#[cfg(not(feature = "management"))]
use self::arguments::Wanted;
use crate::convert::{arguments as table, short};
use crate::error::within;
use crate::link::Link;
use crate::server::ServerInfo;

/// Matches every routing key on a topic exchange; a fanout exchange looks at none, a headers exchange neither.
const ANY_KEY: &str = "#";
/// The share of a consistent-hash exchange that a queue gets, relative to others.
const ONE_SHARE: &str = "1";

/// Asks on a channel of its own, because a refusal closes the channel.
#[derive(Clone, Copy)]
pub(crate) struct Topologist<'a> {
    pub(crate) link: &'a Link,
    pub(crate) server: &'a ServerInfo,
    /// Arguments of every queue that is made, unless it asks for others.
    pub(crate) defaults: &'a Arguments,
    pub(crate) known: &'a Known,
    pub(crate) deadline: Instant,
}

/// Reads the options of an address.
pub(crate) fn native(address: &Address, options: &Options) -> Result<Native> {
    let native = if address.is_topic() { Native::of_topic(options) } else { Native::of_queue(options) };
    native.map_err(|e| e.with_context("address", address))
}

impl Topologist<'_> {
    async fn channel(&self) -> Result<Channel> {
        self.link.channel(self.deadline).await
    }

    /// The queue, or `NotFound`.
    pub(crate) async fn queue(&self, name: &str) -> Result<Queue> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        self.declare_queue(name, options, FieldTable::default()).await
    }

    /// Fails when a queue or an exchange is known not to exist. It may exist for another connection only; and newer
    /// servers show it to nobody who has no right on it, though for sending to a queue none is needed.
    pub(crate) async fn is_not_missing(&self, address: &Address) -> Result<()> {
        let found = match address.is_topic() {
            true => self.exchange(address.name()).await,
            false => self.queue(address.name()).await.map(|_| ()),
        };
        match found {
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unauthorized) => Ok(()),
            found => found,
        }
    }

    /// The exchange, or `NotFound`.
    pub(crate) async fn exchange(&self, name: &str) -> Result<()> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { passive: true, durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(short(name)?, ExchangeKind::Fanout, options, FieldTable::default());
        within(self.deadline, "declare", declared).await.map_err(|e| e.with_context("exchange", name))
    }

    /// Creates what is missing of an entry, and refuses what differs from what it asks for.
    pub(crate) async fn declare(&self, entry: &Entry) -> Result<()> {
        let native = native(&entry.address, &entry.native)?;
        let name = entry.address.name();
        if entry.address.is_topic() {
            self.declare_exchange(name, &native).await?;
        }
        let Some(queue) = entry.source().queue_name() else { return Ok(()) };
        let wanted = Wanted::new(entry, &native, self.defaults, self.server)?;
        // Looking first would cost a channel for each queue that is to be made; making first does for each that exists
        // and differs, or may not be made.
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        match self.declare_queue(&queue, options, arguments_of(&wanted.all)?).await {
            Ok(_) => self.known.made(&queue, &wanted.all),
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unauthorized) => {
                self.queue(&queue).await.map_err(|missing| or_else(missing, error))?;
                self.compare_queue(&queue, &wanted).await?;
            }
            Err(error) => return Err(error),
        }
        if entry.address.is_topic() {
            let mut binding = native.binding.clone();
            if binding.is_default() {
                // What was said once about this group is not widened by a handle that says nothing.
                binding = self.known.of(&queue).binding.unwrap_or_default();
            } else {
                self.known.bound(&queue, &binding);
            }
            let channel = self.channel().await?;
            bind(&channel, &queue, name, &binding, native.exchange_type, self.deadline).await?;
        }
        Ok(())
    }

    async fn declare_exchange(&self, name: &str, native: &Native) -> Result<()> {
        if native.exchange_type.is_some() || !native.exchange.is_empty() {
            return self.make_exchange(name, native).await;
        }
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(short(name)?, ExchangeKind::Fanout, options, FieldTable::default());
        match within(self.deadline, "declare", declared).await.map_err(|e| e.with_context("exchange", name)) {
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unauthorized) => {
                self.exchange(name).await.map_err(|missing| or_else(missing, error))
            }
            made => made,
        }
    }

    async fn compare_exchange(&self, name: &str, native: &Native) -> Result<()> {
        let asks = native.exchange_type.is_some() || !native.exchange.is_empty();
        if asks { self.make_exchange(name, native).await } else { Ok(()) }
    }

    async fn compare_queue(&self, name: &str, wanted: &Wanted) -> Result<()> {
        if !wanted.asked.is_empty() {
            let found = self.make_queue(name, wanted).await?;
            self.known.made(name, &found);
        } else {
            // To say exactly what it can do, each time, since others may have made it anew; whoever may not read it is
            // none the wiser.
            match self.kind(name).await {
                Ok(kind) => self.known.is_of(name, kind),
                Err(error) => tracing::debug!(%error, queue = name, "the type of the queue is not known"),
            }
        }
        Ok(())
    }

    /// What an entry wants, for who compares it by other means.
    #[cfg(feature = "management")]
    pub(crate) fn wanted(&self, entry: &Entry) -> Result<(Native, Option<Wanted>)> {
        let native = native(&entry.address, &entry.native)?;
        let wanted = match entry.source().queue_name() {
            Some(_) => Some(Wanted::new(entry, &native, self.defaults, self.server)?),
            None => None,
        };
        Ok((native, wanted))
    }

    /// Checks that an entry exists and is what it asks for. Whether a queue is bound cannot be asked.
    pub(crate) async fn verify(&self, entry: &Entry) -> Result<()> {
        let native = native(&entry.address, &entry.native)?;
        if entry.address.is_topic() {
            self.exchange(entry.address.name()).await?;
            self.compare_exchange(entry.address.name(), &native).await?;
        }
        let Some(queue) = entry.source().queue_name() else { return Ok(()) };
        let wanted = Wanted::new(entry, &native, self.defaults, self.server)?;
        self.queue(&queue).await?;
        self.compare_queue(&queue, &wanted).await
    }

    /// Deletes an exchange and these queues, as far as they exist.
    pub(crate) async fn delete(&self, address: &Address, queues: &[String]) -> Result<()> {
        let channel = self.channel().await?;
        if address.is_topic() {
            let name = short(address.name())?;
            missing_is_fine(
                within(self.deadline, "delete", channel.exchange_delete(name, ExchangeDeleteOptions::default())).await,
            )?;
        }
        for queue in queues {
            self.known.forget(queue);
            let deleted = channel.queue_delete(short(queue)?, QueueDeleteOptions::default());
            missing_is_fine(within(self.deadline, "delete", deleted).await.map(|_| ()))?;
        }
        Ok(())
    }

    /// Empties these queues.
    pub(crate) async fn purge(&self, queues: &[String]) -> Result<()> {
        for queue in queues {
            // Asked to purge a stream, the server closes the connection.
            if self.kind(queue).await? == Some(QueueType::Stream) {
                let why = "a stream cannot be purged; its messages go by age and size";
                return Err(Error::unsupported(why).with_operation("purge").with_context("queue", queue));
            }
            let channel = self.channel().await?;
            within(self.deadline, "purge", channel.queue_purge(short(queue)?, QueuePurgeOptions::default()))
                .await
                .map_err(|e| e.with_context("queue", queue))?;
        }
        Ok(())
    }
}

fn arguments_of(arguments: &Arguments) -> Result<FieldTable> {
    table(arguments.iter().map(|(name, value)| (name.as_str(), value.clone())))
}

/// What does not exist could not be made either: the reason for that is of more use.
fn or_else(error: Error, reason: Error) -> Error {
    if error.kind() == ErrorKind::NotFound { reason } else { error }
}

fn missing_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Binds a queue to an exchange, for every message unless keys are given. Bindings of other keys stay.
pub(crate) async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    binding: &Binding,
    kind: Option<ExchangeType>,
    deadline: Instant,
) -> Result<()> {
    let every = match kind {
        Some(ExchangeType::Direct) => None,
        Some(ExchangeType::ConsistentHash) => Some(ONE_SHARE),
        _ => Some(ANY_KEY),
    };
    let mut keys: Vec<&str> = binding.keys.iter().map(String::as_str).collect();
    if keys.is_empty() {
        keys.extend(every);
    }
    if keys.is_empty() {
        let why = "a direct exchange has no key for everything: set `binding_key`";
        return Err(Error::new(ErrorKind::InvalidConfig, why)
            .with_operation("bind")
            .with_context("option", "binding_key")
            .with_context("exchange", exchange));
    }
    let arguments = arguments_of(&binding.arguments)?;
    for key in keys {
        let bound = channel.queue_bind(
            short(queue)?,
            short(exchange)?,
            short(key)?,
            QueueBindOptions::default(),
            arguments.clone(),
        );
        within(deadline, "bind", bound).await.map_err(|e| e.with_context("exchange", exchange))?;
    }
    Ok(())
}

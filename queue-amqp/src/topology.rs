//! Queues, exchanges and bindings: looking, making, removing.

use std::collections::BTreeMap;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind, Queue};
use queue_core::{Address, Entry, Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::convert::{argument, arguments, short};
use crate::error::within;
use crate::link::Link;

/// How many deliveries beyond the library's own limit the broker allows: losses and releases count there too.
const BACKSTOP: u32 = 20;
/// Matches every routing key on a topic exchange; a fanout exchange looks at none.
const ANY_KEY: &str = "#";

/// Asks on a channel of its own, because a refusal closes the channel.
pub(crate) struct Topologist<'a> {
    pub(crate) link: &'a Link,
    pub(crate) deadline: Instant,
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

    /// Whether the queue exists, be it for another connection only.
    pub(crate) async fn queue_exists(&self, name: &str) -> Result<()> {
        match self.queue(name).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn declare_queue(&self, name: &str, options: QueueDeclareOptions, arguments: FieldTable) -> Result<Queue> {
        let channel = self.channel().await?;
        within(self.deadline, "declare", channel.queue_declare(short(name)?, options, arguments))
            .await
            .map_err(|e| e.with_context("queue", name))
    }

    /// The exchange, or `NotFound`.
    pub(crate) async fn exchange(&self, name: &str) -> Result<()> {
        self.declare_exchange(name, true, FieldTable::default()).await
    }

    async fn declare_exchange(&self, name: &str, passive: bool, arguments: FieldTable) -> Result<()> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        within(
            self.deadline,
            "declare",
            channel.exchange_declare(short(name)?, ExchangeKind::Fanout, options, arguments),
        )
        .await
        .map_err(|e| e.with_context("exchange", name))
    }

    /// Creates what is missing of an entry.
    pub(crate) async fn declare(&self, entry: &Entry) -> Result<()> {
        let name = entry.address.name();
        let queue = entry.source().queue_name();
        if entry.address.is_topic() {
            // What the entry asks for in particular concerns the queue, where there is one.
            let native = if queue.is_some() { FieldTable::default() } else { native(&entry.native)? };
            match self.exchange(name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => self.declare_exchange(name, false, native).await?,
                Ok(()) if native != FieldTable::default() => self.declare_exchange(name, false, native).await?,
                other => other?,
            }
        }
        let Some(queue) = queue else { return Ok(()) };
        match self.queue(&queue).await {
            Err(error) if error.kind() == ErrorKind::NotFound => self.create(&queue, entry).await?,
            Ok(_) if !entry.native.is_empty() => self.compare(&queue, entry).await?,
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        if entry.address.is_topic() {
            let channel = self.channel().await?;
            bind(&channel, &queue, name, self.deadline).await?;
        }
        Ok(())
    }

    async fn create(&self, queue: &str, entry: &Entry) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        match self.declare_queue(queue, options, queue_arguments(entry)?).await {
            // Somebody else was faster.
            Err(error) if error.kind() == ErrorKind::Conflict => self.compare(queue, entry).await,
            other => other.map(|_| ()),
        }
    }

    /// Refuses an existing queue when one of the arguments that the entry names is what the server finds to differ.
    async fn compare(&self, queue: &str, entry: &Entry) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        match self.declare_queue(queue, options, queue_arguments(entry)?).await {
            Err(error)
                if error.kind() == ErrorKind::Conflict
                    && !entry.native.keys().any(|name| error.message().contains(&format!("'{name}'"))) =>
            {
                tracing::debug!(%error, "taken as it is");
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// Checks that an entry exists.
    pub(crate) async fn verify(&self, entry: &Entry) -> Result<()> {
        if entry.address.is_topic() {
            self.exchange(entry.address.name()).await?;
        }
        match entry.source().queue_name() {
            Some(queue) => self.queue(&queue).await.map(|_| ()),
            None => Ok(()),
        }
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
            let deleted = channel.queue_delete(short(queue)?, QueueDeleteOptions::default());
            missing_is_fine(within(self.deadline, "delete", deleted).await.map(|_| ()))?;
        }
        Ok(())
    }

    /// Empties these queues.
    pub(crate) async fn purge(&self, queues: &[String]) -> Result<()> {
        let channel = self.channel().await?;
        for queue in queues {
            within(self.deadline, "purge", channel.queue_purge(short(queue)?, QueuePurgeOptions::default()))
                .await
                .map_err(|e| e.with_context("queue", queue))?;
        }
        Ok(())
    }
}

fn missing_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Binds a queue to an exchange for every message.
pub(crate) async fn bind(channel: &Channel, queue: &str, exchange: &str, deadline: Instant) -> Result<()> {
    let (queue, source) = (short(queue)?, short(exchange)?);
    within(
        deadline,
        "bind",
        channel.queue_bind(queue, source, short(ANY_KEY)?, QueueBindOptions::default(), FieldTable::default()),
    )
    .await
    .map_err(|e| e.with_context("exchange", exchange))
}

fn native(options: &BTreeMap<String, String>) -> Result<FieldTable> {
    arguments(options.iter().map(|(name, value)| (name.as_str(), argument(value))))
}

/// The arguments of a queue that is created for an entry.
fn queue_arguments(entry: &Entry) -> Result<FieldTable> {
    let mut table = arguments([("x-queue-type", AMQPValue::LongString("quorum".into()))])?;
    if let Some(address) = &entry.dead_letter {
        table.insert(short("x-dead-letter-exchange")?, AMQPValue::LongString("".into()));
        table.insert(short("x-dead-letter-routing-key")?, AMQPValue::LongString(address.name().into()));
        if let Some(most) = entry.max_deliveries {
            table.insert(short("x-delivery-limit")?, AMQPValue::LongLongInt(most.saturating_add(BACKSTOP).into()));
        }
    }
    if let Some(kept) = entry.retention {
        let millis = i64::try_from(kept.as_millis()).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "the retention is too long").with_context("queue", entry.address.name())
        })?;
        table.insert(short("x-message-ttl")?, AMQPValue::LongLongInt(millis));
    }
    if let Some(copies) = entry.replication {
        table.insert(short("x-quorum-initial-group-size")?, AMQPValue::LongLongInt(copies.into()));
    }
    for (name, value) in native(&entry.native)?.inner() {
        table.insert(name.clone(), value.clone());
    }
    // A classic queue counts no deliveries.
    if entry.native.get("x-queue-type").is_some_and(|kind| kind != "quorum") {
        let quorums = ["x-delivery-limit", "x-quorum-initial-group-size"];
        let kept = table
            .inner()
            .iter()
            .filter(|(name, _)| entry.native.contains_key(name.as_str()) || !quorums.contains(&name.as_str()));
        table = kept.map(|(n, v)| (n.clone(), v.clone())).collect::<BTreeMap<_, _>>().into();
    }
    Ok(table)
}

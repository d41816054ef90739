//! Topics: made, checked, emptied and removed.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use queue_core::{Address, Entry, Error, ErrorKind, Result, Topology};
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::{Instant, sleep, timeout};

use crate::config::Settings;
use crate::consumer::group_of;
use crate::error;
use crate::lanes::Tier;
use crate::link::{Link, Partition, retire};
use crate::monitor::Watch;

/// Between two looks at what a change came to.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Request timeouts that may pass until a topic that was made has leaders, or one that was deleted is gone. The controller
/// answers at once and the brokers follow: a busy one took 17 s for 2,400 partitions.
const UNTIL_SEEN: u32 = 3;
/// How long the records of a tier stay when they are due: as long as Kafka keeps records by default.
const TIER_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// What the topic of a tier has from the topic itself, so that it takes what that takes, and keeps it as well.
const TIER_INHERITS: [&str; 2] = ["max.message.bytes", "min.insync.replicas"];
/// The longest name of a topic.
const MAX_NAME: usize = 249;

/// The topic of an address.
///
/// # Errors
/// `InvalidInput` when Kafka has no such names.
pub(crate) fn topic_of(address: &Address) -> Result<&str> {
    let name = address.name();
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.len() <= MAX_NAME && name.chars().all(legal) && name != "." && name != ".." {
        return Ok(name);
    }
    Err(Error::new(ErrorKind::InvalidInput, "the name of a topic has at most 249 letters, digits and ._-")
        .with_context("address", address))
}

/// The client for changes, made when it is first needed.
pub(crate) struct Admin {
    client: Mutex<Option<Arc<AdminClient<Watch>>>>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.close();
    }
}

impl Admin {
    pub(crate) fn new() -> Self {
        Self { client: Mutex::new(None) }
    }

    pub(crate) fn close(&self) {
        if let Some(client) = self.client.lock().take() {
            retire(client);
        }
    }

    fn client(&self, settings: &Settings, link: &Link) -> Result<Arc<AdminClient<Watch>>> {
        let mut client = self.client.lock();
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        if settings.has_tokens() {
            // The client's own queue, with the question for a token, is served by nobody, and cannot be from here.
            return Err(Error::unsupported("topics cannot be made, changed or compared over a login with a token")
                .with_context("advice", "make them by other means, and set declare to verify or assume"));
        }
        let mut config = settings.client()?;
        // Nobody takes this client's log, so none may pile up.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let made = AdminClient::from_config_and_context(&config, Watch(link.monitor().clone()))
            .map_err(|e| error::of_config(&e))?;
        Ok(client.insert(Arc::new(made)).clone())
    }

    /// Creates what is missing.
    pub(crate) async fn declare(&self, settings: &Settings, link: &Link, topology: &Topology) -> Result<()> {
        for entry in topology.entries() {
            let topic = topic_of(&entry.address)?;
            match link.topic(topic, "declare").await? {
                Some(found) => self.compare(settings, link, entry, &found, "declare").await?,
                None => {
                    if !self.create(settings, link, entry).await? {
                        let found = link.existing(topic, "declare").await?;
                        self.compare(settings, link, entry, &found, "declare").await?;
                    }
                }
            }
            for tier in tiers(settings, entry)? {
                self.declare_tier(settings, link, topic, &tier).await?;
            }
        }
        Ok(())
    }

    /// Creates the topic of a tier like the topic itself, where it is missing and the broker lets us; without it, retries
    /// wait in memory.
    async fn declare_tier(&self, settings: &Settings, link: &Link, topic: &str, tier: &Tier) -> Result<()> {
        let made = async {
            if link.topic(&tier.topic, "declare").await?.is_some() {
                return Ok(());
            }
            let partitions = link.existing(topic, "declare").await?;
            let mut entry = Entry::new(tier.address());
            entry.partitions = u32::try_from(partitions.len()).ok();
            entry.replication = partitions.first().and_then(|p| u16::try_from(p.replicas).ok());
            entry.retention = Some(tier.delay + TIER_RETENTION);
            let config = self.described(settings, link, topic, "declare").await?;
            for key in TIER_INHERITS {
                let value = config.get(key).and_then(|e| e.value.clone());
                entry.native.extend(value.map(|value| (key.to_owned(), value)));
            }
            self.create(settings, link, &entry).await.map(drop)
        };
        match made.await {
            Err(error) if error.kind() == ErrorKind::Unauthorized => {
                tracing::warn!(topic = tier.topic, %error, "the topic of a tier cannot be made");
                Ok(())
            }
            other => other,
        }
    }

    pub(crate) async fn verify(&self, settings: &Settings, link: &Link, topology: &Topology) -> Result<()> {
        for entry in topology.entries() {
            let found = link.existing(topic_of(&entry.address)?, "verify").await?;
            self.compare(settings, link, entry, &found, "verify").await?;
            for tier in tiers(settings, entry)? {
                link.existing(&tier.topic, "verify").await?;
            }
        }
        Ok(())
    }

    /// Makes the topic and waits until it can be used; false when somebody else made it meanwhile.
    async fn create(&self, settings: &Settings, link: &Link, entry: &Entry) -> Result<bool> {
        let within = settings.config.request_timeout;
        let name = topic_of(&entry.address)?;
        let bad = |what: &'static str| Error::new(ErrorKind::InvalidInput, what).with_operation("declare");
        let partitions = entry.partitions.unwrap_or(settings.config.partitions.get());
        let partitions =
            i32::try_from(partitions).ok().filter(|p| *p > 0).ok_or_else(|| bad("a topic has partitions"))?;
        let replication = entry.replication.map_or(-1, i32::from);
        let asked = asked_config(entry);
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        if !entry.address.is_topic() && !asked.iter().any(|(key, _)| *key == "retention.ms") {
            // What waits in a queue does not go away by itself.
            topic = topic.set("retention.ms", "-1");
        }
        for (key, value) in &asked {
            topic = topic.set(key, value);
        }
        let client = self.client(settings, link)?;
        let results = bounded(within, "declare", client.create_topics([&topic], &options(within))).await?;
        let ours = match results.into_iter().next() {
            Some(Err((_, Code::TopicAlreadyExists))) => false,
            Some(Err((_, code))) => return Err(error::of_code(code, "declare").with_context("topic", name)),
            _ => true,
        };
        let wanted = usize::try_from(partitions).unwrap_or(0);
        until(within * UNTIL_SEEN, "declare", "the topic is made and has no leaders yet", || async {
            let found = link.topic(name, "declare").await?;
            // One that somebody else just made may not be told of yet either.
            Ok(found.is_some_and(|p| (!ours || p.len() == wanted) && p.iter().all(|p| p.has_leader)))
        })
        .await?;
        Ok(ours)
    }

    /// Refuses a topic that is not what the entry asks for.
    async fn compare(
        &self,
        settings: &Settings,
        link: &Link,
        entry: &Entry,
        found: &[Partition],
        operation: &'static str,
    ) -> Result<()> {
        let name = topic_of(&entry.address)?;
        let conflict = |what: &str, asked: &dyn fmt::Display, found: &dyn fmt::Display| {
            Error::new(ErrorKind::Conflict, format!("the topic exists with another {what}"))
                .with_operation(operation)
                .with_context("topic", name)
                .with_context("asked", asked)
                .with_context("found", found)
        };
        if let Some(asked) = entry.partitions
            && usize::try_from(asked).ok() != Some(found.len())
        {
            return Err(conflict("number of partitions", &asked, &found.len()));
        }
        let replicas = found.first().map_or(0, |p| p.replicas);
        if let Some(asked) = entry.replication
            && usize::from(asked) != replicas
        {
            return Err(conflict("replication", &asked, &replicas));
        }
        let asked = asked_config(entry);
        if asked.is_empty() {
            return Ok(());
        }
        let config = self.described(settings, link, name, operation).await?;
        for (key, value) in &asked {
            let found = config.get(key).and_then(|e| e.value.as_deref());
            if found != Some(value.as_str()) {
                return Err(conflict(&format!("`{key}`"), value, &found.unwrap_or("nothing")));
            }
        }
        Ok(())
    }

    /// The configuration of a topic.
    async fn described(
        &self,
        settings: &Settings,
        link: &Link,
        name: &str,
        operation: &'static str,
    ) -> Result<ConfigResource> {
        let within = settings.config.request_timeout;
        let client = self.client(settings, link)?;
        let resource = ResourceSpecifier::Topic(name);
        let described = bounded(within, operation, client.describe_configs([&resource], &options(within))).await?;
        match described.into_iter().next() {
            Some(Ok(config)) => Ok(config),
            Some(Err(code)) => Err(error::of_code(code, operation).with_context("topic", name)),
            None => Err(Error::new(ErrorKind::Internal, "no answer about the topic").with_operation(operation)),
        }
    }

    /// Deletes the topic and waits until it is gone.
    pub(crate) async fn delete(&self, settings: &Settings, link: &Link, address: &Address) -> Result<()> {
        let within = settings.config.request_timeout;
        let name = topic_of(address)?;
        let client = self.client(settings, link)?;
        let results = bounded(within, "delete", client.delete_topics(&[name], &options(within))).await?;
        match results.into_iter().next() {
            Some(Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic))) => return Ok(()),
            Some(Err((_, code))) => return Err(error::of_code(code, "delete").with_context("topic", name)),
            _ => {}
        }
        until(within * UNTIL_SEEN, "delete", "the topic is deleted and still shows", || async {
            Ok(link.topic(name, "delete").await?.is_none())
        })
        .await
    }

    /// Deletes every record that is there now.
    pub(crate) async fn purge(&self, settings: &Settings, link: &Link, address: &Address) -> Result<()> {
        let within = settings.config.request_timeout;
        let name = topic_of(address)?;
        let mut list = TopicPartitionList::new();
        for partition in link.existing(name, "purge").await? {
            list.add_partition_offset(name, partition.id, Offset::End).map_err(|e| error::of(e, "purge"))?;
        }
        let client = self.client(settings, link)?;
        let result = bounded(within, "purge", client.delete_records(&list, &options(within))).await?;
        for element in result.elements() {
            element.error().map_err(|e| error::of(e, "purge").with_context("topic", name))?;
        }
        Ok(())
    }
}

/// The tiers of an entry that a receiver reads.
fn tiers(settings: &Settings, entry: &Entry) -> Result<Vec<Tier>> {
    let source = entry.source();
    match group_of(&source) {
        Some(group) if entry.max_deliveries.is_some() => {
            Tier::all(topic_of(&entry.address)?, group, &settings.retry_tiers)
        }
        _ => Ok(Vec::new()),
    }
}

/// What the entry asks of the topic's configuration.
fn asked_config(entry: &Entry) -> Vec<(&str, String)> {
    let retention = entry.retention.map(|r| ("retention.ms", r.as_millis().to_string()));
    let native = entry.native.iter().map(|(key, value)| (key.as_str(), value.clone()));
    retention.into_iter().chain(native).collect()
}

fn options(within: Duration) -> AdminOptions {
    AdminOptions::new().request_timeout(Some(within)).operation_timeout(Some(within))
}

async fn bounded<T>(
    within: Duration,
    operation: &'static str,
    request: impl Future<Output = Result<T, KafkaError>>,
) -> Result<T> {
    match timeout(within + Duration::from_secs(1), request).await {
        Ok(answer) => answer.map_err(|e| error::of(e, operation)),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the broker did not answer in time").with_operation(operation)),
    }
}

/// Looks until it is so, or the time is over.
async fn until<F: Future<Output = Result<bool>>>(
    within: Duration,
    operation: &'static str,
    otherwise: &'static str,
    mut look: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + within;
    while !look().await? {
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Timeout, otherwise).with_operation(operation));
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

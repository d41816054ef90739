//! What should exist: queues are created, or compared with what was asked for.

mod native;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{Entry, Error, ErrorKind, Options, Result, Topology};

pub(crate) use self::native::Native;
use self::native::{POLICY, REDRIVE, RETENTION, Untold, same, untold};
use crate::address::{is_fifo, name_of, place, queue_of, topic_name_of};
use crate::queues::Queues;
use crate::topics::{self, Topics};

/// Receives beyond `max_deliveries` before the broker's own redrive takes a message: those of crashes, releases and
/// prefetched messages count as well, and the library is to be first.
const BACKSTOP: u32 = 10;
/// The most receives that a redrive policy takes.
const MAX_RECEIVES: u32 = 1000;
/// Failed deliveries before the library dead-letters, where the entry does not say.
const MAX_DELIVERIES: u32 = 5;
/// How long a dead-letter queue that we create keeps its messages: the longest there is, 14 days.
const DEAD_LETTER_RETENTION: &str = "1209600";
/// What is shown as found where the queue has none.
pub(crate) const NONE: &str = "none";

/// What a queue is made with beside what was asked for.
#[derive(Default)]
struct Made<'a> {
    /// Whether it takes dead letters.
    keeps_long: bool,
    /// The queue that takes its dead letters, and how many deliveries fail before.
    dead_letter: Option<(&'a str, Option<u32>)>,
    /// The topic that it gets messages from.
    topic: Option<(&'a Topics, &'a str)>,
}

/// Creates what is missing, or checks only.
pub(crate) async fn declare(queues: &Queues, topics: Option<&Topics>, topology: &Topology, create: bool) -> Result<()> {
    let entries = topology.entries();
    let graves = entries.iter().filter_map(|e| e.dead_letter.as_ref()).map(name_of);
    let graves: BTreeSet<&str> = graves.collect::<Result<_>>()?;
    let mut ready = BTreeSet::new();
    for entry in entries {
        let mut topic = None;
        if entry.address.is_topic() {
            let topics = topics.ok_or_else(|| topics::unsupported().with_context("address", &entry.address))?;
            let name = topic_name_of(&entry.address)?;
            if entry.group.is_none() {
                bare(entry)?;
            }
            topics.ensure(name, create).await?;
            if entry.group.is_none() {
                continue;
            }
            topic = Some((topics, name));
        }
        let name = &*queue_of(&entry.source())?;
        let wanted = asked(entry)?;
        let mut made = Made { keeps_long: graves.contains(name), topic, ..Made::default() };
        if let Some(dead_letter) = &entry.dead_letter {
            let target = name_of(dead_letter)?;
            if is_fifo(target) != is_fifo(name) {
                return Err(Error::new(ErrorKind::InvalidInput, "the dead letters of a FIFO queue go to a FIFO queue")
                    .with_context("address", target));
            }
            // Most often an entry before this one.
            if !ready.contains(target) {
                let grave = Made { keeps_long: true, ..Made::default() };
                // With what its own entry asks for, which comes later.
                let own = entries.iter().find(|other| other.address == *dead_letter).map(asked).transpose()?;
                ensure(queues, target, create, &own.unwrap_or_default(), grave).await?;
                ready.insert(target.to_owned());
            }
            made.dead_letter = Some((target, entry.max_deliveries));
        }
        ensure(queues, name, create, &wanted, made).await?;
        if let Some((topics, topic)) = topic {
            topics.subscribe(queues, topic, name, create).await?;
        }
        ready.insert(name.to_owned());
    }
    Ok(())
}

/// Refuses what is asked of a topic and not of a group.
fn bare(entry: &Entry) -> Result<()> {
    no_options(&entry.native)?;
    let asked = [
        ("retention", entry.retention.is_some()),
        ("dead_letter", entry.dead_letter.is_some()),
        ("max_deliveries", entry.max_deliveries.is_some()),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((option, _)) => Err(of_groups(option).with_context("address", &entry.address)),
    }
}

/// Refuses options for a topic: it has none here, its groups' queues have.
pub(crate) fn no_options(options: &Options) -> Result<()> {
    match options.keys().next() {
        None => Ok(()),
        Some(option) => Err(of_groups(option)),
    }
}

fn of_groups(option: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, "a topic of SNS takes no options; the queues of its groups do")
        .with_operation("configure")
        .with_context("option", option)
}

/// What an entry asks for explicitly.
fn asked(entry: &Entry) -> Result<Native> {
    let mut asked = Native::of_queue(&entry.native, is_fifo(entry.address.name()))?;
    if let Some(retention) = entry.retention {
        let seconds = retention.as_secs();
        if !(60..=1_209_600).contains(&seconds) {
            return Err(Error::new(ErrorKind::InvalidInput, "an SQS queue keeps messages for 60 s to 14 days")
                .with_context("address", &entry.address)
                .with_context("retention", format!("{retention:?}")));
        }
        asked.attributes.insert(RETENTION.to_owned(), seconds.to_string());
    }
    Ok(asked)
}

/// Compares a queue with what is asked of it, and creates it if it is missing.
async fn ensure(queues: &Queues, name: &str, create: bool, asked: &Native, made: Made<'_>) -> Result<()> {
    match queues.find(name).await {
        Ok(_) => match compare(queues, name, asked).await {
            // It was there a moment ago.
            Err(error) if create && error.kind() == ErrorKind::NotFound => {}
            other => return other,
        },
        Err(error) if create && error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(account) = queues.account_of(name) {
        let why = "the queue does not exist, and none is made in an account that is named: its owner makes it";
        return Err(Error::new(ErrorKind::NotFound, why)
            .with_operation("declare")
            .with_context("address", name)
            .with_context("account", account));
    }
    let native = complete(queues, name, asked, made).await?;
    match queues.create(name, &native.attributes, &native.tags).await {
        // Somebody else made it in between.
        Err(error) if error.context("code").is_some_and(exists) && queues.url(name).await.is_ok() => {
            compare(queues, name, asked).await
        }
        other => other,
    }
}

fn exists(code: &str) -> bool {
    matches!(code, "QueueNameExists" | "QueueAlreadyExists")
}

/// All that a queue is created with.
async fn complete(queues: &Queues, name: &str, asked: &Native, made: Made<'_>) -> Result<Native> {
    let mut native = asked.clone();
    if made.keeps_long {
        native.attributes.entry(RETENTION.to_owned()).or_insert_with(|| DEAD_LETTER_RETENTION.to_owned());
    }
    native.add_missing(&queues.defaults, is_fifo(name));
    if let Some((target, max_deliveries)) = made.dead_letter.filter(|_| !native.attributes.contains_key(REDRIVE)) {
        let policy = redrive_policy(queues, target, max_deliveries).await?;
        native.attributes.insert(REDRIVE.to_owned(), policy);
    }
    if let Some((topics, topic)) = made.topic {
        let asked = native.attributes.get(POLICY).map(String::as_str);
        if let Some(policy) = topics.policy_of_new(topic, name, asked).await? {
            native.attributes.insert(POLICY.to_owned(), policy);
        }
    }
    if is_fifo(name) {
        for (attribute, value) in [("FifoQueue", "true"), ("ContentBasedDeduplication", "false")] {
            native.attributes.insert(attribute.to_owned(), value.to_owned());
        }
    }
    Ok(native)
}

async fn redrive_policy(queues: &Queues, target: &str, max_deliveries: Option<u32>) -> Result<String> {
    let arn = if place(target).is_some_and(|place| place.is_arn) {
        target.to_owned()
    } else {
        let mut attributes = queues.attributes(target, &[Attribute::QueueArn]).await?;
        attributes.remove(&Attribute::QueueArn).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the broker does not tell the ARN of the dead-letter queue")
                .with_context("address", target)
        })?
    };
    let receives = max_deliveries.unwrap_or(MAX_DELIVERIES).saturating_add(BACKSTOP).min(MAX_RECEIVES);
    Ok(format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":"{receives}"}}"#))
}

/// Refuses a queue that differs from what was asked for explicitly, as far as the broker tells. What was not asked for
/// is taken as it is, and nothing is asked of the broker for it.
async fn compare(queues: &Queues, name: &str, asked: &Native) -> Result<()> {
    if !asked.attributes.is_empty() {
        let present = queues.attributes(name, &[Attribute::All]).await?;
        for (attribute, wanted) in &asked.attributes {
            let found = present.get(&Attribute::from(attribute.as_str())).map(String::as_str);
            let fits = match found {
                _ if attribute == POLICY => same_policy(found, wanted),
                Some(found) => same(found, wanted),
                None => untold(attribute) == Untold::Unknown || wanted == "false",
            };
            if !fits {
                return Err(differs(name, attribute, wanted, found));
            }
        }
    }
    if !asked.tags.is_empty() {
        let present: HashMap<String, String> = queues.tags(name).await?;
        for (tag, wanted) in &asked.tags {
            let found = present.get(tag).map(String::as_str);
            if found != Some(wanted) {
                return Err(differs(name, &format!("tag.{tag}"), wanted, found));
            }
        }
    }
    Ok(())
}

/// Whether a policy says what was asked for, beside what lets a topic send, which was added.
fn same_policy(found: Option<&str>, wanted: &str) -> bool {
    match (found.and_then(topics::without_ours), topics::without_ours(wanted)) {
        (Some(found), Some(wanted)) => same(&found, &wanted),
        (found, wanted) => found == wanted,
    }
}

fn differs(name: &str, option: &str, asked: &str, found: Option<&str>) -> Error {
    Error::new(ErrorKind::Conflict, "the queue exists and differs from what was asked for")
        .with_operation("declare")
        .with_context("address", name)
        .with_context("option", option)
        .with_context("asked", asked)
        .with_context("found", found.unwrap_or(NONE))
}

/// Names and values, as the SDK takes them.
pub(crate) fn attributes(of: &BTreeMap<String, String>) -> Option<HashMap<Attribute, String>> {
    let map = || of.iter().map(|(name, value)| (Attribute::from(name.as_str()), value.clone())).collect();
    (!of.is_empty()).then(map)
}

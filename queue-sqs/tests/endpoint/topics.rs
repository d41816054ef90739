//! Topics: what is published goes to the queues that subscribe, where their policies let it in.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::account::{self, State};
use super::entry::Entry;
use super::refusal::Refusal;

const ARN: &str = "arn:aws:sns:us-east-1:000000000000:";
/// How long a deduplication id is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
/// The most bytes of a message, and of a request.
pub const MAX_BYTES: usize = 262_144;
/// What a queue takes of attributes: a message with more is not delivered raw.
const MAX_ATTRIBUTES: usize = 10;

#[derive(Debug, Default)]
pub struct Topic {
    pub attributes: BTreeMap<String, String>,
    pub subscriptions: Vec<Subscription>,
    remembered: HashMap<String, (Instant, String)>,
    sequence: u64,
}

#[derive(Debug)]
pub struct Subscription {
    pub arn: String,
    /// The ARN of the queue.
    pub endpoint: String,
    /// The owner of the queue has subscribed it, or said yes.
    pub confirmed: bool,
    pub attributes: BTreeMap<String, String>,
}

impl Topic {
    pub fn new(attributes: BTreeMap<String, String>) -> Self {
        Self { attributes, ..Self::default() }
    }
}

pub fn arn(name: &str) -> String {
    format!("{ARN}{name}")
}

pub fn is_fifo(arn: &str) -> bool {
    arn.ends_with(".fifo")
}

/// Takes a message, and gives it to every queue that subscribes; its id and sequence number.
pub fn publish(state: &mut State, arn: &str, entry: Entry, now: Instant) -> Result<(String, Option<String>), Refusal> {
    let fifo = is_fifo(arn);
    let topic = state.topics.get_mut(arn).ok_or_else(no_topic)?;
    check(&entry, fifo)?;
    let id = uuid::Uuid::now_v7().to_string();
    if let Some(deduplication) = entry.message_deduplication_id.clone().filter(|_| fifo) {
        topic.remembered.retain(|_, (at, _)| *at + REMEMBERED > now);
        if let Some((_, known)) = topic.remembered.get(&deduplication) {
            return Ok((known.clone(), Some(topic.sequence.to_string())));
        }
        topic.remembered.insert(deduplication, (now, id.clone()));
    }
    topic.sequence += 1;
    let sequence = fifo.then(|| topic.sequence.to_string());
    for subscription in &topic.subscriptions {
        let raw = subscription.attributes.get("RawMessageDelivery").is_some_and(|raw| raw == "true");
        let name = account::name_of_arn(&subscription.endpoint).unwrap_or_default();
        let Some(queue) = state.queues.get_mut(name).filter(|_| subscription.confirmed) else { continue };
        let policy = queue.attributes.get("Policy").unwrap_or_default();
        let allowed = policy.contains("sqs:SendMessage") && policy.contains(arn);
        if !allowed || (raw && entry.message_attributes.len() > MAX_ATTRIBUTES) {
            continue;
        }
        let mut entry = entry.clone();
        if !raw {
            let envelope = json!({ "Type": "Notification", "TopicArn": arn, "Message": entry.message_body });
            entry.message_body = envelope.to_string();
            entry.message_attributes.clear();
        }
        if !queue.fifo {
            entry.message_deduplication_id = None;
        }
        queue.send(entry, now);
    }
    Ok((id, sequence))
}

fn check(entry: &Entry, fifo: bool) -> Result<(), Refusal> {
    let refused = |why: &str| Err(Refusal::new("InvalidParameter", format!("Invalid parameter: {why}")));
    if entry.size() > MAX_BYTES {
        return refused("Message too long");
    }
    if fifo && entry.message_group_id.is_none() {
        return refused("The MessageGroupId parameter is required for FIFO topics");
    }
    if fifo && entry.message_deduplication_id.is_none() {
        let why = "The topic should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided";
        return refused(why);
    }
    // More attributes than a queue takes are welcome here.
    let within = entry.message_attributes.iter().take(MAX_ATTRIBUTES);
    let within = Entry { message_attributes: within.map(|(n, a)| (n.clone(), a.clone())).collect(), ..entry.clone() };
    within.check(fifo, false, MAX_BYTES).map_err(|refusal| Refusal::new("InvalidParameter", refusal.message))
}

pub fn no_topic() -> Refusal {
    Refusal { status: 404, ..Refusal::new("NotFound", "Topic does not exist") }
}

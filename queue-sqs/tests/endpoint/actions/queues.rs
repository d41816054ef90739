//! Queues: made, described, emptied, deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::account::{self, Account};
use super::super::attributes::{self, Attributes, OWN};
use super::super::queue::Queue;
use super::super::refusal::Refusal;

/// How long a name is taken after its queue was deleted, and a queue is not purged again.
const PAUSE: Duration = Duration::from_secs(60);
/// The longest name.
const MAX_NAME: usize = 80;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default, alias = "tags")]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    attribute_names: Vec<String>,
}

pub fn create(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let name = super::text(request, "QueueName")?;
    let said: Said = super::read(request)?;
    let fifo = name.ends_with(".fifo");
    let stem = name.strip_suffix(".fifo").unwrap_or(name);
    let legal = !stem.is_empty()
        && name.len() <= MAX_NAME
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !legal || fifo != (said.attributes.get("FifoQueue").is_some_and(|v| v == "true")) {
        let why = "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length";
        return Err(Refusal::invalid("QueueName", name, why));
    }
    let (now, mut state) = (account.now(), account.state());
    if let Some(queue) = state.queues.get(name) {
        if queue.attributes.has(&said.attributes) {
            return Ok(json!({ "QueueUrl": account.url(name) }));
        }
        let why = "A queue already exists with the same name and a different value for an attribute.";
        return Err(Refusal::new("QueueNameExists", why));
    }
    if state.deleted.get(name).is_some_and(|at| now < *at + PAUSE) {
        let why = "You must wait 60 seconds after deleting a queue before you can create another with the same name.";
        return Err(Refusal::new("QueueDeletedRecently", why));
    }
    let mut attributes = Attributes::default();
    attributes.set(&said.attributes, fifo)?;
    let mut queue = Queue::new(name.to_owned(), attributes, now);
    queue.tags = said.tags;
    state.queues.insert(name.to_owned(), queue);
    Ok(json!({ "QueueUrl": account.url(name) }))
}

pub fn url(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let name = super::text(request, "QueueName")?;
    match account.state().queues.contains_key(name) {
        true => Ok(json!({ "QueueUrl": match super::text(request, "QueueOwnerAWSAccountId") {
            Ok(id) => account.url_in(id, name),
            Err(_) => account.url(name),
        } })),
        false => Err(Refusal::no_queue()),
    }
}

pub fn attributes(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let wanted = super::read::<Said>(request)?.attribute_names;
    if let Some(name) = wanted.iter().find(|name| *name != "All" && !attributes::is_known(name)) {
        return Err(Refusal::new("InvalidAttributeName", format!("Unknown Attribute {name}.")));
    }
    let (now, mut state) = (account.now(), account.state());
    let (queue, _) = state.queue(request)?;
    let [visible, in_flight, delayed] = queue.numbers(now);
    let seconds = |at| (account.clock().unix_millis(at) / 1000).to_string();
    let own = [
        visible.to_string(),
        delayed.to_string(),
        in_flight.to_string(),
        seconds(queue.created),
        seconds(queue.modified),
        account::arn_at(super::text(request, "QueueUrl")?),
    ];
    let mut all = queue.attributes.all();
    all.extend(OWN.iter().map(|name| (*name).to_owned()).zip(own));
    all.retain(|name, value| !value.is_empty() && wanted.iter().any(|w| w == "All" || w == name));
    Ok(if all.is_empty() { json!({}) } else { json!({ "Attributes": all }) })
}

pub fn set_attributes(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let said: Said = super::read(request)?;
    let (now, mut state) = (account.now(), account.state());
    let (queue, _) = state.queue(request)?;
    let fifo = queue.fifo;
    queue.attributes.set(&said.attributes, fifo)?;
    queue.modified = now;
    Ok(json!({}))
}

pub fn delete(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let (now, mut state) = (account.now(), account.state());
    let name = state.queue(request)?.0.name.clone();
    state.queues.remove(&name);
    state.deleted.insert(name, now);
    Ok(json!({}))
}

pub fn purge(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let (now, mut state) = (account.now(), account.state());
    let (queue, _) = state.queue(request)?;
    if queue.purged.is_some_and(|at| now < at + PAUSE) {
        let why = format!("Only one PurgeQueue operation on {} is allowed every 60 seconds.", queue.name);
        return Err(Refusal { status: 403, ..Refusal::new("PurgeQueueInProgress", why) });
    }
    queue.purged = Some(now);
    queue.purge();
    Ok(json!({}))
}

pub fn list(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let prefix = request.get("QueueNamePrefix").and_then(Value::as_str).unwrap_or_default();
    let most = request.get("MaxResults").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(1000);
    let state = account.state();
    let names = state.queues.keys().filter(|name| name.starts_with(prefix));
    let urls: Vec<_> = names.take(most).map(|name| account.url(name)).collect();
    Ok(json!({ "QueueUrls": urls }))
}

pub fn tag(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let said: Said = super::read(request)?;
    account.state().queue(request)?.0.tags.extend(said.tags);
    Ok(json!({}))
}

pub fn tags(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let tags = &state.queue(request)?.0.tags;
    Ok(if tags.is_empty() { json!({}) } else { json!({ "Tags": tags }) })
}

//! Receiving: at once, or by a long poll.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::super::account::{self, Account, State};
use super::super::digest;
use super::super::queue::Stored;
use super::super::refusal::Refusal;
use super::send::sequence_number;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Receive {
    max_number_of_messages: Option<i64>,
    wait_time_seconds: Option<i64>,
    visibility_timeout: Option<i64>,
    #[serde(default)]
    message_system_attribute_names: Vec<String>,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    message_attribute_names: Vec<String>,
}

pub async fn receive(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let asked: Receive = super::read(request)?;
    let range = |parameter, value: Option<i64>, least: i64, most: i64| match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(Refusal::invalid(parameter, value, &format!("Must be between {least} and {most}, if provided.")))
        }
        value => Ok(value.and_then(|value| u64::try_from(value).ok())),
    };
    let max = range("MaxNumberOfMessages", asked.max_number_of_messages, 1, 10)?.unwrap_or(1);
    let wait = range("WaitTimeSeconds", asked.wait_time_seconds, 0, 20)?;
    let time = range("VisibilityTimeout", asked.visibility_timeout, 0, 43_200)?;
    let max = usize::try_from(max).unwrap_or(1);
    let mut until: Option<Instant> = None;
    loop {
        let news = account.news();
        tokio::pin!(news);
        news.as_mut().enable();
        let wake = {
            let (now, mut state) = (account.now(), account.state());
            let queue = &state.queue(request)?.0.attributes;
            let time = Duration::from_secs(time.unwrap_or_else(|| queue.number("VisibilityTimeout")));
            let wait = wait.unwrap_or_else(|| queue.number("ReceiveMessageWaitTimeSeconds"));
            let until = *until.get_or_insert(now + Duration::from_secs(wait));
            let received = take(&mut state, request, max, time, now)?;
            if !received.is_empty() || now >= until {
                let told = received.into_iter().map(|(handle, message)| tell(account, &asked, handle, message));
                return Ok(json!({ "Messages": told.collect::<Vec<_>>() }));
            }
            let shown = state.queue(request)?.0.next_shown();
            account.clock().real(shown.map_or(until, |at| at.min(until)))
        };
        // Over when something changes or the time has come; either way it looks again.
        let _ = timeout_at(wake, news).await;
    }
}

fn take(
    state: &mut State,
    request: &Value,
    max: usize,
    time: Duration,
    now: Instant,
) -> Result<Vec<(String, Stored)>, Refusal> {
    let (queue, dice) = state.queue(request)?;
    let (received, dead) = queue.receive(max, time, now, dice);
    let (source, policy) = (account::arn(&queue.name), queue.attributes.redrive());
    let target = policy.as_ref().and_then(|redrive| account::name_of_arn(&redrive.target));
    if let Some(target) = target.and_then(|name| state.queues.get_mut(name)) {
        for message in dead {
            let receives = message.receives;
            target.put(message.moved(Some(source.clone()), receives));
        }
    }
    Ok(received)
}

/// A message as it is handed out.
fn tell(account: &Account, asked: &Receive, handle: String, message: Stored) -> Value {
    let entry = &message.entry;
    let mut told = json!({
        "MessageId": message.id,
        "ReceiptHandle": handle,
        "Body": entry.message_body,
        "MD5OfBody": digest::of_body(&entry.message_body),
    });
    let millis = |at: Option<Instant>| account.clock().unix_millis(at.unwrap_or(message.sent)).to_string();
    let mut system = vec![
        ("ApproximateReceiveCount", message.receives.to_string()),
        ("ApproximateFirstReceiveTimestamp", millis(message.first_received)),
        ("SentTimestamp", millis(Some(message.sent))),
        ("SenderId", "AIDATEST".to_owned()),
    ];
    let optional = |name, value: &Option<String>| value.clone().map(|value| (name, value));
    system.extend(optional("MessageGroupId", &entry.message_group_id));
    system.extend(optional("MessageDeduplicationId", &entry.message_deduplication_id));
    system.extend(optional("DeadLetterQueueSourceArn", &message.source));
    if entry.message_deduplication_id.is_some() {
        system.push(("SequenceNumber", sequence_number(message.sequence)));
    }
    let trace = entry.message_system_attributes.get("AWSTraceHeader");
    system.extend(trace.and_then(|trace| optional("AWSTraceHeader", &trace.string_value)));
    let wanted = |name: &str| {
        let mut names = asked.message_system_attribute_names.iter().chain(&asked.attribute_names);
        names.any(|n| n == "All" || n == name)
    };
    let system: Map<_, _> =
        system.into_iter().filter(|(name, _)| wanted(name)).map(|(n, v)| (n.to_owned(), v.into())).collect();
    if !system.is_empty() {
        told["Attributes"] = system.into();
    }
    let wanted = |name: &str| {
        asked.message_attribute_names.iter().any(|pattern| match pattern.strip_suffix(".*") {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == "All" || pattern == name,
        })
    };
    let mut attributes = entry.message_attributes.clone();
    attributes.retain(|name, _| wanted(name));
    if let Some(digest) = digest::of_attributes(&attributes) {
        told["MD5OfMessageAttributes"] = digest.into();
        told["MessageAttributes"] = json!(attributes);
    }
    told
}

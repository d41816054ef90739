//! Dead letters: whose they are, and their way back.

use serde_json::{Value, json};

use super::super::account::{self, Account, State};
use super::super::refusal::Refusal;

fn sources_of(state: &State, name: &str) -> Vec<String> {
    let arn = account::arn(name);
    let is_source = |redrive: Option<super::super::attributes::Redrive>| redrive.is_some_and(|r| r.target == arn);
    let queues = state.queues.values().filter(|queue| is_source(queue.attributes.redrive()));
    queues.map(|queue| queue.name.clone()).collect()
}

pub fn sources(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let name = state.queue(request)?.0.name.clone();
    let urls: Vec<_> = sources_of(&state, &name).iter().map(|name| account.url(name)).collect();
    Ok(json!({ "queueUrls": urls }))
}

/// Moves everything at once, where Amazon takes its time; messages in flight stay.
pub fn start(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let missing = || Refusal {
        status: 404,
        ..Refusal::new("ResourceNotFoundException", "The resource that you specified for the SourceArn doesn't exist.")
    };
    let source = super::text(request, "SourceArn")?;
    let destination = request.get("DestinationArn").and_then(Value::as_str);
    let (now, mut state) = (account.now(), account.state());
    let name = account::name_of_arn(source).filter(|name| state.queues.contains_key(*name)).ok_or_else(missing)?;
    let origins = sources_of(&state, name);
    if origins.is_empty() {
        let why = "Source queue must be configured as a Dead Letter Queue.";
        return Err(Refusal::new("InvalidParameterValue", why));
    }
    if destination.is_some_and(|arn| account::name_of_arn(arn).is_none_or(|n| !state.queues.contains_key(n))) {
        return Err(missing());
    }
    let messages = state.queues.get_mut(name).map(|queue| queue.take_visible(now)).unwrap_or_default();
    let mut moved = 0;
    for message in messages {
        let target = destination.or(message.source.as_deref()).and_then(account::name_of_arn);
        let target = target.or(origins.first().map(String::as_str)).map(str::to_owned);
        if let Some(queue) = target.and_then(|name| state.queues.get_mut(&name)) {
            queue.put(message.moved(None, 0));
            moved += 1;
        }
    }
    let handle = uuid::Uuid::now_v7().to_string();
    let mut task = json!({
        "Status": "COMPLETED",
        "SourceArn": source,
        "ApproximateNumberOfMessagesMoved": moved,
        "ApproximateNumberOfMessagesToMove": moved,
        "StartedTimestamp": u64::try_from(account.clock().unix_millis(now)).unwrap_or_default(),
    });
    if let Some(destination) = destination {
        task["DestinationArn"] = destination.into();
    }
    state.moves.insert(0, task);
    Ok(json!({ "TaskHandle": handle }))
}

pub fn list(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let source = super::text(request, "SourceArn")?;
    let most = request.get("MaxResults").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let state = account.state();
    let tasks = state.moves.iter().filter(|task| task["SourceArn"] == source);
    Ok(json!({ "Results": tasks.take(most).collect::<Vec<_>>() }))
}

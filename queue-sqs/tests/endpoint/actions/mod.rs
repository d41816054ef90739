//! The actions that the adapter uses: here those of SQS.

mod answers;
mod moves;
mod queues;
mod receive;
mod send;
pub mod topics;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::account::Account;
use super::refusal::Refusal;

/// Does what a request asks.
pub async fn act(account: &Account, action: &str, request: Value) -> Result<Value, Refusal> {
    let outcome = match action {
        "ReceiveMessage" => return receive::receive(account, &request).await,
        "SendMessage" => send::one(account, &request),
        "SendMessageBatch" => send::batch(account, &request),
        "DeleteMessage" => answers::delete(account, &request),
        "DeleteMessageBatch" => answers::delete_batch(account, &request),
        "ChangeMessageVisibility" => answers::change(account, &request),
        "ChangeMessageVisibilityBatch" => answers::change_batch(account, &request),
        "CreateQueue" => queues::create(account, &request),
        "GetQueueUrl" => queues::url(account, &request),
        "GetQueueAttributes" => queues::attributes(account, &request),
        "SetQueueAttributes" => queues::set_attributes(account, &request),
        "DeleteQueue" => queues::delete(account, &request),
        "PurgeQueue" => queues::purge(account, &request),
        "ListQueues" => queues::list(account, &request),
        "TagQueue" => queues::tag(account, &request),
        "ListQueueTags" => queues::tags(account, &request),
        "ListDeadLetterSourceQueues" => moves::sources(account, &request),
        "StartMessageMoveTask" => moves::start(account, &request),
        "ListMessageMoveTasks" => moves::list(account, &request),
        _ => Err(Refusal::new("InvalidAction", format!("There is no action {action}."))),
    };
    account.changed();
    outcome
}

/// Reads a request, or a part of it.
pub fn read<T: DeserializeOwned>(request: &Value) -> Result<T, Refusal> {
    T::deserialize(request).map_err(|error| Refusal::new("SerializationException", error.to_string()))
}

fn text<'a>(request: &'a Value, parameter: &str) -> Result<&'a str, Refusal> {
    request.get(parameter).and_then(Value::as_str).ok_or_else(|| Refusal::missing(parameter))
}

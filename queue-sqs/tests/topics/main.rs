//! What only topics have, on the endpoint of these tests: it delivers as SNS does, drops without a word what SNS drops, and
//! goes wrong when asked.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{Client, Error, Message, Receiver};
use tokio::time::timeout;

#[path = "../endpoint/mod.rs"]
mod endpoint;
mod groups;
mod sending;

use endpoint::Endpoint;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

const PATIENCE: Duration = Duration::from_secs(240);
const ACCOUNT: &str = "000000000000";

async fn connect(endpoint: &Endpoint) -> Result<Client, Failure> {
    Ok(Client::connect_with(&endpoint.url("&wait_time=1s"), &[queue_sqs::DRIVER]).await?)
}

async fn group(client: &Client, topic: &str, name: &str) -> Result<Receiver, Error> {
    client.receiver(topic).group(name).discard_dead_letters().await
}

/// The next messages; each is acknowledged.
async fn take(receiver: &mut Receiver, count: usize) -> Result<Vec<Message>, Failure> {
    let mut all = Vec::new();
    while all.len() < count {
        let delivery =
            timeout(PATIENCE, receiver.receive()).await.map_err(|_| format!("{} of {count}", all.len()))??;
        all.push(delivery.message().clone());
        delivery.ack();
    }
    Ok(all)
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().filter_map(Message::text).collect()
}

async fn attribute(endpoint: &Endpoint, queue: &str, name: Attribute) -> Result<Option<String>, Failure> {
    let sqs = endpoint.client();
    let url = sqs.get_queue_url().queue_name(queue).send().await?.queue_url;
    let told = sqs.get_queue_attributes().set_queue_url(url).attribute_names(name.clone()).send().await?;
    Ok(told.attributes.unwrap_or_default().remove(&name))
}

async fn exists(endpoint: &Endpoint, queue: &str) -> bool {
    endpoint.client().get_queue_url().queue_name(queue).send().await.is_ok()
}

fn arn(topic: &str) -> String {
    format!("arn:aws:sns:us-east-1:{ACCOUNT}:{topic}")
}

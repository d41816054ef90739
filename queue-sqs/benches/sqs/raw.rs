//! The SDK, fed as well as it can be by hand: full batches, sixteen requests at a time.

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, MessageSystemAttributeName as System, SendMessageBatchRequestEntry,
};
use futures::stream::{FuturesUnordered, StreamExt};
use queue_core::Endpoint;

use crate::process::{Meter, Outcome, Run};

/// Entries of a request.
pub(crate) const ENTRIES: usize = 10;
/// Requests at a time.
const REQUESTS: usize = 16;

pub(crate) fn client(run: &Run) -> Client {
    let endpoint: Endpoint = run.url.parse().unwrap();
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(format!("http://{}", endpoint.host_list()))
        .credentials_provider(Credentials::new("test", "test", None, None, "bench"))
        .build();
    Client::from_conf(config)
}

/// A queue of this process alone.
pub(crate) async fn declare(run: &Run, client: &Client) -> (String, String) {
    let name = format!("{}-{}", run.queue(), std::process::id());
    let created = client.create_queue().queue_name(&name).send().await.unwrap();
    (name, created.queue_url.unwrap())
}

pub(crate) fn payload(run: &Run) -> String {
    "x".repeat(run.size)
}

pub(crate) async fn run(run: &Run) -> Outcome {
    let client = client(run);
    let (_, url) = declare(run, &client).await;
    let payload = payload(run);
    if run.case != "receive" {
        let meter = Meter::start();
        send(&client, &url, run.messages, &payload).await;
        return meter.end(run.messages);
    }
    send(&client, &url, run.messages, &payload).await;
    let meter = Meter::start();
    let receivers = (0..REQUESTS).map(|task| {
        let (client, url) = (client.clone(), url.clone());
        let count = run.messages / REQUESTS + usize::from(task < run.messages % REQUESTS);
        tokio::spawn(async move { receive(&client, &url, count).await })
    });
    let mut bytes = 0;
    for receiver in receivers.collect::<Vec<_>>() {
        bytes += receiver.await.unwrap();
    }
    assert_eq!(bytes, run.size * run.messages);
    meter.end(run.messages)
}

/// Sends so many messages, every one of which has to be taken.
pub(crate) async fn send(client: &Client, url: &str, messages: usize, payload: &str) {
    let mut flying = FuturesUnordered::new();
    let mut left = messages;
    while left > 0 {
        let count = left.min(ENTRIES);
        left -= count;
        if flying.len() == REQUESTS {
            let done: Option<Result<(), tokio::task::JoinError>> = flying.next().await;
            done.unwrap().unwrap();
        }
        let entries = (0..count).map(|id| {
            SendMessageBatchRequestEntry::builder().id(id.to_string()).message_body(payload).build().unwrap()
        });
        let request = client.send_message_batch().queue_url(url).set_entries(Some(entries.collect()));
        flying.push(tokio::spawn(async move {
            let output = request.send().await.unwrap();
            assert_eq!((output.successful.len(), output.failed.len()), (count, 0));
        }));
    }
    while let Some(done) = flying.next().await {
        done.unwrap();
    }
}

/// Receives and deletes so many messages; their bytes.
async fn receive(client: &Client, url: &str, count: usize) -> usize {
    let (mut left, mut bytes) = (count, 0);
    while left > 0 {
        let most = i32::try_from(left.min(ENTRIES)).unwrap();
        // What a handler has to know of a message: its headers, how often it came, and since when it waits.
        let request = client.receive_message().queue_url(url).max_number_of_messages(most).wait_time_seconds(20);
        let request = request.message_attribute_names("All");
        let request = request.message_system_attribute_names(System::ApproximateReceiveCount);
        let request = request.message_system_attribute_names(System::SentTimestamp);
        let messages = request.send().await.unwrap().messages.unwrap_or_default();
        left -= messages.len();
        let entries = messages.into_iter().enumerate().map(|(id, message)| {
            let told = message.attributes.unwrap_or_default();
            let number = |name: System| told.get(&name).and_then(|text| text.parse::<u64>().ok());
            std::hint::black_box((number(System::ApproximateReceiveCount), number(System::SentTimestamp)));
            bytes += std::hint::black_box(message.body.unwrap()).len();
            let entry = DeleteMessageBatchRequestEntry::builder().id(id.to_string());
            entry.receipt_handle(message.receipt_handle.unwrap()).build().unwrap()
        });
        let request = client.delete_message_batch().queue_url(url).set_entries(Some(entries.collect()));
        assert!(request.send().await.unwrap().failed.is_empty());
    }
    bytes
}

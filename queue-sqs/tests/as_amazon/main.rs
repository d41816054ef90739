//! The endpoint of these tests, driven by the SDK alone: where Amazon and emulators differ it follows Amazon.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName, QueueAttributeName};
use queue_core::conformance::section;

#[path = "../endpoint/mod.rs"]
mod endpoint;

mod answers;
mod dead_letters;
mod fifo;
mod goes_wrong;
mod queues;
mod sending;

use endpoint::{Endpoint, Faults};

/// What the documents say of the conformance suite; the suite itself compares the sections with its runs.
#[test]
fn the_suite_finds_the_same_here_and_on_elasticmq() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md");
    let document = std::fs::read_to_string(path).expect("the document is there");
    for (elasticmq, here) in [("sqs", "endpoint"), ("sqs fifo", "endpoint fifo")] {
        let findings =
            |name| section(&document, name).and_then(|section| section.split_once('\n')).map(|(_, f)| f.trim());
        assert!(findings(here).is_some_and(|findings| findings.contains("cases run")), "{here}");
        // ElasticMQ has no topics.
        let of_groups = ["dead_letters_of_a_group", "a_dead_letter_of_a_group"];
        let of_topics = |line: &&str| line.contains("(topics)") || of_groups.iter().any(|group| line.contains(group));
        let shared = |name| findings(name).unwrap_or_default().lines().filter(|line| !of_topics(line)).collect();
        let [own, other]: [Vec<_>; 2] = [here, elasticmq].map(shared);
        assert_eq!(own, other, "{here}");
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

/// An endpoint with one queue.
struct Queue {
    endpoint: Endpoint,
    sqs: Client,
    url: String,
}

impl Queue {
    async fn new(name: &str) -> Result<Self, Failure> {
        Self::on(Endpoint::start().await?, name).await
    }

    async fn on(endpoint: Endpoint, name: &str) -> Result<Self, Failure> {
        let sqs = endpoint.client();
        let url = create(&sqs, name, &[]).await?;
        Ok(Self { endpoint, sqs, url })
    }

    /// Sends one message: on a FIFO queue of this group, with its body as deduplication id.
    async fn send(&self, body: &str, group: Option<&str>) -> Result<(), Failure> {
        let request = self.sqs.send_message().queue_url(&self.url).message_body(body);
        let id = self.url.ends_with(".fifo").then(|| body.to_owned());
        request.set_message_group_id(group.map(str::to_owned)).set_message_deduplication_id(id).send().await?;
        Ok(())
    }

    /// What can be received at once, for so many seconds.
    async fn receive(&self, seconds: i32) -> Result<Vec<Message>, Failure> {
        receive(&self.sqs, &self.url, seconds).await
    }

    async fn bodies(&self, seconds: i32) -> Result<Vec<String>, Failure> {
        Ok(bodies(&self.receive(seconds).await?))
    }

    async fn delete(&self, message: &Message) -> Result<(), String> {
        let handle = message.receipt_handle().unwrap_or_default();
        let outcome = self.sqs.delete_message().queue_url(&self.url).receipt_handle(handle).send().await;
        outcome.map(drop).map_err(|error| code(&error))
    }

    async fn change(&self, message: &Message, seconds: i32) -> Result<(), String> {
        let handle = message.receipt_handle().unwrap_or_default();
        let request = self.sqs.change_message_visibility().queue_url(&self.url).receipt_handle(handle);
        request.visibility_timeout(seconds).send().await.map(drop).map_err(|error| code(&error))
    }
}

async fn create(sqs: &Client, name: &str, attributes: &[(&str, &str)]) -> Result<String, Failure> {
    let mut request = sqs.create_queue().queue_name(name);
    if name.ends_with(".fifo") {
        request = request.attributes(QueueAttributeName::FifoQueue, "true");
    }
    for (name, value) in attributes {
        request = request.attributes(QueueAttributeName::from(*name), *value);
    }
    request.send().await?.queue_url.ok_or_else(|| "no URL".into())
}

async fn receive(sqs: &Client, url: &str, seconds: i32) -> Result<Vec<Message>, Failure> {
    let request = sqs.receive_message().queue_url(url).max_number_of_messages(10).visibility_timeout(seconds);
    let request = request.message_system_attribute_names(MessageSystemAttributeName::All);
    Ok(request.message_attribute_names("All").send().await?.messages.unwrap_or_default())
}

fn bodies(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|m| m.body().unwrap_or_default().to_owned()).collect()
}

fn system(message: &Message, name: MessageSystemAttributeName) -> Option<&str> {
    message.attributes()?.get(&name).map(String::as_str)
}

/// The code of a refusal, without the prefix of the older protocol.
fn code(error: &impl ProvideErrorMetadata) -> String {
    error.code().and_then(|code| code.rsplit('.').next()).unwrap_or("none").to_owned()
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

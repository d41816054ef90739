//! The two doors that messages leave by: `SendMessageBatch` to queues, `PublishBatch` to topics.

use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use queue_core::{Error, Outcome, Receipt, Result};

use crate::address::{Kind, Target};
use crate::error::{self, Words};
use crate::producer::Shared;
use crate::topics::Topics;

/// The largest message and request of SNS, which did not grow when those of SQS did.
pub(crate) const MAX_PUBLISH: usize = 256 << 10;

/// What was said of the entries of a request, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    pub(crate) accepted: Vec<(String, Receipt)>,
    pub(crate) refused: Vec<(String, Error)>,
}

impl Verdicts {
    /// The broker took an entry.
    pub(crate) fn accept(&mut self, entry: String, message_id: String, sequence: Option<String>) {
        let mut receipt = Receipt::with_id(message_id);
        receipt.offset = sequence.and_then(|n| n.parse().ok());
        self.accepted.push((entry, receipt));
    }
}

/// The most bytes of a message, and of a request, where the target has a limit below that of the sender.
pub(crate) fn limit(kind: Kind) -> usize {
    if kind.topic { MAX_PUBLISH } else { usize::MAX }
}

/// Sends one request, unless what it goes to is known to be away.
pub(crate) async fn send(shared: &Shared, to: &Target, entries: Vec<Entry>) -> Result<Verdicts> {
    let link = if to.kind.topic { shared.topics()?.link() } else { &shared.link };
    if link.is_down() {
        return Err(link.away().with_operation("send"));
    }
    if to.kind.topic { publish(shared.topics()?, to, entries).await } else { enqueue(shared, to, entries).await }
}

async fn enqueue(shared: &Shared, to: &Target, entries: Vec<Entry>) -> Result<Verdicts> {
    let url = shared.queues.url(&to.name).await.map_err(unsent)?;
    let result = shared.clients.once.send_message_batch().queue_url(&*url).set_entries(Some(entries)).send().await;
    let output = shared.link.note("send", Words::Hidden, result).map_err(|e| shared.queues.failed(&to.name, e))?;
    let mut verdicts = Verdicts::default();
    for entry in output.successful {
        verdicts.accept(entry.id, entry.message_id, entry.sequence_number);
    }
    for entry in output.failed {
        let error = error::from_entry("send", &entry);
        verdicts.refused.push((entry.id, error));
    }
    Ok(verdicts)
}

async fn publish(topics: &Topics, to: &Target, entries: Vec<Entry>) -> Result<Verdicts> {
    let arn = topics.arn(&to.name).await.map_err(unsent)?;
    topics.publish(&to.name, &arn, entries).await
}

/// The request was not even made.
fn unsent(error: Error) -> Error {
    error.with_operation("send").with_outcome(Outcome::NotSent)
}

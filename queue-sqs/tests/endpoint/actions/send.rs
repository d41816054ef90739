//! Sending.

use serde_json::{Value, json};

use super::super::account::Account;
use super::super::batch::{self, Numbered};
use super::super::digest;
use super::super::entry::Entry;
use super::super::queue::Queue;
use super::super::refusal::Refusal;

/// The most bytes of a batch, whatever the queue takes of a message.
const MAX_BATCH: usize = 1_048_576;

pub fn one(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let (queue, _) = state.queue(request)?;
    store(account, queue, super::read(request)?)
}

pub fn batch(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let (queue, dice) = state.queue(request)?;
    let entries: Vec<Numbered<Entry>> = batch::entries(request)?;
    let size: usize = entries.iter().map(|numbered| numbered.entry.size()).sum();
    if size > MAX_BATCH {
        let why = format!("Batch requests cannot be longer than {MAX_BATCH} bytes. You have sent {size} bytes.");
        return Err(Refusal::new("BatchRequestTooLong", why));
    }
    let verdicts = entries.into_iter().map(|Numbered { id, entry }| {
        let verdict = if dice.fails_entry() { Err(Refusal::failed()) } else { store(account, queue, entry) };
        (id, verdict)
    });
    Ok(batch::verdicts(verdicts.collect()))
}

fn store(account: &Account, queue: &mut Queue, entry: Entry) -> Result<Value, Refusal> {
    let limit = usize::try_from(queue.attributes.number("MaximumMessageSize")).unwrap_or(usize::MAX);
    entry.check(queue.fifo, queue.attributes.is("ContentBasedDeduplication", "true"), limit)?;
    let mut answer = json!({ "MD5OfMessageBody": digest::of_body(&entry.message_body) });
    if let Some(digest) = digest::of_attributes(&entry.message_attributes) {
        answer["MD5OfMessageAttributes"] = digest.into();
    }
    if let Some(digest) = digest::of_attributes(&entry.message_system_attributes) {
        answer["MD5OfMessageSystemAttributes"] = digest.into();
    }
    let (id, sequence) = queue.send(entry, account.now());
    answer["MessageId"] = id.into();
    if queue.fifo {
        answer["SequenceNumber"] = sequence_number(sequence).into();
    }
    Ok(answer)
}

/// Twenty digits, as Amazon's have.
pub fn sequence_number(sequence: u64) -> String {
    format!("{:020}", (1_u128 << 64) + u128::from(sequence))
}

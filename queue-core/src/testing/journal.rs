//! Where records are kept, in the order in which they were made.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::record::{AnswerRecord, ReceivedRecord, RecordedAnswer, SentRecord};
use crate::address::{Address, Source};
use crate::dead_letter;
use crate::headers::{HeaderValue, RESERVED_PREFIX};
use crate::message::Message;

#[derive(Debug, Clone)]
pub(super) enum Entry {
    Sent(SentRecord),
    Received(ReceivedRecord),
    Answered(AnswerRecord),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(record) => record.fmt(f),
            Self::Received(record) => record.fmt(f),
            Self::Answered(record) => record.fmt(f),
        }
    }
}

/// Everything that was recorded, with the time since the start.
#[derive(Debug)]
pub(super) struct Journal {
    start: Instant,
    kept: Mutex<Kept>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    entries: Vec<(Duration, Arc<Entry>)>,
    /// Copies by which the library answers, until the message that they are of is acknowledged.
    copies: Vec<Copy>,
}

#[derive(Debug)]
struct Copy {
    of: Of,
    message: Message,
    attempt: u32,
    answer: RecordedAnswer,
}

/// What a copy says of where its message came from.
#[derive(Debug)]
enum Of {
    Source(String),
    Queue(String),
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), kept: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn add(&self, entry: Entry) {
        self.kept.lock().entries.push((self.start.elapsed(), Arc::new(entry)));
        self.changed.notify_waiters();
    }

    pub(super) fn read<T>(&self, pick: impl FnMut(&(Duration, Arc<Entry>)) -> Option<T>) -> Vec<T> {
        // What the test says of a record runs without the lock: it may send, or look at the journal.
        let entries = self.kept.lock().entries.clone();
        entries.iter().filter_map(pick).collect()
    }

    /// A send that was tried. A copy that makes a retry is an answer, and no send of its own.
    pub(super) fn sent(&self, record: SentRecord) {
        if let Some(copy) = Copy::read(&record.address, &record.message) {
            if record.stored {
                self.kept.lock().copies.push(copy);
            }
            if record.message.headers().get(dead_letter::ATTEMPT).is_some() {
                return;
            }
        }
        self.add(Entry::Sent(record));
    }

    /// A message that was acknowledged: what that means, the copy tells that was confirmed before.
    pub(super) fn acked(&self, source: &Source, message: Message, attempt: u32) {
        let answer = {
            let copies = &mut self.kept.lock().copies;
            let copy = copies.iter().position(|copy| copy.is_of(source, &message, attempt));
            copy.map_or(RecordedAnswer::Acked, |index| copies.remove(index).answer)
        };
        self.answered(source, message, attempt, answer);
    }

    pub(super) fn answered(&self, source: &Source, message: Message, attempt: u32, answer: RecordedAnswer) {
        self.add(Entry::Answered(AnswerRecord { source: source.clone(), message, attempt, answer }));
    }
}

impl Copy {
    fn read(to: &Address, message: &Message) -> Option<Self> {
        let headers = message.headers();
        let text = |name| headers.get(name).and_then(HeaderValue::as_str).map(str::to_owned);
        let count = |name| headers.get(name)?.as_int().and_then(|count| u32::try_from(count).ok());
        let (of, attempt, answer) = if let Some(attempt) = count(dead_letter::ATTEMPT) {
            let due = match headers.get(dead_letter::DUE) {
                Some(HeaderValue::Timestamp(due)) => due.duration_since(SystemTime::now()).ok(),
                _ => Some(Duration::ZERO),
            };
            let delay = message.get_delay().or(due);
            (Of::Queue(to.name().to_owned()), attempt.saturating_sub(1), RecordedAnswer::Retried { delay })
        } else {
            let reason = text(dead_letter::REASON)?;
            let answer = RecordedAnswer::DeadLettered { reason, to: to.clone() };
            (Of::Source(text(dead_letter::ORIGIN)?), count(dead_letter::ATTEMPTS)?, answer)
        };
        Some(Self { of, message: message.clone(), attempt, answer })
    }

    /// Whether it is one of this message. Two that are the same are not told apart, nor have to be.
    fn is_of(&self, source: &Source, message: &Message, attempt: u32) -> bool {
        let same_place = match &self.of {
            Of::Source(text) => *text == source.to_string(),
            Of::Queue(name) => source.queue_name().as_ref() == Some(name),
        };
        let own = |message: &Message| {
            let mut headers = message.headers().clone();
            headers.retain(|name, _| !name.starts_with(RESERVED_PREFIX));
            headers
        };
        let copy = &self.message;
        same_place
            && self.attempt == attempt
            && (copy.payload(), copy.get_key(), copy.get_id())
                == (message.payload(), message.get_key(), message.get_id())
            && own(copy) == own(message)
    }
}

//! What is recorded of a message.

use std::fmt;
use std::time::Duration;

use crate::address::{Address, Source};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::producer::Receipt;

/// Longest part of a payload that is shown.
const SHOWN: usize = 80;

/// One try of a send.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SentRecord {
    /// Where it was sent.
    pub address: Address,
    /// The message, as the broker got it.
    pub message: Message,
    /// Whether the broker has it, whatever the sender was told.
    pub stored: bool,
    /// What the sender was told. A failure that may be tried again leads to another record.
    pub told: Result<Receipt>,
}

/// A message that a receiver fetched.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReceivedRecord {
    /// Where it came from.
    pub source: Source,
    /// The message; of one that could not be decoded, its raw body.
    pub message: Message,
    /// Which attempt it is: what the broker counts, with the library's own count where a copy made the retry.
    pub attempt: u32,
}

/// An answer that reached the broker.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AnswerRecord {
    /// Where the message came from.
    pub source: Source,
    /// The message.
    pub message: Message,
    /// Which attempt it was.
    pub attempt: u32,
    /// The answer.
    pub answer: RecordedAnswer,
}

/// How a message was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordedAnswer {
    /// It is done. So is one whose dead letter is discarded.
    Acked,
    /// It comes again, counted.
    Retried {
        /// After how long. `None` where the receiver itself keeps it for that time (Kafka), which the broker is not told.
        delay: Option<Duration>,
    },
    /// It is a dead letter.
    DeadLettered {
        /// Why.
        reason: String,
        /// Where the dead letter is.
        to: Address,
    },
    /// It was given back, not counted where the broker can tell.
    Released,
}

/// What [`Expect`](super::Expect) waits for; its text shows it in a failure.
pub trait Record: Clone + fmt::Display + Send + Sync + 'static + private::Sealed {}

mod private {
    pub trait Sealed {}
    impl Sealed for super::SentRecord {}
    impl Sealed for super::ReceivedRecord {}
    impl Sealed for super::AnswerRecord {}
}

impl Record for SentRecord {}
impl Record for ReceivedRecord {}
impl Record for AnswerRecord {}

impl fmt::Display for SentRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.stored { "sent" } else { "not sent" };
        write!(f, "{done} to {}: {}", self.address, Shown(&self.message))?;
        match &self.told {
            Ok(_) => Ok(()),
            Err(error) => write!(f, "; the sender was told {:?}: {}", error.outcome(), told(error)),
        }
    }
}

/// The error without its context, which repeats the address.
fn told(error: &Error) -> &str {
    error.message()
}

impl fmt::Display for ReceivedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "received from {}, attempt {}: {}", self.source, self.attempt, Shown(&self.message))
    }
}

impl fmt::Display for AnswerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}, attempt {}: {}", self.answer, self.source, self.attempt, Shown(&self.message))
    }
}

impl fmt::Display for RecordedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acked => f.write_str("acked"),
            Self::Retried { delay: Some(delay) } => write!(f, "retried in {delay:?}"),
            Self::Retried { delay: None } => f.write_str("retried"),
            Self::DeadLettered { reason, to } => write!(f, "dead-lettered to {to} ({reason})"),
            Self::Released => f.write_str("released"),
        }
    }
}

/// A message, readable: a test has no secrets, so the payload is shown.
struct Shown<'a>(&'a Message);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0;
        match message.text() {
            _ if message.is_tombstone() => f.write_str("tombstone")?,
            Some(text) if text.chars().count() > SHOWN => {
                let start: String = text.chars().take(SHOWN).collect();
                write!(f, "{start:?}… ({} bytes)", text.len())?;
            }
            Some(text) => write!(f, "{text:?}")?,
            None => write!(f, "{} bytes", message.payload().len())?,
        }
        if let Some(key) = message.get_key() {
            write!(f, ", key {:?}", String::from_utf8_lossy(key))?;
        }
        if let Some(id) = message.get_id() {
            write!(f, ", id {id:?}")?;
        }
        message.headers().iter().try_for_each(|(name, value)| match value.as_str() {
            Some(text) => write!(f, ", {name}={text:?}"),
            None => write!(f, ", {name}={value:?}"),
        })
    }
}

//! The headers of copies that the library makes: dead letters and retries.

use std::error::Error as StdError;
use std::time::SystemTime;

use crate::headers::{HeaderValue, RESERVED_PREFIX};
use crate::message::Message;

/// Why the message was dead-lettered, as text.
pub const REASON: &str = "anyqueue-reason";
/// The causes behind the reason, joined by `": "`; absent without a cause.
pub const CHAIN: &str = "anyqueue-cause";
/// How often the message was tried.
pub const ATTEMPTS: &str = "anyqueue-attempts";
/// Where the message came from.
pub const ORIGIN: &str = "anyqueue-origin";
/// When it was dead-lettered.
pub const AT: &str = "anyqueue-dead-at";
/// The attempt that a retry copy is; removed on receipt.
pub const ATTEMPT: &str = "anyqueue-attempt";
/// Before when a retry copy is not handed out; removed on receipt.
pub(crate) const DUE: &str = "anyqueue-due";

/// Longest text of a reason or a chain, so that a dead letter fits where the message did.
const MAX_TEXT: usize = 1024;

/// Why a message is dead-lettered.
#[derive(Debug)]
pub(crate) struct Reason {
    text: String,
    chain: String,
}

impl Reason {
    pub(crate) fn new(error: &(dyn StdError + 'static)) -> Self {
        let mut chain = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            chain.push(cause.to_string());
            next = cause.source();
        }
        Self { text: cut(error.to_string()), chain: cut(chain.join(": ")) }
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: cut(text.into()), chain: String::new() }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// The dead letter of a message.
pub(crate) fn letter(message: &Message, reason: &Reason, attempts: u32, origin: &str) -> Message {
    let mut copy = message.clone().for_copy();
    let headers = copy.headers_mut();
    headers.retain(|name, _| !name.starts_with(RESERVED_PREFIX));
    headers.append(REASON, reason.text.clone());
    if !reason.chain.is_empty() {
        headers.append(CHAIN, reason.chain.clone());
    }
    headers.append(ATTEMPTS, i64::from(attempts));
    headers.append(ORIGIN, origin.to_owned());
    headers.append(AT, SystemTime::now());
    copy
}

/// The copy that makes a retry.
pub(crate) fn retry(message: &Message, attempt: u32, due: Option<SystemTime>) -> Message {
    let mut copy = message.clone().for_copy();
    let headers = copy.headers_mut();
    headers.retain(|name, _| name != ATTEMPT && name != DUE);
    headers.append(ATTEMPT, i64::from(attempt));
    if let Some(due) = due {
        headers.append(DUE, due);
    }
    copy
}

/// Takes attempt and due time off a message that arrived.
pub(crate) fn take_retry(message: &mut Message) -> (u32, Option<SystemTime>) {
    let Some(attempt) = message.headers().get(ATTEMPT) else { return (1, None) };
    let attempt = attempt.as_int().and_then(|a| u32::try_from(a).ok()).unwrap_or(1).max(1);
    let due = match message.headers().get(DUE) {
        Some(HeaderValue::Timestamp(due)) => Some(*due),
        _ => None,
    };
    message.headers_mut().retain(|name, _| name != ATTEMPT && name != DUE);
    (attempt, due)
}

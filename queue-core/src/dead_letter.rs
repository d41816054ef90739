//! The headers of copies that the library makes: dead letters and retries.

use std::error::Error as StdError;
use std::time::SystemTime;

use crate::address::Source;
use crate::headers::{HeaderValue, Headers, RESERVED_PREFIX};
use crate::message::Message;

/// Why the message was dead-lettered, as text.
pub const REASON: &str = "anyqueue-reason";
/// The causes behind the reason, joined by `": "`; absent without a cause.
pub const CHAIN: &str = "anyqueue-cause";
/// How often the message was tried.
pub const ATTEMPTS: &str = "anyqueue-attempts";
/// Where the message came from: its source, as [`Source`] prints it. Among the native headers, where an adapter puts it, the
/// name of the queue from which the broker itself moved the message here.
pub const ORIGIN: &str = "anyqueue-origin";
/// When it was dead-lettered.
pub const AT: &str = "anyqueue-dead-at";
/// The attempt that a retry copy is; removed on receipt.
pub const ATTEMPT: &str = "anyqueue-attempt";
/// Before when a retry copy is not handed out; removed on receipt.
pub(crate) const DUE: &str = "anyqueue-due";
/// The one group of a topic that a message is put back for; removed on receipt.
pub(crate) const GROUP: &str = "anyqueue-group";

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

/// What a dead letter was before it died, for this group alone where one is named.
pub(crate) fn put_back(letter: &Message, group: Option<&str>) -> Message {
    let mut copy = letter.clone().for_copy();
    let headers = copy.headers_mut();
    headers.retain(|name, _| !name.starts_with(RESERVED_PREFIX));
    if let Some(group) = group {
        headers.append(GROUP, group.to_owned());
    }
    copy
}

/// Whether a dead letter came from this source. One that tells nothing may have.
pub(crate) fn is_of(letter: &Message, source: &Source) -> bool {
    let told = |headers: &Headers| headers.get(ORIGIN).and_then(HeaderValue::as_str).map(str::to_owned);
    match (told(letter.headers()), told(letter.native_headers()), source.queue_name()) {
        (Some(origin), _, _) if origin == source.to_string() => true,
        (Some(origin), _, Some(queue)) => !source.address.is_topic() && is_same_queue(&origin, &queue),
        (None, Some(moved_from), Some(queue)) => is_same_queue(&moved_from, &queue),
        (None, None, _) => true,
        _ => false,
    }
}

/// A queue may be named by a URL or an ARN, which end with its name.
fn is_same_queue(a: &str, b: &str) -> bool {
    fn name(queue: &str) -> &str {
        queue.rsplit(['/', ':']).next().unwrap_or(queue)
    }
    a == b || !a.starts_with("topic:") && name(a) == name(b)
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

/// Takes the group that a message is put back for off a message that arrived.
pub(crate) fn take_group(message: &mut Message) -> Option<String> {
    let group = message.headers().get(GROUP)?.as_str().map(str::to_owned);
    message.headers_mut().retain(|name, _| name != GROUP);
    group
}

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

/// When a dead letter died, where the library made it; else when it was sent, where the broker tells.
pub(crate) fn died_at(letter: &Message) -> Option<SystemTime> {
    match letter.headers().get(AT) {
        Some(HeaderValue::Timestamp(at)) => Some(*at),
        _ => letter.told_sent_at(),
    }
}

/// A queue of SQS may be named by a URL or an ARN, which end with its name; any other name says nothing but itself.
fn is_same_queue(a: &str, b: &str) -> bool {
    let (a, b) = (Named::read(a), Named::read(b));
    let agree = |a: Option<&str>, b: Option<&str>| a.is_none() || b.is_none() || a == b;
    a.name == b.name && agree(a.account, b.account) && agree(a.region, b.region)
}

/// What a queue's name says.
struct Named<'a> {
    name: &'a str,
    account: Option<&'a str>,
    region: Option<&'a str>,
}

impl<'a> Named<'a> {
    fn read(queue: &'a str) -> Self {
        let plain = Self { name: queue, account: None, region: None };
        if let Some(arn) = queue.strip_prefix("arn:") {
            let mut parts = arn.rsplitn(4, ':');
            let (name, account, region) = (parts.next(), parts.next(), parts.next());
            return Self { name: name.unwrap_or(queue), account, region };
        }
        let Some((_, rest)) = queue.split_once("://") else { return plain };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (before, name) = path.rsplit_once('/').unwrap_or(("", path));
        let account = before.rsplit('/').next().filter(|a| !a.is_empty() && a.bytes().all(|b| b.is_ascii_digit()));
        let region =
            host.strip_prefix("sqs.").and_then(|host| host.split_once(".amazonaws.")).map(|(region, _)| region);
        Self { name, account, region }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::new(address.parse().unwrap())
    }

    fn from(origin: &str) -> Message {
        Message::new("x").header(ORIGIN, origin.to_owned())
    }

    fn moved_from(queue: &str) -> Message {
        let mut native = Headers::new();
        native.append(ORIGIN, queue.to_owned());
        Message::new("x").with_native_headers(native)
    }

    #[test]
    fn a_dead_letter_is_of_where_it_says_it_came_from() {
        let (orders, topic) = (source("orders"), source("topic:orders"));
        let group = topic.with_group("billing").unwrap();
        for (letter, of) in [(from("orders"), &orders), (from(&group.to_string()), &group), (Message::new("x"), &group)]
        {
            assert!(is_of(&letter, of), "{letter:?} {of}");
        }
        for (letter, of) in [(from("payments"), &orders), (from("topic:orders"), &orders), (from("orders"), &group)] {
            assert!(!is_of(&letter, of), "{of}");
        }
        assert!(!is_of(&from("topic:orders (group shipping)"), &group));
    }

    #[test]
    fn one_that_the_broker_moved_is_of_the_queue_behind_the_source() {
        let group = source("topic:orders").with_group("billing").unwrap();
        assert!(is_of(&moved_from("orders--billing"), &group) && !is_of(&moved_from("orders--shipping"), &group));
        assert!(is_of(&moved_from("orders"), &source("orders")) && !is_of(&moved_from("payments"), &source("orders")));
    }

    #[test]
    fn a_queue_may_be_named_by_url_or_arn() {
        let url = source("https://sqs.eu-west-1.amazonaws.com/123456789012/orders");
        assert!(is_of(&from("orders"), &url) && is_of(&moved_from("orders"), &url));
        assert!(is_of(&from("arn:aws:sqs:eu-west-1:123456789012:orders"), &source("orders")));
        assert!(is_of(&from("arn:aws:sqs:eu-west-1:123456789012:orders"), &url));
        for other in [
            "payments",
            "https://sqs.eu-west-1.amazonaws.com/210987654321/orders",
            "https://sqs.us-east-1.amazonaws.com/123456789012/orders",
            "arn:aws:sqs:us-east-1:123456789012:orders",
            "arn:aws:sqs:eu-west-1:210987654321:orders",
        ] {
            assert!(!is_of(&from(other), &url), "{other}");
        }
    }

    #[test]
    fn a_name_with_a_colon_or_a_slash_is_nothing_but_itself() {
        for (origin, of) in [("us:orders", "eu:orders"), ("us:orders", "orders"), ("us/orders", "eu/orders")] {
            let of = source(of);
            assert!(!is_of(&from(origin), &of) && !is_of(&moved_from(origin), &of), "{origin} {of}");
        }
        assert!(
            is_of(&from("us:orders"), &source("us:orders")) && is_of(&moved_from("us:orders"), &source("us:orders"))
        );
    }
}

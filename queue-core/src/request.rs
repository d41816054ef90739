//! Requests and replies: what travels, for those who answer in another way than by the worker.
//!
//! A request is a message with [`reply_to`](crate::Message::reply_to) and
//! [`correlation_id`](crate::Message::correlation_id). A reply is a message to that address with that correlation id; with
//! the header [`ERROR`] it says that there is no answer, and its body why. [`Replier`] makes replies.

mod builder;
mod calls;
mod contract;
mod desk;
mod line;
mod replier;
mod ways;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::headers::HeaderValue;
use crate::message::Message;

pub use self::builder::RequestBuilder;
pub use self::contract::Requests;
pub(crate) use self::desk::Desk;
pub use self::replier::{Replied, Replier};

/// Header of a reply that is an error: a word that says of which sort, such as [`PERMANENT`]. The body says why.
pub const ERROR: &str = "anyqueue-error";
/// [`ERROR`] of a request that can never be answered.
pub const PERMANENT: &str = "permanent";
/// [`ERROR`] of a request whose last attempt failed.
pub const EXHAUSTED: &str = "exhausted";
/// Header of a request where the address has no time to live: when nobody waits for the reply any more, in milliseconds since
/// 1970 by the clock of whoever asks.
pub const DEADLINE: &str = "anyqueue-deadline";
/// Begins the name of every queue that replies come to, and is the name of the topic where they share one.
pub const REPLIES: &str = "anyqueue-replies";

const OPERATION: &str = "request";

/// Whether nobody waits for the reply to this request any more, as far as its [`DEADLINE`] tells.
#[must_use]
pub fn is_over(request: &Message) -> bool {
    let Some(deadline) = request.headers().get(DEADLINE) else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let millis = match deadline {
        HeaderValue::Int(millis) => u64::try_from(*millis).ok(),
        other => other.as_str().and_then(|text| text.parse().ok()),
    };
    millis.is_some_and(|millis| now > u128::from(millis))
}

/// The name of a new queue for replies, which says when it was made: `anyqueue-replies-<seconds since 1970>-<random>`.
fn new_queue() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{REPLIES}-{seconds}-{:016x}", fastrand::u64(..))
}

/// When a queue for replies was made, by its name and the clock of whoever made it; `None` for any other name.
///
/// One that was made two days ago was forgotten by a process that was killed: none is used for longer than a day.
#[must_use]
pub fn made_at(queue: &str) -> Option<SystemTime> {
    let (seconds, random) = queue.strip_prefix(REPLIES)?.strip_prefix('-')?.split_once('-')?;
    let is_ours = random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit());
    let seconds = seconds.parse().ok().filter(|_| is_ours)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The error of a wait that took too long.
fn late(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Timeout, "no reply before the deadline").with_outcome(outcome)
}

/// What a reply says.
fn read(reply: Message) -> Result<Message> {
    let Some(sort) = reply.headers().get(ERROR) else { return Ok(reply) };
    let why = String::from_utf8_lossy(reply.payload()).into_owned();
    let error = Error::new(ErrorKind::Remote, why).with_outcome(Outcome::Rejected);
    Err(error.with_context("sort", sort.as_str().unwrap_or("unknown")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_for_replies_says_when_it_was_made() {
        let made = made_at(&new_queue()).unwrap();
        assert!(made.elapsed().unwrap() < Duration::from_secs(60));
        for other in
            ["orders", REPLIES, "anyqueue-replies-1-", "anyqueue-replies-1-abc", "anyqueue-replies-x-0123456789abcdef"]
        {
            assert_eq!(made_at(other), None, "{other}");
        }
    }

    #[test]
    fn a_request_is_over_behind_its_deadline() {
        assert!(!is_over(&Message::new("x")));
        assert!(is_over(&Message::new("x").header(DEADLINE, 1_i64)));
        assert!(is_over(&Message::new("x").header(DEADLINE, "1")));
        assert!(!is_over(&Message::new("x").header(DEADLINE, i64::MAX)));
        assert!(!is_over(&Message::new("x").header(DEADLINE, "soon")));
    }
}

//! What can be known to be wrong with a message before anything is sent.

use std::time::Duration;

use super::Outbox;
use crate::address::Address;
use crate::capability::Capabilities;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::RESERVED_PREFIX;
use crate::message::Message;
use crate::sender::named;

impl Outbox {
    /// What can be known to be wrong before anything is sent.
    pub(super) fn check(&self, message: &Message, size: usize) -> Result<()> {
        check(&self.capabilities, &self.address, self.internal, message, size)
    }
}

/// What can be known to be wrong with a message of this size to an address that can do this. `internal` ones are copies
/// that the library makes.
pub(crate) fn check(c: &Capabilities, address: &Address, internal: bool, message: &Message, size: usize) -> Result<()> {
    let fail = |error: Error| Err(named(error, address));
    let over = |what: &str, limit: usize, actual: usize| {
        Error::new(ErrorKind::TooLarge, format!("the {what} over the limit"))
            .with_context("limit", limit)
            .with_context("actual", actual)
    };
    if size > c.max_message_bytes {
        return fail(over("message is", c.max_message_bytes, size));
    }
    let headers = message.headers();
    if !headers.is_empty() {
        if headers.len() > c.max_headers {
            return fail(over("number of headers is", c.max_headers, headers.len()));
        }
        if !internal && let Some((name, _)) = headers.iter().find(|(n, _)| n.starts_with(RESERVED_PREFIX)) {
            let why = "header names that start with `anyqueue-` are the library's own";
            return fail(Error::new(ErrorKind::InvalidInput, why).with_context("header", name));
        }
    }
    if message.is_plain() {
        return Ok(());
    }
    let lacks = |what: &'static str| fail(Error::unsupported(what));
    let too_long = |what: &'static str, limit: Duration, actual: Duration| {
        let error = Error::unsupported(what);
        fail(error.with_context("limit", format!("{limit:?}")).with_context("actual", format!("{actual:?}")))
    };
    if let Some(delay) = message.get_delay().filter(|d| !d.is_zero()) {
        if !c.delayed_send {
            return lacks("this address cannot delay a message");
        }
        if delay > c.max_delay {
            return too_long("the delay is longer than this address can", c.max_delay, delay);
        }
    }
    if message.is_tombstone() && !c.tombstones {
        return lacks("this address has no tombstones");
    }
    // A copy keeps what another client has put on a message, whether its queue looks at it or not.
    if internal {
        return Ok(());
    }
    if let Some(ttl) = message.get_ttl() {
        if !c.ttl {
            return lacks("this address cannot expire a message");
        }
        if ttl > c.max_ttl {
            return too_long("the time to live is longer than this address can", c.max_ttl, ttl);
        }
    }
    if message.get_priority().is_some_and(|p| p > 0) && !c.priority {
        return lacks("this address has no priorities");
    }
    Ok(())
}

//! The calls of librdkafka that its bindings leave out: records in batches, commits that nobody waits for, topics that are
//! found once, and headers and metadata as the bytes that they are.
//!
//! The only `unsafe` of the project; `docs/design.md` says why it is here. Nothing that leaves these modules can be used
//! wrongly: what belongs to a client goes before it, and what borrows from a record lives no longer than it.
#![allow(unsafe_code, reason = "see above")]

mod feed;
mod positions;
mod queue;
mod record;
mod route;

pub(crate) use feed::{Feed, Reader};
pub(crate) use positions::{Committed, committed};
pub(crate) use queue::Notice;
#[cfg(test)]
pub(crate) use record::Topic;
pub(crate) use record::{Place, Record};
pub(crate) use route::Route;

//! Reading a stream: where a subscription starts, and where it goes on after a loss.

use std::collections::{BTreeMap, BTreeSet};
use std::time::UNIX_EPOCH;

use lapin::message::Delivery;
use lapin::types::AMQPValue;
use queue_core::Start;

/// Says where a subscription starts, and on a message where it stood.
pub(crate) const OFFSET: &str = "x-stream-offset";

/// The place of one receiver in a stream.
///
/// The server stores none: an acknowledgement only makes room for more. What was handed out and not answered when a
/// channel broke comes again on the next, what was answered does not.
#[derive(Debug)]
pub(crate) struct Place {
    start: Start,
    /// Of all that were handed out, the last.
    last: Option<u64>,
    /// By tag, what is handed out on this channel and not answered.
    open: BTreeMap<u64, u64>,
    /// What was handed out and has to come again.
    again: BTreeSet<u64>,
}

impl Place {
    pub(crate) fn new(start: Start) -> Self {
        Self { start, last: None, open: BTreeMap::new(), again: BTreeSet::new() }
    }

    /// Where a subscription made now starts.
    pub(crate) fn next(&self) -> AMQPValue {
        let offset = |offset: u64| AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX));
        let word = |word: &str| AMQPValue::LongString(word.into());
        match (self.again.first(), self.last, self.start) {
            (Some(first), ..) => offset(*first),
            (None, Some(last), _) => offset(last.saturating_add(1)),
            (None, None, Start::Offset(first)) => offset(first),
            (None, None, Start::Time(time)) => {
                AMQPValue::Timestamp(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
            }
            (None, None, Start::Earliest) => word("first"),
            (None, None, _) => word("next"),
        }
    }

    /// Whether a subscription made now may leave out what came since the first one.
    pub(crate) fn is_loose(&self) -> bool {
        self.last.is_none() && self.start == Start::Latest
    }

    /// A message arrived: whether it is handed out, because it was not answered before.
    pub(crate) fn arrived(&mut self, tag: u64, offset: u64) -> bool {
        let wanted = self.again.remove(&offset) || self.last.is_none_or(|last| offset > last);
        if wanted {
            self.open.insert(tag, offset);
            self.last = self.last.max(Some(offset));
        }
        wanted
    }

    /// A message was answered for good.
    pub(crate) fn answered(&mut self, tag: u64) {
        self.open.remove(&tag);
    }

    /// A message was given back.
    pub(crate) fn gave_back(&mut self, tag: u64) {
        self.again.extend(self.open.remove(&tag));
    }

    /// The channel is gone.
    pub(crate) fn lost(&mut self) {
        self.again.extend(std::mem::take(&mut self.open).into_values());
    }
}

/// Where a message stood in its stream; `None` on other queues.
pub(crate) fn offset(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> AMQPValue {
        AMQPValue::LongLongInt(offset)
    }

    #[test]
    fn a_subscription_goes_on_behind_what_was_answered() {
        let mut place = Place::new(Start::Earliest);
        assert_eq!(place.next(), AMQPValue::LongString("first".into()));
        for (tag, offset) in [(1, 10), (2, 11), (3, 12)] {
            assert!(place.arrived(tag, offset));
        }
        place.answered(1);
        place.answered(3);
        place.lost();
        assert_eq!(place.next(), at(11), "the first that was not answered");
        assert!(place.arrived(1, 11));
        assert!(!place.arrived(2, 12), "it was answered");
        assert!(place.arrived(3, 13));
        place.answered(1);
        place.answered(3);
        place.lost();
        assert_eq!(place.next(), at(14));
    }

    #[test]
    fn what_is_given_back_comes_again_once() {
        let mut place = Place::new(Start::Offset(5));
        assert_eq!(place.next(), at(5));
        assert!(place.arrived(1, 5) && place.arrived(2, 6));
        place.gave_back(1);
        place.answered(2);
        assert_eq!(place.next(), at(5));
        assert!(place.arrived(3, 5) && !place.arrived(4, 6));
        place.answered(3);
        assert_eq!(place.next(), at(7));
    }

    #[test]
    fn a_start_at_the_end_is_loose_until_something_came() {
        let mut place = Place::new(Start::Latest);
        assert!(place.is_loose());
        place.arrived(1, 0);
        assert!(!place.is_loose());
        assert!(!Place::new(Start::Earliest).is_loose());
    }
}

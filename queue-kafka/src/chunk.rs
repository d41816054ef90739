//! Messages on their way from librdkafka to the inbox.

use std::collections::BTreeMap;
use std::time::SystemTime;

use queue_core::{Received, wire};
use rdkafka::error::KafkaError;

use crate::convert::{self, Copies};
use crate::ffi::{Place, Record};
use crate::inbox::{arrived, size};
use crate::lanes::Lanes;

/// What a message is taken to have before any was seen: a large one.
const FIRST_SIZE: usize = 64 << 10;

/// A retry that is not due yet, at which the reading of its partition stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) offset: i64,
    pub(crate) due: SystemTime,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) messages: Vec<Received>,
    /// Messages of tiers, by lane, that may have to wait.
    retries: Vec<(i32, Waiting, Received)>,
    /// Of all of them together.
    pub(crate) bytes: usize,
    /// Of the largest of late.
    largest: usize,
    /// What librdkafka has to tell, with the lane that it is about.
    pub(crate) errors: Vec<(KafkaError, Option<i32>)>,
    copies: Copies,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            retries: Vec::new(),
            bytes: 0,
            largest: FIRST_SIZE,
            errors: Vec::new(),
            copies: Copies::default(),
        }
    }
}

impl Chunk {
    pub(crate) fn add(&mut self, record: Result<Record<'_>, (KafkaError, Option<Place<'_>>)>, lanes: &Lanes) {
        let record = match record {
            Ok(record) => record,
            Err((error, place)) => {
                let lane = place.map(|place| lanes.lane(place.topic.name(), place.partition));
                return self.errors.push((error, lane));
            }
        };
        let message = convert::message(&record, &mut self.copies);
        let lane = if lanes.is_single() { record.partition } else { lanes.lane(record.topic.name(), record.partition) };
        let Some(delay) = lanes.delay(lane) else {
            self.messages.push(arrived(lane, record.offset, message));
            let size = self.messages.last().map_or(0, size);
            return self.count(size);
        };
        let now = SystemTime::now();
        // Whoever writes to the topic can write any time.
        let due = message.as_ref().ok().and_then(wire::due).unwrap_or(now).min(now + delay);
        let received = arrived(lane, record.offset, message);
        self.count(size(&received));
        self.retries.push((lane, Waiting { offset: record.offset, due }, received));
    }

    fn count(&mut self, size: usize) {
        self.bytes += size;
        self.largest = self.largest.max(size);
    }

    /// How many messages fit into so many bytes, if none is larger than those of late: sizes are known when the messages
    /// are there.
    pub(crate) fn fit(&mut self, bytes: usize) -> usize {
        let fit = (bytes / self.largest.max(1)).max(1);
        self.largest -= self.largest / 4;
        fit
    }

    /// Takes the retries that are due. The first of a partition that is not, stops it: that one and those behind it are
    /// read again when it is due.
    pub(crate) fn sort_out(&mut self, waiting: &mut BTreeMap<i32, Waiting>) {
        let now = SystemTime::now();
        for (lane, retry, received) in self.retries.drain(..) {
            if waiting.contains_key(&lane) {
                continue;
            }
            if retry.due > now {
                waiting.insert(lane, retry);
            } else {
                self.messages.push(received);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use queue_core::Message;

    use super::*;

    #[test]
    fn the_first_retry_that_is_not_due_stops_its_partition_alone() {
        let (mut chunk, mut waiting) = (Chunk::default(), BTreeMap::new());
        let now = SystemTime::now();
        let later = now + Duration::from_secs(60);
        for (lane, offset, due) in [(1, 5, now), (1, 6, later), (1, 7, now), (2, 9, now)] {
            let received = arrived(lane, offset, Ok(Message::new("x")));
            chunk.retries.push((lane, Waiting { offset, due }, received));
        }
        chunk.sort_out(&mut waiting);
        let offsets: Vec<_> = chunk.messages.iter().map(|r| r.position.offset).collect();
        assert_eq!(offsets, [Some(5), Some(9)]);
        assert_eq!(waiting, BTreeMap::from([(1, Waiting { offset: 6, due: later })]));
    }

    #[test]
    fn large_messages_are_fetched_in_small_numbers_and_are_not_forgotten_at_once() {
        let mut chunk = Chunk::default();
        assert_eq!(chunk.fit(1 << 20), 16);
        chunk.count(1 << 20);
        assert_eq!((chunk.fit(4 << 20), chunk.fit(4 << 20), chunk.fit(0)), (4, 5, 1));
    }
}

//! The topics of a consumer: its own, and those in which its retries wait.

use std::time::Duration;

use queue_core::{Address, AddressKind, Error, ErrorKind, Result};

use crate::admin::topic_of;

/// Bits of the number of a partition within a lane; a cluster has fewer partitions by far.
const PARTITION_BITS: u32 = 24;

/// A topic in which retries wait, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tier {
    pub(crate) delay: Duration,
    pub(crate) topic: String,
}

impl Tier {
    /// The tiers of a group.
    ///
    /// # Errors
    /// `InvalidInput` where the name of a topic cannot be made of those of topic and group.
    pub(crate) fn all(topic: &str, group: &str, delays: &[Duration]) -> Result<Vec<Self>> {
        let tier = |delay: &Duration| {
            let tier = Self { delay: *delay, topic: format!("{topic}--{group}-retry-{}s", delay.as_secs()) };
            topic_of(&tier.address()).map_err(|e| e.with_context("option", "retry_tiers"))?;
            Ok(tier)
        };
        delays.iter().map(tier).collect()
    }

    pub(crate) fn address(&self) -> Address {
        Address::derived(AddressKind::Topic, &self.topic)
    }
}

/// Names each partition of several topics by one number, which for those of the first is the partition's own.
#[derive(Debug)]
pub(crate) struct Lanes {
    topics: Vec<String>,
    tiers: Vec<Tier>,
}

impl Lanes {
    pub(crate) fn new(topic: &str, tiers: &[Tier]) -> Self {
        let names = std::iter::once(topic).chain(tiers.iter().map(|t| t.topic.as_str()));
        Self { topics: names.map(str::to_owned).collect(), tiers: tiers.to_vec() }
    }

    pub(crate) fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(String::as_str).collect()
    }

    /// The first topic.
    pub(crate) fn topic(&self) -> &str {
        &self.topics[0]
    }

    /// Whether there is no other than the first topic.
    pub(crate) fn is_single(&self) -> bool {
        self.tiers.is_empty()
    }

    /// The lane of a partition; of the first topic where the name is none of them.
    pub(crate) fn lane(&self, topic: &str, partition: i32) -> i32 {
        let index = self.topics.iter().position(|t| t == topic).unwrap_or(0);
        i32::try_from(index).unwrap_or(0) << PARTITION_BITS | partition
    }

    /// Topic and partition of a lane.
    pub(crate) fn place(&self, lane: i32) -> (&str, i32) {
        (&self.topics[index(lane)], partition_of(lane))
    }

    /// How long retries wait there; `None` for the first topic.
    pub(crate) fn delay(&self, lane: i32) -> Option<Duration> {
        Some(self.tiers.get(index(lane).checked_sub(1)?)?.delay)
    }
}

fn index(lane: i32) -> usize {
    lane.unsigned_abs() as usize >> PARTITION_BITS
}

/// The partition of a lane in its topic.
pub(crate) fn partition_of(lane: i32) -> i32 {
    lane & ((1 << PARTITION_BITS) - 1)
}

/// The delays of the option `retry_tiers`.
///
/// # Errors
/// `InvalidConfig` for more than six, for less than a second or parts of one, and for one that stands there twice.
pub(crate) fn checked(delays: &[Duration]) -> Result<Vec<Duration>> {
    /// Each costs a topic and, in every receiver, the fetches of its partitions.
    const MOST: usize = 6;
    let bad = |why: &'static str| {
        Err(Error::new(ErrorKind::InvalidConfig, why).with_operation("configure").with_context("option", "retry_tiers"))
    };
    let mut delays = delays.to_vec();
    delays.sort();
    if delays.len() > MOST {
        return bad("there are at most six tiers");
    }
    if delays.iter().any(|d| d.is_zero() || d.subsec_nanos() > 0) {
        return bad("a tier has whole seconds, and at least one");
    }
    if delays.windows(2).any(|pair| pair[0] == pair[1]) {
        return bad("a tier stands there twice");
    }
    Ok(delays)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn tiers_are_named_after_topic_group_and_delay() {
        let tiers = Tier::all("orders", "billing", &[SECOND * 30]).unwrap();
        assert_eq!(tiers[0].topic, "orders--billing-retry-30s");
        let error = Tier::all("orders", "bill ing", &[SECOND]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_lane_is_a_partition_of_one_of_the_topics() {
        let lanes = Lanes::new("orders", &Tier::all("orders", "g", &[SECOND, SECOND * 2]).unwrap());
        assert_eq!(lanes.lane("orders", 7), 7);
        let lane = lanes.lane("orders--g-retry-2s", 7);
        assert_eq!((lanes.place(lane), partition_of(lane)), (("orders--g-retry-2s", 7), 7));
        assert_eq!((lanes.delay(lane), lanes.delay(7)), (Some(SECOND * 2), None));
    }

    #[test]
    fn delays_are_sorted_and_checked() {
        assert_eq!(checked(&[SECOND * 5, SECOND]).unwrap(), [SECOND, SECOND * 5]);
        for bad in [vec![SECOND; 2], vec![Duration::ZERO], vec![SECOND / 2], (1..=7).map(|n| SECOND * n).collect()] {
            let error = checked(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad:?}");
        }
    }
}

//! What should exist on a broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::address::{Address, Source};

/// What a handle does about its address when it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Declare {
    /// Creates what is missing; takes what exists as it is, unless the topology asks for something that differs.
    #[default]
    Create,
    /// Creates nothing; fails when something is missing or differs.
    Verify,
    /// Asks nothing and needs no rights beyond send and receive.
    Assume,
}

/// One queue, topic or group that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The queue or topic.
    pub address: Address,
    /// The group that should exist on the topic.
    pub group: Option<Arc<str>>,
    /// Where the broker's own backstop sends dead letters.
    pub dead_letter: Option<Address>,
    /// Failed deliveries before the library dead-letters; the broker's own backstop lies beyond.
    pub max_deliveries: Option<u32>,
    /// How long messages are kept.
    pub retention: Option<Duration>,
    /// Partitions of a topic, where the broker has any.
    pub partitions: Option<u32>,
    /// Copies of each message.
    pub replication: Option<u16>,
    /// The broker's own options, by its own names.
    pub native: BTreeMap<String, String>,
}

impl Entry {
    /// Makes an entry that asks for nothing but existence.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            group: None,
            dead_letter: None,
            max_deliveries: None,
            retention: None,
            partitions: None,
            replication: None,
            native: BTreeMap::new(),
        }
    }

    /// The source that reads this entry.
    #[must_use]
    pub fn source(&self) -> Source {
        let mut source = Source::new(self.address.clone());
        source.group.clone_from(&self.group);
        source
    }
}

impl From<&Source> for Entry {
    fn from(source: &Source) -> Self {
        let mut entry = Self::new(source.address.clone());
        entry.group.clone_from(&source.group);
        entry
    }
}

/// What should exist: entries, in the order in which they are declared.
///
/// ```
/// use queue_core::{Entry, Topology};
///
/// let mut orders = Entry::new("orders".parse()?);
/// orders.partitions = Some(24);
/// let topology = Topology::from_iter([orders]);
/// assert_eq!(topology.entries().len(), 1);
/// # Ok::<(), queue_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    entries: Vec<Entry>,
}

impl Topology {
    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }
}

impl FromIterator<Entry> for Topology {
    fn from_iter<I: IntoIterator<Item = Entry>>(iter: I) -> Self {
        Self { entries: iter.into_iter().collect() }
    }
}

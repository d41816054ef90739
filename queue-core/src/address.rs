//! Where messages go and come from.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};

/// What an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressKind {
    /// Receivers compete for each message.
    Queue,
    /// Each group of receivers gets each message.
    Topic,
}

/// The name of a queue (`orders`) or of a topic (`topic:orders`).
///
/// Portable names are `[A-Za-z0-9_-]{1,60}`, with `.fifo` at the end for an SQS FIFO queue; other names pass where the
/// broker takes them. `--` is the library's own separator and refused, but in names that RabbitMQ made up (`amq.…`).
///
/// ```
/// use queue_core::{Address, AddressKind};
///
/// let address: Address = "topic:orders".parse()?;
/// assert_eq!((address.kind(), address.name()), (AddressKind::Topic, "orders"));
/// assert!("orders--billing".parse::<Address>().is_err());
/// assert!("amq.gen--JzTY20BRgKO".parse::<Address>().is_ok());
/// # Ok::<(), queue_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    kind: AddressKind,
    name: Arc<str>,
}

impl Address {
    /// The name, to keep.
    #[cfg(feature = "otel")]
    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Makes the address of a queue.
    ///
    /// # Errors
    /// `InvalidInput` when the name is empty, over 255 bytes, holds a control character or `--`.
    pub fn queue(name: &str) -> Result<Self> {
        Self::checked(AddressKind::Queue, name)
    }

    /// Makes the address of a topic.
    ///
    /// # Errors
    /// As for [`queue`](Self::queue).
    pub fn topic(name: &str) -> Result<Self> {
        Self::checked(AddressKind::Topic, name)
    }

    fn checked(kind: AddressKind, name: &str) -> Result<Self> {
        let refuse =
            |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, why).with_context("name", format!("{name:?}")));
        if name.is_empty() {
            return refuse("a name is not empty");
        }
        if name.len() > 255 {
            return refuse("a name has at most 255 bytes");
        }
        if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refuse("a name has no white space and no control characters");
        }
        // RabbitMQ makes names like `amq.gen--aB…` up: replies go there.
        if name.contains("--") && !name.starts_with("amq.") {
            return refuse("`--` is kept for names that the library derives");
        }
        Ok(Self { kind, name: name.into() })
    }

    /// Makes an address with a derived name, in which `--` is allowed; for adapters and the core.
    #[must_use]
    pub fn derived(kind: AddressKind, name: &str) -> Self {
        Self { kind, name: name.into() }
    }

    /// What the address names.
    #[must_use]
    pub fn kind(&self) -> AddressKind {
        self.kind
    }

    /// Whether it names a topic.
    #[must_use]
    pub fn is_topic(&self) -> bool {
        self.kind == AddressKind::Topic
    }

    /// The name without its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The default dead-letter queue: `<name>-dlq`, with `.fifo` kept last.
    #[must_use]
    pub fn dead_letter(&self) -> Self {
        Self::derived(AddressKind::Queue, &with_suffix(&self.name, "-dlq"))
    }
}

/// A derived name: `.fifo` stays last.
fn with_suffix(name: &str, suffix: &str) -> String {
    match name.strip_suffix(".fifo") {
        Some(stem) => format!("{stem}{suffix}.fifo"),
        None => format!("{name}{suffix}"),
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.split_once(':') {
            Some(("topic", name)) => Self::topic(name),
            Some(("queue", name)) => Self::queue(name),
            _ => Self::queue(s),
        }
    }
}

impl TryFrom<&str> for Address {
    type Error = Error;
    fn try_from(s: &str) -> Result<Self> {
        s.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl TryFrom<&String> for Address {
    type Error = Error;
    fn try_from(s: &String) -> Result<Self> {
        s.parse()
    }
}

impl TryFrom<&Address> for Address {
    type Error = Error;
    fn try_from(a: &Address) -> Result<Self> {
        Ok(a.clone())
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            AddressKind::Queue => f.write_str(&self.name),
            AddressKind::Topic => write!(f, "topic:{}", self.name),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Where a new receiver of a replayable address starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// Where the group left off; a new group starts at the earliest message.
    #[default]
    Committed,
    /// At the earliest message that is kept.
    Earliest,
    /// Behind the latest message.
    Latest,
    /// At this offset of each partition.
    Offset(u64),
    /// At the first message that was stored at or after this time. Where the broker counts in seconds (RabbitMQ), up to
    /// a second earlier; never later.
    Time(SystemTime),
}

/// What a receiver reads: an address, and for topics the group it belongs to.
///
/// A topic without a group gives each receiver everything that is sent from the moment it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Source {
    /// The queue or topic.
    pub address: Address,
    /// The group, for topics.
    pub group: Option<Arc<str>>,
    /// Where to start.
    pub start: Start,
}

impl Source {
    /// Makes a source without a group.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, group: None, start: Start::Committed }
    }

    /// Sets the group.
    ///
    /// # Errors
    /// `InvalidInput` when the name of the group is not acceptable as part of an address.
    pub fn with_group(mut self, group: &str) -> Result<Self> {
        Address::queue(group)?;
        self.group = Some(group.into());
        Ok(self)
    }

    /// The name of the queue that stands behind the source where the broker has queues: the queue's own, or
    /// `<topic>--<group>`, with `.fifo` kept last. `None` for a topic without a group.
    ///
    /// ```
    /// use queue_core::Source;
    ///
    /// let billing = Source::new("topic:orders.fifo".parse()?).with_group("billing")?;
    /// assert_eq!(billing.queue_name().as_deref(), Some("orders--billing.fifo"));
    /// # Ok::<(), queue_core::Error>(())
    /// ```
    #[must_use]
    pub fn queue_name(&self) -> Option<String> {
        let name = self.address.name();
        match (self.address.kind(), &self.group) {
            (AddressKind::Queue, _) => Some(name.to_owned()),
            (AddressKind::Topic, Some(group)) => Some(with_suffix(name, &format!("--{group}"))),
            (AddressKind::Topic, None) => None,
        }
    }

    /// The default dead-letter queue of the source; `None` for a topic without a group.
    #[must_use]
    pub fn dead_letter(&self) -> Option<Address> {
        Some(Address::derived(AddressKind::Queue, &self.queue_name()?).dead_letter())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        match &self.group {
            Some(group) => write!(f, " (group {group})"),
            None => Ok(()),
        }
    }
}

//! Contracts, handles and the embedded broker of `anyqueue`.

mod address;
mod broker;
mod capability;
mod completion;
mod config;
mod consumer;
mod error;
mod event;
mod headers;
mod message;
mod producer;
mod secret;
mod topology;
pub mod wire;

pub use crate::address::{Address, AddressKind, Source, Start};
pub use crate::broker::{
    Broker, BrokerLayer, CloseReport, Connect, ConsumerOptions, Driver, Options, ProducerOptions, Stats,
};
pub use crate::capability::{Capabilities, DeliveryCount, Ordering, RetryVia};
pub use crate::completion::{BatchError, BatchVerdict, Completion, Receipts, Verdict};
pub use crate::config::{Endpoint, Host, option_names};
pub use crate::consumer::{AckReport, AckToken, Answer, Consumer, Position, Received, Settled, Undecodable};
pub use crate::error::{Error, ErrorKind, Outcome, Result};
pub use crate::event::{Event, EventKind, EventStream, Events, Health, HealthState};
pub use crate::headers::{HeaderValue, Headers, RESERVED_PREFIX, Text};
pub use crate::message::Message;
pub use crate::producer::{Producer, Receipt};
pub use crate::secret::Secret;
pub use crate::topology::{Declare, Entry, Topology};

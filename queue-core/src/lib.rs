#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod address;
mod bindings;
mod block;
mod broker;
mod capability;
mod client;
mod completion;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod consumer;
pub mod dead_letter;
mod delivery;
mod error;
mod event;
pub mod files;
mod headers;
mod hold;
mod inbox;
#[cfg(any(feature = "conformance", feature = "testing"))]
mod interpose;
mod lease;
pub mod memory;
mod message;
mod observe;
#[cfg(feature = "otel")]
pub mod otel;
mod outbox;
mod producer;
mod receiver;
mod redrive;
mod registry;
pub mod request;
mod secret;
mod sender;
mod sink;
#[cfg(feature = "testing")]
pub mod testing;
mod token;
mod topology;
mod transaction;
mod transactor;
mod verdict;
mod wakes;
mod window;
pub mod wire;

/// What payloads and keys are made of.
pub use bytes::Bytes;

pub use crate::address::{Address, AddressKind, Source, Start};
pub use crate::bindings::{Bindings, Connections};
pub use crate::broker::{
    Broker, BrokerLayer, CloseReport, Connect, ConsumerOptions, Driver, Options, PartitionStats, ProducerOptions, Stats,
};
pub use crate::capability::{Capabilities, DeliveryCount, EventBinding, Ordering, ReplyVia, RetryVia};
pub use crate::client::Client;
pub use crate::completion::Completion;
pub use crate::config::{Endpoint, Host, option_names, unknown_option};
pub use crate::consumer::{AckReport, AckToken, Answer, Consumer, Position, Received, Settled, Undecodable};
pub use crate::delivery::{Answered, Batch, BatchIntoIter, BatchItem, Delivery, Extended, Ticket};
pub use crate::error::{Error, ErrorKind, Outcome, Result};
pub use crate::event::{Event, EventKind, EventStream, Events, Health, HealthState};
pub use crate::headers::{HeaderValue, Headers, RESERVED_PREFIX, Text};
pub use crate::hold::Hold;
pub use crate::message::Message;
pub use crate::observe::{EnteredProcessing, Processing};
pub use crate::producer::{Producer, Receipt};
pub use crate::receiver::{Receiver, ReceiverBuilder, ReceiverConfig, ReceiverControl};
pub use crate::redrive::{RedriveBuilder, Redriven};
pub use crate::request::{Replied, Replier, RequestBuilder, Requests};
pub use crate::secret::Secret;
pub use crate::sender::{OnUnknown, Sender, SenderBuilder, SenderConfig};
pub use crate::sink::SenderSink;
pub use crate::token::{Token, TokenProvider};
pub use crate::topology::{Declare, Entry, Topology};
pub use crate::transaction::{Acks, Participant, TransactionOptions, TransactionSession, Transactions, Uncommitted};
pub use crate::transactor::{Enlist, Transaction, Transactor, TransactorBuilder};
pub use crate::verdict::{BatchError, BatchVerdict, Receipts, Verdict};
pub use crate::wakes::together;

#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod address;
mod answers;
mod broker;
mod capabilities;
mod config;
mod consumer;
mod convert;
mod dispatch;
mod door;
mod error;
mod hops;
mod lanes;
mod lease;
mod link;
mod poll;
mod producer;
mod queues;
mod replies;
mod thread;
#[cfg(feature = "sns")]
mod topics;
#[cfg(not(feature = "sns"))]
#[path = "topics/missing.rs"]
mod topics;
mod topology;

use queue_core::{Driver, option_names};

/// The SDK's client for topics, in the version that native access takes.
#[cfg(feature = "sns")]
pub use aws_sdk_sns;
/// The SDK's client, in the version that native access gives.
pub use aws_sdk_sqs;

pub use crate::broker::SqsBroker;
pub use crate::config::SqsConfig;

/// The driver of Amazon SQS: scheme `sqs`.
pub const DRIVER: Driver = Driver::new("sqs", &["sqs"], option_names::<SqsConfig>, |endpoint, events| {
    Box::pin(broker::connect(endpoint, events))
});

/// The code on the page about SQS compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/sqs.md")]
struct Page;

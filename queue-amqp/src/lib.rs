#![doc = include_str!("../README.md")]

mod broker;
mod config;
mod consumer;
mod convert;
mod decide;
mod error;
mod flight;
mod ledger;
mod link;
mod producer;
mod publisher;
mod slots;
mod subscription;
mod topology;
mod window;

use std::sync::Arc;

use futures::FutureExt;
use queue_core::{Broker, Driver, option_names};

pub use crate::broker::AmqpBroker;
pub use crate::config::AmqpConfig;

/// Connects to `amqp://` URLs.
pub const DRIVER: Driver = Driver::new("rabbitmq", &["amqp"], option_names::<AmqpConfig>, |endpoint, events| {
    async move { Ok(Arc::new(AmqpBroker::connect(&endpoint, events).await?) as Arc<dyn Broker>) }.boxed()
});

#![doc = include_str!("../README.md")]

mod admin;
mod broker;
mod config;
mod consumer;
mod convert;
mod error;
mod flights;
mod inbox;
mod link;
mod offsets;
mod poller;
mod producer;

use std::sync::Arc;

use futures::future::BoxFuture;
use queue_core::{Broker, Driver, Endpoint, Events, Result, option_names};

pub use rdkafka;

pub use crate::broker::KafkaBroker;
pub use crate::config::KafkaConfig;

/// Connects by URLs that start with `kafka://`.
pub const DRIVER: Driver = Driver::new("kafka", &["kafka"], option_names::<KafkaConfig>, connect);

fn connect(endpoint: Endpoint, events: Events) -> BoxFuture<'static, Result<Arc<dyn Broker>>> {
    Box::pin(async move {
        let broker: Arc<dyn Broker> = Arc::new(KafkaBroker::connect(&endpoint, events).await?);
        Ok(broker)
    })
}

/// The code on the page about Kafka compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/kafka.md")]
struct Page;

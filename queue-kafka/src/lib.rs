#![doc = include_str!("../README.md")]

mod admin;
mod auth;
mod broker;
mod callbacks;
mod chunk;
mod config;
mod consumer;
mod convert;
mod error;
mod ffi;
mod flights;
mod gone;
#[cfg(feature = "msk-iam")]
mod iam;
mod inbox;
mod lanes;
mod link;
mod monitor;
mod native;
mod offsets;
mod poller;
mod producer;
mod signal;
mod sync;
mod tls;
mod tokens;
mod transaction;

use std::sync::Arc;

use futures::future::BoxFuture;
use queue_core::{Broker, Driver, Endpoint, Events, Result, option_names};

pub use rdkafka;

pub use crate::auth::Auth;
pub use crate::broker::KafkaBroker;
pub use crate::config::KafkaConfig;
#[cfg(feature = "msk-iam")]
pub use crate::iam::MskIam;
pub use queue_core::{Token, TokenProvider};

/// Connects by URLs that start with `kafka://`, or with `kafkas://` over TLS (feature `tls`).
pub const DRIVER: Driver = Driver::new("kafka", &["kafka", config::TLS_SCHEME], option_names::<KafkaConfig>, connect);

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

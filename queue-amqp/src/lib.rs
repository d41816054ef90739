#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod auth;
mod broker;
mod burst;
mod capability;
mod config;
mod consumer;
mod convert;
mod decide;
mod delay;
mod dial;
mod error;
mod flight;
mod inbox;
mod ledger;
mod link;
#[cfg(feature = "management")]
mod management;
mod producer;
mod publisher;
mod renewal;
mod requests;
mod returns;
mod server;
mod slots;
mod stream;
mod subscription;
mod tls;
mod topology;
mod turns;
mod window;

use std::sync::Arc;

use futures::FutureExt;
use queue_core::{Broker, Driver, option_names};

/// The client, in the version that native access gives.
pub use lapin;

pub use crate::auth::Auth;
pub use crate::broker::AmqpBroker;
pub use crate::config::AmqpConfig;
pub use queue_core::{Token, TokenProvider};

/// Connects to `amqp://` and `amqps://` URLs.
pub const DRIVER: Driver =
    Driver::new("rabbitmq", &["amqp", "amqps"], option_names::<AmqpConfig>, |endpoint, events| {
        async move { Ok(Arc::new(AmqpBroker::connect(&endpoint, events).await?) as Arc<dyn Broker>) }.boxed()
    });

/// The code on the page about RabbitMQ compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/amqp.md")]
struct Page;

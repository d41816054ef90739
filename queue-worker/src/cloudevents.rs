//! CloudEvents 1.0 as messages.
//!
//! A [`CloudEvent`] is a value like any other for [`TypedSender`](crate::TypedSender), [`TypedReceiver`](crate::TypedReceiver)
//! and [`Typed`](crate::Typed) handlers. The codec says how it travels, and what its data are, JSON unless told otherwise:
//!
//! | codec | the event travels |
//! | --- | --- |
//! | [`Structured`] | as a whole, `application/cloudevents+json` |
//! | [`Binary`] | as headers, with the data as payload, where the broker has an official binding; else as a whole |
//!
//! | broker | headers of the binary mode | content type |
//! | --- | --- | --- |
//! | RabbitMQ | `cloudEvents:id`, … | the property |
//! | Kafka | `ce_id`, … | the header `content-type` |
//! | SQS, SNS, the memory broker itself | no official binding: as a whole | the message's, with the library's own note |
//!
//! Each codec reads both modes, from any of these, and `cloudEvents_id` and `ce-id` (the Python SDK's on RabbitMQ) as well. The
//! extension `partitionkey` is the message's key, on every broker. Batches (`application/cloudevents-batch+json`) are refused.
//!
//! ```
//! use std::time::SystemTime;
//! use queue_worker::cloudevents::{Binary, CloudEvent};
//! use queue_worker::{TypedReceiver, TypedSender};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Order {
//!     amount: u32,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> queue_core::Result<()> {
//! # let client = queue_core::Client::connect_with("memory://?profile=kafka", &[queue_core::memory::DRIVER]).await?;
//! let orders = TypedSender::<CloudEvent<Order>, Binary>::new(client.sender("orders").await?);
//! let event = CloudEvent::new("17", "/shop", "com.example.order.placed", Order { amount: 3 });
//! orders.send(&event.time(SystemTime::now()).partition_key("user-7")).await?;
//!
//! let mut inbox = TypedReceiver::<CloudEvent<Order>, Binary>::new(client.receiver("orders").await?);
//! let (event, delivery) = inbox.receive().await?;
//! assert_eq!((event.ty(), event.data().unwrap().amount), ("com.example.order.placed", 3));
//! delivery.ack();
//! # Ok(())
//! # }
//! ```

mod attributes;
mod binary;
mod error;
mod structured;
mod time;

use std::time::SystemTime;

use queue_core::Message;

use self::attributes::Attributes;
pub use self::attributes::EventValue;
pub use self::binary::Binary;
pub use self::error::EventError;
pub use self::structured::Structured;
use crate::codec::{Decode, Json, essence};
use crate::failure::Failure;
use crate::job::Job;
use crate::payload::FromJob;

/// The extension that is the key of the message.
const PARTITION_KEY: &str = "partitionkey";

/// An event of CloudEvents 1.0.
///
/// As an argument of a handler its data are JSON; `Typed<CloudEvent<T>, Structured<C>>` reads those of another codec.
#[derive(Debug, Clone, PartialEq)]
pub struct CloudEvent<T> {
    attributes: Attributes,
    data: Option<T>,
}

impl<T> CloudEvent<T> {
    /// An event with the attributes that each has: an id, unique within the source; what it comes from, a URI reference; what
    /// happened. None may be empty, which is checked when it is sent.
    #[must_use]
    pub fn new(id: impl Into<String>, source: impl Into<String>, ty: impl Into<String>, data: T) -> Self {
        Self { data: Some(data), ..Self::without_data(id, source, ty) }
    }

    /// An event that has no data.
    #[must_use]
    pub fn without_data(id: impl Into<String>, source: impl Into<String>, ty: impl Into<String>) -> Self {
        Self { attributes: Attributes::new(id.into(), source.into(), ty.into()), data: None }
    }

    /// Says what in the source it is about.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.attributes.subject = Some(subject.into());
        self
    }

    /// Says when it happened: 1970 to 9999.
    #[must_use]
    pub fn time(mut self, time: SystemTime) -> Self {
        self.attributes.time = Some(time);
        self
    }

    /// Says by a URI what its data look like.
    #[must_use]
    pub fn data_schema(mut self, schema: impl Into<String>) -> Self {
        self.attributes.data_schema = Some(schema.into());
        self
    }

    /// Sets an extension, whose name is lower-case letters and digits, which is checked when it is sent.
    #[must_use]
    pub fn extension(mut self, name: impl Into<String>, value: impl Into<EventValue>) -> Self {
        self.attributes.extensions.insert(name.into(), value.into());
        self
    }

    /// Sets the extension `partitionkey`, which is the key of the message: events with one keep their order where the broker
    /// can.
    #[must_use]
    pub fn partition_key(self, key: impl Into<String>) -> Self {
        self.extension(PARTITION_KEY, key.into())
    }

    /// The id, unique within the source.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.attributes.id
    }

    /// What it comes from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.attributes.source
    }

    /// What happened: the attribute `type`.
    #[must_use]
    pub fn ty(&self) -> &str {
        &self.attributes.ty
    }

    /// What in the source it is about.
    #[must_use]
    pub fn get_subject(&self) -> Option<&str> {
        self.attributes.subject.as_deref()
    }

    /// When it happened.
    #[must_use]
    pub fn get_time(&self) -> Option<SystemTime> {
        self.attributes.time
    }

    /// What its data look like.
    #[must_use]
    pub fn get_data_schema(&self) -> Option<&str> {
        self.attributes.data_schema.as_deref()
    }

    /// An extension.
    #[must_use]
    pub fn get_extension(&self, name: &str) -> Option<&EventValue> {
        self.attributes.extensions.get(name)
    }

    /// Every extension, by name.
    pub fn extensions(&self) -> impl Iterator<Item = (&str, &EventValue)> {
        self.attributes.extensions.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The data.
    #[must_use]
    pub fn data(&self) -> Option<&T> {
        self.data.as_ref()
    }

    /// Takes the data out of the event.
    #[must_use]
    pub fn into_data(self) -> Option<T> {
        self.data
    }

    /// Gives the message the key that the event has.
    fn keyed(&self, message: Message) -> Message {
        match self.attributes.extensions.get(PARTITION_KEY) {
            Some(key) => message.key(key.to_string()),
            None => message,
        }
    }
}

/// The event of a message, whichever way it travelled.
fn read<T, C: Decode<T>>(message: &Message) -> Result<CloudEvent<T>, EventError> {
    let content_type = binary::content_type(message);
    match content_type.map(essence).as_deref() {
        Some(kind) if kind.starts_with("application/cloudevents-batch") => Err(EventError::Batch),
        Some(structured::CONTENT_TYPE) => structured::read::<T, C>(message.payload()),
        Some(kind) if kind.starts_with("application/cloudevents") => Err(EventError::Format(kind.to_owned())),
        None if !binary::is_event(message) => structured::read::<T, C>(message.payload()),
        _ => binary::read::<T, C>(message, content_type),
    }
}

/// Reads data, unless they are stated to be something else.
fn data<T, C: Decode<T>>(content_type: Option<&str>, bytes: &[u8]) -> Result<T, EventError> {
    if let Some(stated) = content_type
        && !C::reads(&essence(stated))
    {
        return Err(EventError::ContentType { stated: stated.to_owned(), expected: C::CONTENT_TYPE });
    }
    C::decode(bytes).map_err(EventError::Data)
}

impl<T: serde::de::DeserializeOwned> FromJob for CloudEvent<T> {
    fn from_job(job: &Job) -> Result<Self, Failure> {
        read::<T, Json>(job.message()).map_err(Failure::permanent)
    }
}

/// Implements the codec of events, but for how a message is made.
macro_rules! codec_of_events {
    ($name:ident) => {
        impl<C: crate::codec::Codec> crate::codec::Codec for $name<C> {
            const CONTENT_TYPE: &'static str = {
                assert!(C::CONTENT_ENCODING.is_none(), "compress the event, not its data");
                crate::cloudevents::structured::CONTENT_TYPE
            };
        }

        impl<T, C: Decode<T>> Decode<CloudEvent<T>> for $name<C> {
            fn decode(payload: &[u8]) -> Result<CloudEvent<T>, BoxError> {
                Ok(crate::cloudevents::structured::read::<T, C>(payload)?)
            }

            fn value(message: &Message) -> Result<CloudEvent<T>, BoxError> {
                Ok(crate::cloudevents::read::<T, C>(message)?)
            }
        }
    };
}
use codec_of_events;

//! Events as headers, with the data as payload.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::{Duration, UNIX_EPOCH};

use queue_core::{Capabilities, EventBinding, HeaderValue, Message};

use super::attributes::{Attributes, EventValue};
use super::error::EventError;
use super::structured::Structured;
use super::{CloudEvent, codec_of_events, time};
use crate::codec::{Decode, Encode, Json};
use crate::failure::BoxError;

/// What Kafka's binding names the content type.
const CONTENT_TYPE: &str = "content-type";
/// What stands before the name of an attribute: in Kafka's binding, in both forms of AMQP's, and as the Python SDK has it on
/// RabbitMQ.
const PREFIXES: [&str; 4] = ["ce_", "cloudEvents:", "cloudEvents_", "ce-"];

/// Sends events as headers with data of this codec as payload, by the broker's official binding; as [`Structured`] where it
/// has none. Reads both.
#[derive(Debug, Clone, Copy)]
pub struct Binary<C = Json>(PhantomData<fn() -> C>);

codec_of_events!(Binary);

impl<T, C: Encode<T>> Encode<CloudEvent<T>> for Binary<C> {
    /// The payload alone is the event as a whole, for it has no headers.
    fn encode(event: &CloudEvent<T>) -> Result<Vec<u8>, BoxError> {
        Structured::<C>::encode(event)
    }

    fn message(event: &CloudEvent<T>, able: &Capabilities) -> Result<Message, BoxError> {
        let (prefix, binding) = match able.events {
            Some(EventBinding::Kafka) => ("ce_", EventBinding::Kafka),
            Some(EventBinding::Amqp) => ("cloudEvents:", EventBinding::Amqp),
            _ => return Structured::<C>::message(event, able),
        };
        let mut message = match event.data() {
            Some(data) => {
                let payload = C::encode(data).map_err(EventError::Data)?;
                stating(Message::new(payload), C::CONTENT_TYPE, Some(binding))
            }
            None => Message::default(),
        };
        for (name, value) in event.attributes.write()? {
            let value = match value {
                EventValue::Int(number) if binding == EventBinding::Amqp => HeaderValue::Int(number.into()),
                EventValue::Bool(flag) if binding == EventBinding::Amqp => HeaderValue::Bool(flag),
                value => value.to_string().into(),
            };
            message.headers_mut().append(format!("{prefix}{name}"), value);
        }
        Ok(event.keyed(message))
    }
}

/// Says what the payload is, where the binding has it.
pub(super) fn stating(message: Message, content_type: &'static str, binding: Option<EventBinding>) -> Message {
    match binding {
        Some(EventBinding::Kafka) => message.header(CONTENT_TYPE, content_type),
        _ => message.content_type(content_type),
    }
}

/// What the payload is stated to be.
pub(super) fn content_type(message: &Message) -> Option<&str> {
    let header = || message.headers().iter().find(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE));
    message.get_content_type().or_else(|| header()?.1.as_str())
}

/// Whether headers say that it is an event.
pub(super) fn is_event(message: &Message) -> bool {
    message.headers().iter().any(|(name, _)| attribute(name).as_deref() == Some("specversion"))
}

/// The attribute that a header is, if it is one.
fn attribute(header: &str) -> Option<String> {
    let starts = |prefix: &&str| header.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let prefix = PREFIXES.iter().find(|prefix| starts(prefix))?;
    Some(header[prefix.len()..].to_ascii_lowercase())
}

pub(super) fn read<T, C: Decode<T>>(
    message: &Message,
    content_type: Option<&str>,
) -> Result<CloudEvent<T>, EventError> {
    let mut found = BTreeMap::new();
    for (header, value) in message.headers().iter() {
        // What the data are, the content type of the message says.
        if let Some(name) = attribute(header).filter(|name| name != "datacontenttype") {
            let value = read_value(&name, value).ok_or_else(|| EventError::Value(name.clone()))?;
            found.entry(name).or_insert(value);
        }
    }
    let attributes = Attributes::read(found)?;
    let data = match message.payload() {
        payload if payload.is_empty() && content_type.is_none() => None,
        payload => Some(super::data::<T, C>(content_type, payload)?),
    };
    Ok(CloudEvent { attributes, data })
}

fn read_value(name: &str, value: &HeaderValue) -> Option<EventValue> {
    Some(match value {
        // AMQP's own timestamp as clients without that type send it: milliseconds.
        HeaderValue::Int(millis) if name == "time" => {
            time::format(UNIX_EPOCH + Duration::from_millis(u64::try_from(*millis).ok()?)).ok()?.into()
        }
        HeaderValue::Int(number) => match i32::try_from(*number) {
            Ok(number) => number.into(),
            Err(_) => number.to_string().into(),
        },
        HeaderValue::Bool(flag) => (*flag).into(),
        HeaderValue::Timestamp(at) => time::format(*at).ok()?.into(),
        HeaderValue::Float(number) => number.to_string().into(),
        other => other.as_str()?.into(),
    })
}

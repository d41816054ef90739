//! Events as a whole, in JSON.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use queue_core::{Capabilities, Message};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::attributes::{Attributes, EventValue};
use super::error::EventError;
use super::{CloudEvent, binary, codec_of_events};
use crate::codec::{Codec as _, Decode, Encode, Json, essence, is_json};
use crate::failure::BoxError;

pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Sends events as a whole, as `application/cloudevents+json` with data of this codec: as they are where they are JSON, as
/// text where their content type is `text/…`, else in base64. Reads the binary mode too.
#[derive(Debug, Clone, Copy)]
pub struct Structured<C = Json>(PhantomData<fn() -> C>);

codec_of_events!(Structured);

impl<T, C: Encode<T>> Encode<CloudEvent<T>> for Structured<C> {
    fn encode(event: &CloudEvent<T>) -> Result<Vec<u8>, BoxError> {
        let attributes = event.attributes.write()?;
        let mut all: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
        for (name, value) in &attributes {
            let value = match value {
                EventValue::Str(text) => to_raw_value(text),
                EventValue::Int(number) => to_raw_value(number),
                EventValue::Bool(flag) => to_raw_value(flag),
            };
            all.insert(name, value?);
        }
        if let Some(data) = event.data() {
            let (name, data) = write_data::<T, C>(data).map_err(EventError::Data)?;
            all.insert("datacontenttype", to_raw_value(C::CONTENT_TYPE)?);
            all.insert(name, data);
        }
        Ok(serde_json::to_vec(&all)?)
    }

    fn message(event: &CloudEvent<T>, able: &Capabilities) -> Result<Message, BoxError> {
        let message = Message::new(Self::encode(event)?);
        Ok(event.keyed(binary::stating(message, CONTENT_TYPE, able.events)))
    }
}

fn write_data<T, C: Encode<T>>(data: &T) -> Result<(&'static str, Box<RawValue>), BoxError> {
    let bytes = C::encode(data)?;
    Ok(if is_json(C::CONTENT_TYPE) {
        ("data", RawValue::from_string(String::from_utf8(bytes)?)?)
    } else if C::CONTENT_TYPE.starts_with("text/") {
        ("data", to_raw_value(&String::from_utf8(bytes)?)?)
    } else {
        ("data_base64", to_raw_value(&BASE64.encode(bytes))?)
    })
}

pub(super) fn read<T, C: Decode<T>>(payload: &[u8]) -> Result<CloudEvent<T>, EventError> {
    let json = |error: serde_json::Error| EventError::Json(error.into());
    let mut all: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(payload).map_err(json)?;
    all.retain(|_, value| value.get() != "null");
    let (plain, in_base64) = (all.remove("data"), all.remove("data_base64"));
    let mut found = BTreeMap::new();
    for (name, value) in all {
        let value = match serde_json::from_str(value.get()).map_err(json)? {
            Value::String(text) => text.into(),
            Value::Bool(flag) => flag.into(),
            Value::Number(number) => match number.as_i64().map(i32::try_from) {
                Some(Ok(number)) => number.into(),
                _ => number.to_string().into(),
            },
            Value::Null | Value::Array(_) | Value::Object(_) => return Err(EventError::Value(name)),
        };
        found.insert(name, value);
    }
    let content_type = found.remove("datacontenttype").map(|stated: EventValue| stated.to_string());
    let attributes = Attributes::read(found)?;
    let content_type = content_type.as_deref();
    let data = match (plain, in_base64) {
        (None, None) => None,
        (Some(_), Some(_)) => return Err(EventError::Json("there are both `data` and `data_base64`".into())),
        (Some(plain), None) => Some(read_plain::<T, C>(content_type, &plain)?),
        (None, Some(encoded)) => {
            let encoded: String = serde_json::from_str(encoded.get()).map_err(json)?;
            let bytes = BASE64.decode(encoded).map_err(|error| EventError::Data(error.into()))?;
            Some(super::data::<T, C>(content_type, &bytes)?)
        }
    };
    Ok(CloudEvent { attributes, data })
}

/// Data are JSON unless stated otherwise; a text stands for itself where they are not.
fn read_plain<T, C: Decode<T>>(content_type: Option<&str>, plain: &RawValue) -> Result<T, EventError> {
    let states_json = content_type.is_none_or(|stated| is_json(&essence(stated)));
    match serde_json::from_str::<String>(plain.get()) {
        Ok(text) if !states_json => super::data::<T, C>(content_type, text.as_bytes()),
        _ => super::data::<T, C>(Some(content_type.unwrap_or(Json::CONTENT_TYPE)), plain.get().as_bytes()),
    }
}

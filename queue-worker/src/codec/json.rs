//! JSON.

use super::Codec;
#[cfg(feature = "json")]
use super::{Decode, Encode};
#[cfg(feature = "json")]
use crate::failure::BoxError;

/// JSON, as `application/json`. Reads `text/json` and everything with the suffix `+json` too.
#[derive(Debug, Clone, Copy)]
pub struct Json;

impl Codec for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn reads(content_type: &str) -> bool {
        is_json(content_type)
    }
}

#[cfg(feature = "json")]
impl<T: serde::Serialize> Encode<T> for Json {
    fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(value)?)
    }
}

#[cfg(feature = "json")]
impl<T: serde::de::DeserializeOwned> Decode<T> for Json {
    fn decode(payload: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(payload)?)
    }
}

/// Whether a content type in lower case and without parameters is JSON.
pub(crate) fn is_json(content_type: &str) -> bool {
    matches!(content_type, "application/json" | "text/json") || content_type.ends_with("+json")
}

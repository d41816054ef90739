//! CBOR.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, Decode, Encode};
use crate::failure::BoxError;

/// CBOR (RFC 8949), as `application/cbor`. Reads everything with the suffix `+cbor` too.
#[derive(Debug, Clone, Copy)]
pub struct Cbor;

impl Codec for Cbor {
    const CONTENT_TYPE: &'static str = "application/cbor";

    fn reads(content_type: &str) -> bool {
        content_type == "application/cbor" || content_type.ends_with("+cbor")
    }
}

impl<T: Serialize> Encode<T> for Cbor {
    fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
        let mut payload = Vec::new();
        ciborium::into_writer(value, &mut payload)?;
        Ok(payload)
    }
}

impl<T: DeserializeOwned> Decode<T> for Cbor {
    fn decode(payload: &[u8]) -> Result<T, BoxError> {
        let mut reader = payload;
        let value = ciborium::from_reader(&mut reader)?;
        super::whole(reader.len(), value)
    }
}

//! MessagePack.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, Decode, Encode};
use crate::failure::BoxError;

/// MessagePack, as `application/vnd.msgpack`; structs with the names of their fields, as other languages write them. Reads
/// `application/msgpack` and `application/x-msgpack` too, and structs without names.
#[derive(Debug, Clone, Copy)]
pub struct MessagePack;

impl Codec for MessagePack {
    const CONTENT_TYPE: &'static str = "application/vnd.msgpack";

    fn reads(content_type: &str) -> bool {
        matches!(content_type, "application/vnd.msgpack" | "application/msgpack" | "application/x-msgpack")
    }
}

impl<T: Serialize> Encode<T> for MessagePack {
    fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(rmp_serde::to_vec_named(value)?)
    }
}

impl<T: DeserializeOwned> Decode<T> for MessagePack {
    fn decode(payload: &[u8]) -> Result<T, BoxError> {
        let mut reader = payload;
        let value = rmp_serde::from_read(&mut reader)?;
        super::whole(reader.len(), value)
    }
}

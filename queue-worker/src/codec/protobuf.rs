//! Protobuf.

use prost::Message;

use super::{Codec, Decode, Encode};
use crate::failure::BoxError;

/// Protobuf, as `application/protobuf`, for the messages of prost. Reads `application/x-protobuf` and
/// `application/vnd.google.protobuf` too. The format does not say which message it is: another one may be read without an
/// error, with default values.
#[derive(Debug, Clone, Copy)]
pub struct Protobuf;

impl Codec for Protobuf {
    const CONTENT_TYPE: &'static str = "application/protobuf";

    fn reads(content_type: &str) -> bool {
        matches!(content_type, "application/protobuf" | "application/x-protobuf" | "application/vnd.google.protobuf")
    }
}

impl<T: Message> Encode<T> for Protobuf {
    fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(value.encode_to_vec())
    }
}

impl<T: Message + Default> Decode<T> for Protobuf {
    fn decode(payload: &[u8]) -> Result<T, BoxError> {
        Ok(T::decode(payload)?)
    }
}

//! How values become payloads, and back.

#[cfg(feature = "cbor")]
mod cbor;
#[cfg(any(feature = "gzip", feature = "zstd"))]
mod compressed;
mod json;
#[cfg(feature = "msgpack")]
mod message_pack;
#[cfg(feature = "protobuf")]
mod protobuf;

use queue_core::{Capabilities, Headers, Message};

use crate::failure::BoxError;

#[cfg(feature = "cbor")]
pub use self::cbor::Cbor;
#[cfg(feature = "gzip")]
pub use self::compressed::Gzip;
#[cfg(feature = "zstd")]
pub use self::compressed::Zstd;
pub use self::json::Json;
#[cfg(feature = "cloudevents")]
pub(crate) use self::json::is_json;
#[cfg(feature = "msgpack")]
pub use self::message_pack::MessagePack;
#[cfg(feature = "protobuf")]
pub use self::protobuf::Protobuf;

/// The header that names what a payload was compressed by.
pub const CONTENT_ENCODING: &str = "content-encoding";

/// A format of payloads. Together with [`Encode`] and [`Decode`] it can be one of your own:
///
/// ```
/// use queue_worker::BoxError;
/// use queue_worker::codec::{Codec, Decode, Encode};
///
/// /// Numbers as text.
/// struct Decimal;
///
/// impl Codec for Decimal {
///     const CONTENT_TYPE: &'static str = "text/plain";
/// }
///
/// impl Encode<u64> for Decimal {
///     fn encode(value: &u64) -> Result<Vec<u8>, BoxError> {
///         Ok(value.to_string().into_bytes())
///     }
/// }
///
/// impl Decode<u64> for Decimal {
///     fn decode(payload: &[u8]) -> Result<u64, BoxError> {
///         Ok(std::str::from_utf8(payload)?.parse()?)
///     }
/// }
/// assert_eq!(Decimal::decode(&Decimal::encode(&7).unwrap()).unwrap(), 7);
/// ```
pub trait Codec: 'static {
    /// The content type of what it makes.
    const CONTENT_TYPE: &'static str;
    /// What compresses it, if anything does: the value of the header [`CONTENT_ENCODING`].
    const CONTENT_ENCODING: Option<&'static str> = None;

    /// Whether it reads a content type, which is given in lower case and without parameters.
    #[must_use]
    fn reads(content_type: &str) -> bool {
        content_type == Self::CONTENT_TYPE
    }
}

/// Makes payloads of values.
pub trait Encode<T>: Codec {
    /// Makes a payload.
    ///
    /// # Errors
    /// The value has no form in this format.
    fn encode(value: &T) -> Result<Vec<u8>, BoxError>;

    /// Makes a message for an address that can do this: by default the payload, with content type and encoding. A format
    /// that travels in headers as well makes its own.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    fn message(value: &T, _able: &Capabilities) -> Result<Message, BoxError> {
        let message = Message::new(Self::encode(value)?).content_type(Self::CONTENT_TYPE);
        Ok(match Self::CONTENT_ENCODING {
            Some(encoding) => message.header(CONTENT_ENCODING, encoding),
            None => message,
        })
    }
}

/// Reads values from payloads.
pub trait Decode<T>: Codec {
    /// Reads a payload.
    ///
    /// # Errors
    /// It is not in this format, or not this value.
    fn decode(payload: &[u8]) -> Result<T, BoxError>;

    /// Reads a message: by default its payload, unless it says that it is something else. One that does not say what it is
    /// may be anything, and is tried.
    ///
    /// # Errors
    /// It is something else, and those of [`decode`](Self::decode).
    fn value(message: &Message) -> Result<T, BoxError> {
        if let Some(stated) = message.get_content_type()
            && !Self::reads(&essence(stated))
        {
            return Err(format!("the content type is {stated}, expected {}", Self::CONTENT_TYPE).into());
        }
        // RabbitMQ has a property of that name, which clients in other languages set.
        let stated = encoding(message.headers()).or_else(|| encoding(message.native_headers()));
        if stated != Self::CONTENT_ENCODING {
            let [stated, expected] = [stated, Self::CONTENT_ENCODING].map(|encoding| encoding.unwrap_or("none"));
            return Err(format!("the content encoding is {stated}, expected {expected}").into());
        }
        Self::decode(message.payload())
    }
}

/// A content type in lower case and without parameters.
pub(crate) fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn encoding(headers: &Headers) -> Option<&str> {
    headers.get(CONTENT_ENCODING).and_then(|value| value.as_str()).filter(|encoding| *encoding != "identity")
}

/// A value, unless something stands behind it.
#[cfg(any(feature = "cbor", feature = "msgpack"))]
fn whole<T>(left: usize, value: T) -> Result<T, BoxError> {
    match left {
        0 => Ok(value),
        left => Err(format!("{left} bytes stand behind the value").into()),
    }
}

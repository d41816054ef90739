//! Compression around another codec.

#[cfg(feature = "gzip")]
use std::io;
use std::io::Read;
use std::marker::PhantomData;

use super::{Codec, Decode, Encode};
use crate::failure::BoxError;

/// Most bytes that a payload may become: a small one may be made to fill all memory.
const MOST: u64 = 256 << 20;

macro_rules! compressed {
    ($($(#[$doc:meta])* $name:ident, $feature:literal, $encoding:literal, $compress:expr, $reader:expr;)*) => { $(
        $(#[$doc])*
        #[cfg(feature = $feature)]
        #[derive(Debug, Clone, Copy)]
        pub struct $name<C>(PhantomData<fn() -> C>);

        #[cfg(feature = $feature)]
        impl<C: Codec> Codec for $name<C> {
            const CONTENT_TYPE: &'static str = C::CONTENT_TYPE;
            const CONTENT_ENCODING: Option<&'static str> = {
                assert!(C::CONTENT_ENCODING.is_none(), "what is compressed is not compressed again");
                Some($encoding)
            };

            fn reads(content_type: &str) -> bool {
                C::reads(content_type)
            }
        }

        #[cfg(feature = $feature)]
        impl<T, C: Encode<T>> Encode<T> for $name<C> {
            fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
                Ok($compress(&C::encode(value)?)?)
            }
        }

        #[cfg(feature = $feature)]
        impl<T, C: Decode<T>> Decode<T> for $name<C> {
            fn decode(payload: &[u8]) -> Result<T, BoxError> {
                C::decode(&read($reader(payload)?)?)
            }
        }
    )* };
}

compressed! {
    /// What another codec makes, compressed by gzip. A payload of more than 256 MiB is refused.
    Gzip, "gzip", "gzip", gzip, |payload| io::Result::Ok(flate2::read::MultiGzDecoder::new(payload));
    /// What another codec makes, compressed by Zstandard. A payload of more than 256 MiB is refused.
    Zstd, "zstd", "zstd", |payload: &[u8]| zstd::encode_all(payload, zstd::DEFAULT_COMPRESSION_LEVEL), zstd::Decoder::new;
}

#[cfg(feature = "gzip")]
fn gzip(payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressed = Vec::new();
    flate2::read::GzEncoder::new(payload, flate2::Compression::default()).read_to_end(&mut compressed)?;
    Ok(compressed)
}

fn read(reader: impl Read) -> Result<Vec<u8>, BoxError> {
    let mut payload = Vec::new();
    reader.take(MOST + 1).read_to_end(&mut payload)?;
    match payload.len() as u64 > MOST {
        true => Err(format!("the payload is larger than {MOST} bytes").into()),
        false => Ok(payload),
    }
}

//! What is wrong with an event.

use std::fmt;

use crate::failure::BoxError;

/// Why something is no event, or cannot be sent as one.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventError {
    /// An attribute that each event has is missing or empty: `id`, `source`, `type`.
    Missing(&'static str),
    /// Another version than 1.0; `None` where the message does not say that it is an event.
    Version(Option<String>),
    /// The name of an extension is not made of lower-case letters and digits, or is that of an attribute.
    Name(String),
    /// The value of an attribute is of no type that it can have.
    Value(String),
    /// The time is no time of RFC 3339, or not from 1970 to 9999.
    Time(String),
    /// A batch of events.
    Batch,
    /// A format of events other than JSON: its content type.
    Format(String),
    /// The data are something else than expected.
    ContentType {
        /// What they are.
        stated: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The data cannot be read or made; the codec's own error.
    Data(BoxError),
    /// The event is not the JSON that it has to be.
    Json(BoxError),
}

impl fmt::Display for EventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "an event has the attribute `{name}`, which is missing or empty"),
            Self::Version(None) => f.write_str("the message is no event: there is no `specversion`"),
            Self::Version(Some(version)) => write!(f, "the event is of version {version}, expected 1.0"),
            Self::Name(name) => write!(f, "`{name}` is no name of an extension: lower-case letters and digits"),
            Self::Value(name) => write!(f, "`{name}` has no value that an attribute can have"),
            Self::Time(time) => write!(f, "`{time}` is no time as 2026-01-31T08:00:00Z, from 1970 to 9999"),
            Self::Batch => f.write_str("the message is a batch of events, expected one event in a message"),
            Self::Format(format) => write!(f, "the event is {format}, expected application/cloudevents+json"),
            Self::ContentType { stated, expected } => {
                write!(f, "the data of the event are {stated}, expected {expected}")
            }
            Self::Data(error) => write!(f, "the data of the event: {error}"),
            Self::Json(error) => write!(f, "the event is not the JSON of one: {error}"),
        }
    }
}

impl std::error::Error for EventError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Data(error) | Self::Json(error) => Some(&**error),
            _ => None,
        }
    }
}

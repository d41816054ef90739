//! What an event has beside its data.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use super::error::EventError;
use super::time;

/// The version of all events here.
const VERSION: &str = "1.0";
/// Names that are no extension.
const OWN: [&str; 10] =
    ["specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype", "data", "data_base64"];

/// The value of an extension. Where a binding has text only, as Kafka's, all arrive as text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventValue {
    /// Text; times, URIs and bytes are in their text form.
    Str(String),
    /// A number of 32 bits.
    Int(i32),
    /// True or false.
    Bool(bool),
}

impl fmt::Display for EventValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(text) => f.write_str(text),
            Self::Int(number) => number.fmt(f),
            Self::Bool(flag) => flag.fmt(f),
        }
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for EventValue {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}
from!(&str => Str, String => Str, i32 => Int, bool => Bool);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attributes {
    pub(super) id: String,
    pub(super) source: String,
    pub(super) ty: String,
    pub(super) subject: Option<String>,
    pub(super) time: Option<SystemTime>,
    pub(super) data_schema: Option<String>,
    pub(super) extensions: BTreeMap<String, EventValue>,
}

impl Attributes {
    pub(super) fn new(id: String, source: String, ty: String) -> Self {
        Self { id, source, ty, subject: None, time: None, data_schema: None, extensions: BTreeMap::new() }
    }

    /// Reads names and values, but for the content type of the data.
    pub(super) fn read(mut found: BTreeMap<String, EventValue>) -> Result<Self, EventError> {
        let mut take = |name: &str| found.remove(name).map(|value| value.to_string());
        match take("specversion") {
            Some(version) if version == VERSION => {}
            version => return Err(EventError::Version(version)),
        }
        let mut required =
            |name: &'static str| take(name).filter(|value| !value.is_empty()).ok_or(EventError::Missing(name));
        let mut attributes = Self::new(required("id")?, required("source")?, required("type")?);
        attributes.subject = take("subject");
        attributes.time = take("time").map(|time| time::parse(&time)).transpose()?;
        attributes.data_schema = take("dataschema");
        attributes.extensions = found;
        Ok(attributes)
    }

    /// Names and values, but for the content type of the data.
    pub(super) fn write(&self) -> Result<Vec<(&str, EventValue)>, EventError> {
        let mut all = vec![("specversion", EventValue::from(VERSION))];
        for (name, value) in [("id", &self.id), ("source", &self.source), ("type", &self.ty)] {
            if value.is_empty() {
                return Err(EventError::Missing(name));
            }
            all.push((name, value.clone().into()));
        }
        for (name, value) in [("subject", &self.subject), ("dataschema", &self.data_schema)] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(EventError::Value(name.to_owned()));
            }
        }
        all.extend(self.subject.clone().map(|subject| ("subject", subject.into())));
        all.extend(self.time.map(time::format).transpose()?.map(|time| ("time", time.into())));
        all.extend(self.data_schema.clone().map(|schema| ("dataschema", schema.into())));
        for (name, value) in &self.extensions {
            let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            if name.is_empty() || !is_name(name) || OWN.contains(&name.as_str()) {
                return Err(EventError::Name(name.clone()));
            }
            all.push((name, value.clone()));
        }
        Ok(all)
    }
}

//! Ordered, multi-valued, typed headers.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

/// Text that is either a constant of the program or owned.
pub type Text = Cow<'static, str>;

/// Names that start with this are the library's own; sending one is refused.
pub const RESERVED_PREFIX: &str = "anyqueue-";

/// The value of a header.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue {
    /// Bytes of any content.
    Bytes(Bytes),
    /// Text.
    Str(Text),
    /// A signed integer.
    Int(i64),
    /// A floating point number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A point in time, to the nanosecond.
    Timestamp(SystemTime),
    /// Several values.
    List(Vec<HeaderValue>),
    /// Named values, in order.
    Map(Vec<(Text, HeaderValue)>),
    /// No value.
    Null,
}

impl HeaderValue {
    /// The text of a `Str`, or of `Bytes` that are UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) => Some(s),
            Self::Bytes(b) => std::str::from_utf8(b).ok(),
            _ => None,
        }
    }

    /// The bytes of a `Bytes` or a `Str`.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Str(s) => Some(s.as_bytes()),
            Self::Bytes(b) => Some(b),
            _ => None,
        }
    }

    /// The number of an `Int`, or of text that is one.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            other => other.as_str()?.parse().ok(),
        }
    }

    /// The bytes that the value takes in memory; limits of headers are checked against it.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Bytes(b) => b.len(),
            Self::Str(s) => s.len(),
            Self::List(l) => l.iter().map(Self::size).sum(),
            Self::Map(m) => m.iter().map(|(k, v)| k.len() + v.size()).sum(),
            Self::Bool(_) | Self::Null => 1,
            Self::Int(_) | Self::Float(_) | Self::Timestamp(_) => 8,
        }
    }
}

macro_rules! from {
    ($($t:ty => |$v:ident| $e:expr),* $(,)?) => {$(
        impl From<$t> for HeaderValue { fn from($v: $t) -> Self { $e } }
    )*};
}
from! {
    &'static str => |v| Self::Str(Cow::Borrowed(v)),
    String => |v| Self::Str(Cow::Owned(v)),
    Text => |v| Self::Str(v),
    Bytes => |v| Self::Bytes(v),
    Vec<u8> => |v| Self::Bytes(v.into()),
    i32 => |v| Self::Int(v.into()),
    u32 => |v| Self::Int(v.into()),
    i64 => |v| Self::Int(v),
    f64 => |v| Self::Float(v),
    bool => |v| Self::Bool(v),
    SystemTime => |v| Self::Timestamp(v),
    Vec<HeaderValue> => |v| Self::List(v),
    Vec<(Text, HeaderValue)> => |v| Self::Map(v),
}

/// The headers of a message: names and values in order; a name may come more than once. Names keep their case.
///
/// Empty headers take no memory; a clone shares them until one side changes.
///
/// ```
/// use queue_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.append("tag", "a");
/// headers.append("tag", "b");
/// assert_eq!(headers.get("tag").and_then(|v| v.as_str()), Some("a"));
/// assert_eq!(headers.get_all("tag").count(), 2);
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct Headers(Option<Arc<Vec<(Text, HeaderValue)>>>);

impl Headers {
    /// Makes empty headers.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// The first value under `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Every value under `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a HeaderValue> + 'a {
        self.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Adds a value behind those already there.
    pub fn append(&mut self, name: impl Into<Text>, value: impl Into<HeaderValue>) {
        Arc::make_mut(self.0.get_or_insert_with(Arc::default)).push((name.into(), value.into()));
    }

    /// Replaces every value under `name` by this one.
    pub fn set(&mut self, name: impl Into<Text>, value: impl Into<HeaderValue>) {
        let name = name.into();
        self.remove(&name);
        self.append(name, value);
    }

    /// Removes every value under `name`; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        if self.get(name).is_none() {
            return false;
        }
        self.retain(|n, _| n != name);
        true
    }

    /// Keeps the headers for which `keep` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &HeaderValue) -> bool) {
        if let Some(list) = &mut self.0 {
            let list = Arc::make_mut(list);
            list.retain(|(n, v)| keep(n, v));
            if list.is_empty() {
                self.0 = None;
            }
        }
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &HeaderValue)> + '_ {
        self.0.as_deref().map_or(&[][..], Vec::as_slice).iter().map(|(n, v)| (n.as_ref(), v))
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |l| l.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.iter().map(|(n, v)| n.len() + v.size()).sum()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: Into<Text>, V: Into<HeaderValue>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(iter: I) -> Self {
        let list: Vec<_> = iter.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        Self((!list.is_empty()).then(|| Arc::new(list)))
    }
}

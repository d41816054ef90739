//! What the server says when something exists and differs.

use lapin::types::AMQPValue;

/// One argument in which what was declared differs from what exists.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal<'a> {
    pub(crate) argument: &'a str,
    pub(crate) current: Current<'a>,
}

/// What exists, as far as the server tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Current<'a> {
    None,
    /// A value without its type.
    Untyped(&'a str),
    Typed(&'a str, AMQPValue),
    /// Of a type that cannot be told in words.
    Unspeakable(&'a str),
}

impl Current<'_> {
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Untyped(text) | Self::Typed(text, _) | Self::Unspeakable(text) => text,
        }
    }
}

impl<'a> Refusal<'a> {
    /// Reads "inequivalent arg 'x' for queue 'q' in vhost '/': received … but current is …".
    pub(crate) fn parse(message: &'a str) -> Option<Self> {
        let (_, rest) = message.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once("' for ")?;
        let (_, rest) = rest.split_once(": received ")?;
        let (_, current) = rest.split_once(" but current is ")?;
        Some(Self { argument, current: current_of(current.trim_end())? })
    }
}

fn current_of(text: &str) -> Option<Current<'_>> {
    if text == "none" {
        return Some(Current::None);
    }
    let Some(typed) = text.strip_prefix("the value '") else {
        return Some(Current::Untyped(text.strip_prefix('\'')?.strip_suffix('\'')?));
    };
    let (value, kind) = typed.rsplit_once("' of type '")?;
    let number = || value.parse().ok().map(AMQPValue::LongLongInt);
    let made = match kind.strip_suffix('\'')? {
        "longstr" => Some(AMQPValue::LongString(value.into())),
        "bool" => value.parse().ok().map(AMQPValue::Boolean),
        "byte" | "short" | "signedint" | "long" | "unsignedbyte" | "unsignedshort" | "unsignedint" => number(),
        "double" | "float" => value.parse().ok().map(AMQPValue::Double),
        "timestamp" => value.parse().ok().map(AMQPValue::Timestamp),
        _ => None,
    };
    Some(match made {
        Some(made) => Current::Typed(value, made),
        None => Current::Unspeakable(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "PRECONDITION_FAILED - inequivalent arg";

    fn parsed(text: &str) -> Option<(String, String, Option<AMQPValue>)> {
        let refusal = Refusal::parse(text)?;
        let value = match &refusal.current {
            Current::Typed(_, value) => Some(value.clone()),
            _ => None,
        };
        Some((refusal.argument.to_owned(), refusal.current.shown().to_owned(), value))
    }

    #[test]
    fn what_the_server_tells_is_read() {
        let number = format!(
            "{HEAD} 'x-max-length' for queue 'pq' in vhost '/': received none but current is the value '5' of type \
             'signedint'"
        );
        let expected = ("x-max-length".to_owned(), "5".to_owned(), Some(AMQPValue::LongLongInt(5)));
        assert_eq!(parsed(&number), Some(expected));
        let untyped =
            format!("{HEAD} 'durable' for queue 'a: received b' in vhost 'v': received 'true' but current is 'false'");
        // A name may hold anything; then nothing is read, or what is read is right.
        assert!(parsed(&untyped).is_none_or(|(name, shown, _)| name == "durable" && shown == "false"));
        let plain = format!("{HEAD} 'type' for exchange 'x' in vhost '/': received 'direct' but current is 'fanout'");
        assert_eq!(parsed(&plain), Some(("type".to_owned(), "fanout".to_owned(), None)));
        let none = format!(
            "{HEAD} 'x-a' for queue 'x' in vhost '/': received the value 'f' of type 'longstr' but current is none"
        );
        assert_eq!(parsed(&none), Some(("x-a".to_owned(), "none".to_owned(), None)));
        let table = format!(
            "{HEAD} 'x-a' for queue 'x' in vhost '/': received none but current is the value '[]' of type 'table'"
        );
        assert_eq!(Refusal::parse(&table).unwrap().current, Current::Unspeakable("[]"));
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "NOT_FOUND - no queue 'x'", "inequivalent arg 'x", &format!("{HEAD} 'x' for queue: received")]
        {
            assert_eq!(Refusal::parse(text), None, "{text}");
        }
    }
}

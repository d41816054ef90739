//! The options of a queue that are Amazon's own: its attributes and tags, read from texts.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use queue_core::{Error, ErrorKind, Options, Result, unknown_option};
use serde_json::Value;

pub(crate) const RETENTION: &str = "MessageRetentionPeriod";
pub(crate) const REDRIVE: &str = "RedrivePolicy";
pub(crate) const POLICY: &str = "Policy";
const KEY: &str = "KmsMasterKeyId";
const MANAGED: &str = "SqsManagedSseEnabled";
const SCOPE: &str = "DeduplicationScope";
const THROUGHPUT: &str = "FifoThroughputLimit";
/// What the name of an option that is a tag starts with.
const TAG: &str = "tag.";

/// What the text of an attribute has to be.
enum Shape {
    Number(RangeInclusive<u32>),
    Flag,
    Text,
    OneOf(&'static [&'static str]),
    Json,
}

/// What it means that a broker does not tell an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untold {
    /// Amazon always tells it: the endpoint does not know it.
    Unknown,
    /// The queue has none.
    Unset,
}

/// The attributes of a queue that can be asked for: their limits are Amazon's, from its reference of `SetQueueAttributes`.
const ATTRIBUTES: &[(&str, Shape, Untold)] = &[
    (SCOPE, Shape::OneOf(&["messageGroup", "queue"]), Untold::Unknown),
    ("DelaySeconds", Shape::Number(0..=900), Untold::Unknown),
    (THROUGHPUT, Shape::OneOf(&["perQueue", "perMessageGroupId"]), Untold::Unknown),
    ("KmsDataKeyReusePeriodSeconds", Shape::Number(60..=86_400), Untold::Unset),
    (KEY, Shape::Text, Untold::Unset),
    ("MaximumMessageSize", Shape::Number(1024..=1_048_576), Untold::Unknown),
    (RETENTION, Shape::Number(60..=1_209_600), Untold::Unknown),
    (POLICY, Shape::Json, Untold::Unset),
    ("ReceiveMessageWaitTimeSeconds", Shape::Number(0..=20), Untold::Unknown),
    ("RedriveAllowPolicy", Shape::Json, Untold::Unset),
    (REDRIVE, Shape::Json, Untold::Unset),
    (MANAGED, Shape::Flag, Untold::Unset),
    ("VisibilityTimeout", Shape::Number(0..=43_200), Untold::Unknown),
];

/// Attributes that the adapter sets itself.
const OURS: &[(&str, &str)] = &[
    ("ContentBasedDeduplication", "the library gives every message an id, and never one from its content"),
    ("FifoQueue", "a queue is a FIFO queue when its name ends in .fifo"),
];

/// What is asked of a queue in particular.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Native {
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
}

impl Native {
    /// Reads the options of a queue.
    pub(crate) fn of_queue(options: &Options, fifo: bool) -> Result<Self> {
        let native = Self::read(options)?;
        match native.attributes.keys().find(|name| !fifo && of_fifo(name)) {
            Some(name) => Err(bad("the option belongs to a FIFO queue, and this is none", name)),
            None => Ok(native),
        }
    }

    /// Reads the options of a connection, which hold for each queue that it makes.
    pub(crate) fn of_connection(options: &Options) -> Result<Self> {
        match options.get_key_value(REDRIVE) {
            Some((name, _)) => Err(bad("the option belongs to one queue, not to all", name)),
            None => Self::read(options),
        }
    }

    fn read(options: &Options) -> Result<Self> {
        let mut native = Self::default();
        for (name, value) in options {
            if let Some(tag) = name.strip_prefix(TAG).filter(|tag| !tag.is_empty()) {
                native.tags.insert(tag.to_owned(), value.clone());
            } else {
                native.attributes.insert(name.clone(), attribute(name, value)?);
            }
        }
        let is = |name: &str, value: &str| native.attributes.get(name).is_some_and(|v| v == value);
        if is(MANAGED, "true") && native.attributes.contains_key(KEY) {
            return Err(bad("a queue is encrypted with a key of KMS or with one of SQS, not with both", MANAGED));
        }
        if is(THROUGHPUT, "perMessageGroupId") && is(SCOPE, "queue") {
            return Err(bad("a limit for each message group needs DeduplicationScope=messageGroup", THROUGHPUT));
        }
        Ok(native)
    }

    /// Adds what is not asked for and a queue of this kind can have.
    pub(crate) fn add_missing(&mut self, defaults: &Self, fifo: bool) {
        for (name, value) in defaults.attributes.iter().filter(|(name, _)| fifo || !of_fifo(name)) {
            // A key takes the place of the other way to encrypt, and the other way round.
            let displaced = match name.as_str() {
                KEY => self.attributes.get(MANAGED).is_some_and(|v| v == "true"),
                MANAGED => self.attributes.contains_key(KEY),
                _ => false,
            };
            if !displaced {
                self.attributes.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        for (name, value) in &defaults.tags {
            self.tags.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

fn of_fifo(attribute: &str) -> bool {
    matches!(attribute, SCOPE | THROUGHPUT)
}

/// What it means that a broker does not tell this attribute.
pub(crate) fn untold(attribute: &str) -> Untold {
    ATTRIBUTES.iter().find(|(name, ..)| *name == attribute).map_or(Untold::Unset, |(.., untold)| *untold)
}

/// Checks the value of an attribute, and writes it as the broker does.
fn attribute(name: &str, value: &str) -> Result<String> {
    if let Some((_, why)) = OURS.iter().find(|(ours, _)| *ours == name) {
        return Err(bad(*why, name));
    }
    let Some((_, shape, _)) = ATTRIBUTES.iter().find(|(known, ..)| *known == name) else {
        let mut known: Vec<&str> = ATTRIBUTES.iter().map(|(name, ..)| *name).collect();
        known.push("tag.NAME");
        return Err(unknown_option(name, &known));
    };
    let fits = match shape {
        Shape::Number(range) => match value.parse::<u32>() {
            Ok(number) if range.contains(&number) => return Ok(number.to_string()),
            _ => Err(format!("a number from {} to {}", range.start(), range.end())),
        },
        Shape::Flag if matches!(value, "true" | "false") => Ok(()),
        Shape::Flag => Err("true or false".to_owned()),
        Shape::OneOf(names) if names.contains(&value) => Ok(()),
        Shape::OneOf(names) => Err(format!("one of {}", names.join(", "))),
        Shape::Json if serde_json::from_str::<Value>(value).is_ok_and(|v| v.is_object()) => Ok(()),
        Shape::Json => Err("an object of JSON".to_owned()),
        Shape::Text if !value.is_empty() => Ok(()),
        Shape::Text => Err("not empty".to_owned()),
    };
    match fits {
        Ok(()) => Ok(value.to_owned()),
        Err(wanted) => {
            let error = bad(format!("the value of `{name}` is {wanted}"), name);
            let Shape::OneOf(names) = shape else { return Err(error) };
            Err(match unknown_option(value, names).context("did_you_mean") {
                Some(near) => error.with_context("did_you_mean", near),
                None => error,
            })
        }
    }
}

fn bad(why: impl Into<std::borrow::Cow<'static, str>>, option: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("configure").with_context("option", option)
}

/// Whether two values of an attribute say the same. Policies are JSON: their blanks, the order of their fields and the
/// quotes around numbers vary.
pub(crate) fn same(found: &str, wanted: &str) -> bool {
    fn plain(value: Value) -> Value {
        match value {
            Value::Number(number) => Value::String(number.to_string()),
            Value::Bool(flag) => Value::String(flag.to_string()),
            Value::Array(list) => list.into_iter().map(plain).collect(),
            Value::Object(map) => map.into_iter().map(|(name, value)| (name, plain(value))).collect(),
            other => other,
        }
    }
    let read = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object).map(plain);
    found == wanted || matches!((read(found), read(wanted)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, &str)]) -> Options {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn attributes_and_tags_are_read_as_the_broker_writes_them() {
        let native = Native::of_queue(
            &options(&[
                ("VisibilityTimeout", "0030"),
                ("FifoThroughputLimit", "perMessageGroupId"),
                ("DeduplicationScope", "messageGroup"),
                ("RedriveAllowPolicy", r#"{"redrivePermission":"denyAll"}"#),
                ("tag.team", "billing"),
                ("tag.cost.centre", "7"),
            ]),
            true,
        )
        .unwrap();
        assert_eq!(native.attributes["VisibilityTimeout"], "30");
        assert_eq!(native.attributes.len(), 4);
        assert_eq!(native.tags, options(&[("team", "billing"), ("cost.centre", "7")]));
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_is_near() {
        for (name, value, near) in [
            ("VisibilityTimout", "30", Some("VisibilityTimeout")),
            ("visibility_timeout", "30", None),
            ("VisibilityTimeout", "43201", None),
            ("MessageRetentionPeriod", "59", None),
            ("DelaySeconds", "-1", None),
            ("DelaySeconds", "1.5", None),
            ("ReceiveMessageWaitTimeSeconds", "21", None),
            ("MaximumMessageSize", "1048577", None),
            ("KmsMasterKeyId", "", None),
            ("SqsManagedSseEnabled", "yes", None),
            ("FifoThroughputLimit", "perMessageGroup", Some("perMessageGroupId")),
            ("Policy", "[]", None),
            ("RedriveAllowPolicy", "denyAll", None),
            ("ContentBasedDeduplication", "true", None),
            ("FifoQueue", "true", None),
            ("QueueArn", "x", None),
            ("tag.", "x", None),
        ] {
            let error = Native::of_queue(&options(&[(name, value)]), true).expect_err(name);
            assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(name)), "{error}");
            if near.is_some() {
                assert_eq!(error.context("did_you_mean"), near, "{error}");
            }
        }
        for (list, option) in [
            (&[("KmsMasterKeyId", "alias/a"), ("SqsManagedSseEnabled", "true")], "SqsManagedSseEnabled"),
            (&[("FifoThroughputLimit", "perMessageGroupId"), ("DeduplicationScope", "queue")], "FifoThroughputLimit"),
        ] {
            let error = Native::of_queue(&options(list), true).unwrap_err();
            assert_eq!(error.context("option"), Some(option));
        }
        let ours = Native::of_queue(&options(&[("ContentBasedDeduplication", "true")]), true).unwrap_err();
        assert!(ours.to_string().contains("gives every message an id"), "{ours}");
        let misplaced = Native::of_queue(&options(&[("DeduplicationScope", "queue")]), false).unwrap_err();
        assert_eq!(misplaced.context("option"), Some("DeduplicationScope"));
        let misplaced = Native::of_connection(&options(&[("RedrivePolicy", "{}")])).unwrap_err();
        assert_eq!(misplaced.context("option"), Some("RedrivePolicy"));
    }

    #[test]
    fn options_of_a_connection_fill_in_where_they_fit() {
        let defaults = Native::of_connection(&options(&[
            ("VisibilityTimeout", "60"),
            ("DeduplicationScope", "messageGroup"),
            ("KmsMasterKeyId", "alias/a"),
            ("tag.team", "all"),
        ]));
        let defaults = defaults.unwrap();
        let own = options(&[("VisibilityTimeout", "30"), ("SqsManagedSseEnabled", "true"), ("tag.team", "mine")]);
        for fifo in [false, true] {
            let mut native = Native::of_queue(&own, fifo).unwrap();
            native.add_missing(&defaults, fifo);
            assert_eq!(native.attributes["VisibilityTimeout"], "30");
            assert_eq!(native.attributes.contains_key("DeduplicationScope"), fifo);
            assert!(!native.attributes.contains_key("KmsMasterKeyId"));
            assert_eq!(native.tags["team"], "mine");
        }
    }

    #[test]
    fn policies_are_compared_by_content() {
        assert!(same(r#"{"a":"b","n":3,"f":[true]}"#, r#"{ "n": "3", "f": ["true"], "a": "b" }"#));
        assert!(!same(r#"{"a":"b c"}"#, r#"{"a":"bc"}"#));
        assert!(!same(r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#));
        assert!(!same("30", "31"));
    }
}

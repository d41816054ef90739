//! A message as it is sent, and what Amazon refuses in it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// Attributes of one message.
const MAX_ATTRIBUTES: usize = 10;
/// The longest name and the longest type of an attribute.
const MAX_NAME: usize = 256;
/// The longest message group and deduplication id.
const MAX_ID: usize = 128;
/// The longest delay, in seconds.
pub const MAX_DELAY: i64 = 900;

/// One message of a request.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry {
    #[serde(default)]
    pub message_body: String,
    #[serde(default)]
    pub message_attributes: BTreeMap<String, Attribute>,
    #[serde(default)]
    pub message_system_attributes: BTreeMap<String, Attribute>,
    pub delay_seconds: Option<i64>,
    pub message_group_id: Option<String>,
    pub message_deduplication_id: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attribute {
    pub data_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string_value: Option<String>,
    /// In base64, as it travels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_value: Option<String>,
}

impl Attribute {
    fn kind(&self) -> &str {
        self.data_type.split('.').next().unwrap_or_default()
    }

    pub fn is_binary(&self) -> bool {
        self.kind() == "Binary"
    }

    pub fn value(&self) -> Vec<u8> {
        match (&self.binary_value, &self.string_value) {
            (Some(base64), _) if self.is_binary() => BASE64.decode(base64).unwrap_or_default(),
            (_, Some(text)) => text.clone().into_bytes(),
            _ => Vec::new(),
        }
    }

    fn check(&self, name: &str) -> Result<(), Refusal> {
        let refused = |why: &str| Err(Refusal::invalid("MessageAttributes", name, why));
        if self.data_type.len() > MAX_NAME {
            return refused("Message attribute type is longer than 256 characters.");
        }
        let value = self.value();
        if value.is_empty() {
            return refused("Message attribute must contain a non-empty value.");
        }
        match self.kind() {
            "Binary" => Ok(()),
            "String" | "Number" if !is_legal(&String::from_utf8_lossy(&value)) => {
                refused("Message attribute contains invalid characters.")
            }
            "String" => Ok(()),
            "Number" if self.string_value.as_ref().is_some_and(|text| text.parse::<f64>().is_ok()) => Ok(()),
            "Number" => refused("Could not cast message attribute value to number."),
            _ => refused("Message attribute has an invalid type; it is Binary, Number or String."),
        }
    }
}

impl Entry {
    /// What counts towards the limits of messages and batches.
    pub fn size(&self) -> usize {
        let attribute = |(name, a): (&String, &Attribute)| name.len() + a.data_type.len() + a.value().len();
        self.message_body.len() + self.message_attributes.iter().map(attribute).sum::<usize>()
    }

    /// Refuses what no queue of this kind takes; `limit` is the queue's own for the size.
    pub fn check(&self, fifo: bool, by_content: bool, limit: usize) -> Result<(), Refusal> {
        if self.message_body.is_empty() {
            return Err(Refusal::missing("MessageBody"));
        }
        if self.size() > limit {
            let why = format!("Message must be shorter than {limit} bytes.");
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("One or more parameters are invalid. Reason: {why}"),
            ));
        }
        if !is_legal(&self.message_body) {
            let why = "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | \
                       #xE000 to #xFFFD | #x10000 to #x10FFFF";
            return Err(Refusal::new("InvalidMessageContents", why));
        }
        if self.message_attributes.len() > MAX_ATTRIBUTES {
            let count = self.message_attributes.len();
            let why = format!("Number of message attributes [{count}] exceeds the allowed maximum [{MAX_ATTRIBUTES}].");
            return Err(Refusal::new("InvalidParameterValue", why));
        }
        for (name, attribute) in &self.message_attributes {
            if !is_attribute_name(name) {
                return Err(Refusal::invalid("MessageAttributes", name, "The name of an attribute is not allowed."));
            }
            attribute.check(name)?;
        }
        if let Some(delay) = self.delay_seconds.filter(|delay| !(0..=MAX_DELAY).contains(delay)) {
            return Err(Refusal::invalid("DelaySeconds", delay, "DelaySeconds must be >= 0 and <= 900."));
        }
        if let Some(group) = self.message_group_id.as_ref().filter(|id| !is_id(id)) {
            return Err(Refusal::invalid("MessageGroupId", group, "It has 1 to 128 alphanumeric or punctuation."));
        }
        if let Some(id) = self.message_deduplication_id.as_ref().filter(|id| !is_id(id)) {
            return Err(Refusal::invalid("MessageDeduplicationId", id, "It has 1 to 128 alphanumeric or punctuation."));
        }
        if fifo { self.check_fifo(by_content) } else { self.check_standard() }
    }

    fn check_fifo(&self, by_content: bool) -> Result<(), Refusal> {
        let why = "The request include parameter that is not valid for this queue type";
        if let Some(delay) = self.delay_seconds.filter(|delay| *delay > 0) {
            return Err(Refusal::invalid("DelaySeconds", delay, why));
        }
        if self.message_group_id.is_none() {
            return Err(Refusal::missing("MessageGroupId"));
        }
        if self.message_deduplication_id.is_none() && !by_content {
            let why = "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId \
                       provided explicitly";
            return Err(Refusal::new("InvalidParameterValue", why));
        }
        Ok(())
    }

    /// A message group is welcome on standard queues, where it makes them fair.
    fn check_standard(&self) -> Result<(), Refusal> {
        match &self.message_deduplication_id {
            Some(id) => {
                let why = "The request include parameter that is not valid for this queue type";
                Err(Refusal::invalid("MessageDeduplicationId", id, why))
            }
            None => Ok(()),
        }
    }
}

/// The characters of XML 1.0.
fn is_legal(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..))
}

fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

fn is_attribute_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !lower.starts_with("aws.")
        && !lower.starts_with("amazon.")
}

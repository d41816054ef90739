//! Attributes of queues: which there are, what they may be, what they are unless said.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::refusal::Refusal;

/// Attributes that are numbers: name, least, most, default.
const NUMBERS: &[(&str, u64, u64, u64)] = &[
    ("DelaySeconds", 0, 900, 0),
    ("KmsDataKeyReusePeriodSeconds", 60, 86_400, 300),
    ("MaximumMessageSize", 1024, 1_048_576, 1_048_576),
    ("MessageRetentionPeriod", 60, 1_209_600, 345_600),
    ("ReceiveMessageWaitTimeSeconds", 0, 20, 0),
    ("VisibilityTimeout", 0, 43_200, 30),
];

/// Attributes of other kinds.
const TEXTS: &[&str] = &["KmsMasterKeyId", "Policy", "RedriveAllowPolicy", "RedrivePolicy", "SqsManagedSseEnabled"];
/// Those of FIFO queues only.
const FIFO: &[&str] = &["ContentBasedDeduplication", "DeduplicationScope", "FifoQueue", "FifoThroughputLimit"];
/// Those that the endpoint knows by itself.
pub const OWN: &[&str] = &[
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesDelayed",
    "ApproximateNumberOfMessagesNotVisible",
    "CreatedTimestamp",
    "LastModifiedTimestamp",
    "QueueArn",
];

/// Where messages go that were received too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redrive {
    pub target: String,
    pub receives: u64,
}

/// What was said of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// Takes what is said, or nothing of it.
    pub fn set(&mut self, said: &BTreeMap<String, String>, fifo: bool) -> Result<(), Refusal> {
        for (name, value) in said {
            check(name, value, fifo)?;
        }
        self.0.extend(said.clone());
        Ok(())
    }

    /// Whether this has all that is said, and no other of it.
    pub fn has(&self, said: &BTreeMap<String, String>) -> bool {
        said.iter().all(|(name, value)| self.get(name).as_ref() == Some(value))
    }

    pub fn get(&self, name: &str) -> Option<String> {
        let default = || NUMBERS.iter().find(|(n, ..)| *n == name).map(|(.., default)| default.to_string());
        self.0.get(name).cloned().or_else(default)
    }

    pub fn number(&self, name: &str) -> u64 {
        self.get(name).and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|v| v == value)
    }

    pub fn all(&self) -> BTreeMap<String, String> {
        let defaults = NUMBERS.iter().map(|(name, .., default)| ((*name).to_owned(), default.to_string()));
        defaults.chain(self.0.clone()).collect()
    }

    pub fn redrive(&self) -> Option<Redrive> {
        redrive(self.0.get("RedrivePolicy")?).ok()
    }
}

/// Whether there is an attribute of this name.
pub fn is_known(name: &str) -> bool {
    OWN.contains(&name) || TEXTS.contains(&name) || FIFO.contains(&name) || NUMBERS.iter().any(|(n, ..)| *n == name)
}

fn check(name: &str, value: &str, fifo: bool) -> Result<(), Refusal> {
    let unknown = || Refusal::new("InvalidAttributeName", format!("Unknown Attribute {name}."));
    let refused = || Refusal::new("InvalidAttributeValue", format!("Invalid value for the parameter {name}."));
    if let Some((_, least, most, _)) = NUMBERS.iter().find(|(n, ..)| *n == name) {
        let fits = value.parse::<u64>().is_ok_and(|n| (*least..=*most).contains(&n));
        return if fits { Ok(()) } else { Err(refused()) };
    }
    match name {
        "RedrivePolicy" if !value.is_empty() => redrive(value).map(drop),
        "FifoQueue" if fifo && value == "true" => Ok(()),
        "FifoQueue" if fifo => Err(refused()),
        name if TEXTS.contains(&name) || (fifo && FIFO.contains(&name)) => Ok(()),
        _ => Err(unknown()),
    }
}

fn redrive(policy: &str) -> Result<Redrive, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Policy {
        dead_letter_target_arn: String,
        max_receive_count: serde_json::Value,
    }
    let refused =
        || Refusal::new("InvalidParameterValue", format!("Value {policy} for parameter RedrivePolicy is invalid."));
    let policy: Policy = serde_json::from_str(policy).map_err(|_| refused())?;
    let count = policy.max_receive_count;
    let receives = count.as_u64().or_else(|| count.as_str()?.parse().ok());
    let receives = receives.filter(|n| (1..=1000).contains(n)).ok_or_else(refused)?;
    Ok(Redrive { target: policy.dead_letter_target_arn, receives })
}

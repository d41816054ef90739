//! What all batches have in common: what is refused as a whole, and a verdict for each entry.

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::refusal::Refusal;

/// The most entries of a request.
const MAX_ENTRIES: usize = 10;
/// The longest id of an entry.
const MAX_ID: usize = 80;

/// An entry with its id.
#[derive(Debug, Deserialize)]
pub struct Numbered<T> {
    #[serde(rename = "Id", default)]
    pub id: String,
    #[serde(flatten)]
    pub entry: T,
}

/// Reads the entries of a request.
pub fn entries<T: DeserializeOwned>(request: &Value) -> Result<Vec<Numbered<T>>, Refusal> {
    let entries = request.get("Entries").cloned().unwrap_or_else(|| json!([]));
    let entries: Vec<Numbered<T>> = super::actions::read(&entries)?;
    if entries.is_empty() {
        let why = "There should be at least one entry in the request.";
        return Err(Refusal::new("EmptyBatchRequest", why));
    }
    if entries.len() > MAX_ENTRIES {
        let why = format!("Maximum number of entries per request are 10. You have sent {}.", entries.len());
        return Err(Refusal::new("TooManyEntriesInBatchRequest", why));
    }
    let mut ids = HashSet::new();
    for Numbered { id, .. } in &entries {
        let legal =
            (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !legal {
            let why = "A batch entry id can only contain alphanumeric characters, hyphens and underscores.";
            return Err(Refusal::new("InvalidBatchEntryId", why));
        }
        if !ids.insert(id) {
            return Err(Refusal::new("BatchEntryIdsNotDistinct", format!("Id {id} repeated.")));
        }
    }
    Ok(entries)
}

/// The answer to a batch.
pub fn verdicts(verdicts: Vec<(String, Result<Value, Refusal>)>) -> Value {
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for (id, verdict) in verdicts {
        match verdict {
            Ok(mut answer) => {
                answer["Id"] = id.into();
                successful.push(answer);
            }
            Err(refusal) => failed.push(refusal.entry(&id)),
        }
    }
    json!({ "Successful": successful, "Failed": failed })
}

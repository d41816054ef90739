//! What is asked for beside what exists.

use lapin::types::AMQPValue;
use queue_core::{Entry, Error, ErrorKind, Result};
use serde_json::Value;
use tokio::time::Instant;

use super::{Management, encoded};
use crate::topology::{Arguments, Native, Wanted, shown};

impl Management {
    /// Everything in which what exists differs from what an entry asks for, one line each. `NotFound` when something
    /// does not exist.
    pub(crate) async fn differences(
        &self,
        entry: &Entry,
        native: &Native,
        wanted: Option<&Wanted>,
        deadline: Instant,
    ) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        let name = entry.address.name();
        let missing = |what: &'static str, name: &str| {
            Error::new(ErrorKind::NotFound, format!("there is no such {what}"))
                .with_operation("verify")
                .with_context(what, name)
        };
        if entry.address.is_topic() {
            let found = self.get("exchanges", &[&encoded(name)], deadline).await?;
            let found = found.ok_or_else(|| missing("exchange", name))?;
            let mut note = |what: &str, asked: &str, found: &str| {
                differences.push(format!("exchange {name}: {what} is {found}, asked for {asked}"));
            };
            if let Some(kind) = native.exchange_type {
                let (asked, found) = (kind.name(), text(&found["type"]));
                if asked != found {
                    note("type", asked, &found);
                }
            }
            arguments(&native.exchange, &found["arguments"], &mut note);
        }
        let (Some(queue), Some(wanted)) = (entry.source().queue_name(), wanted) else { return Ok(differences) };
        let found = self.get("queues", &[&encoded(&queue)], deadline).await?;
        let found = found.ok_or_else(|| missing("queue", &queue))?;
        let mut present = found["arguments"].clone();
        if let (Some(kind), Some(present)) = (found.get("type"), present.as_object_mut()) {
            // Where nobody said so when it was made, the arguments do not.
            present.entry("x-queue-type").or_insert_with(|| kind.clone());
        }
        arguments(&wanted.asked, &present, &mut |what, asked, found| {
            differences.push(format!("queue {queue}: {what} is {found}, asked for {asked}"));
        });
        if entry.address.is_topic() {
            let path = ["e", &encoded(name), "q", &encoded(&queue)];
            let bindings = self.get("bindings", &path, deadline).await?.unwrap_or_default();
            let bindings = bindings.as_array().cloned().unwrap_or_default();
            let same = |binding: &Value| {
                let mut differs = false;
                arguments(&native.binding.arguments, &binding["arguments"], &mut |_, _, _| differs = true);
                !differs
            };
            let bound = |key: &str| bindings.iter().any(|binding| binding["routing_key"] == key && same(binding));
            let missing = native.binding.keys.iter().filter(|key| !bound(key));
            differences.extend(missing.map(|key| format!("queue {queue}: is not bound to {name} for {key}")));
            // Without a key, whatever it was bound for: a headers exchange looks at none.
            if native.binding.keys.is_empty() && !bindings.iter().any(same) {
                let which = if bindings.is_empty() { "" } else { " with these arguments" };
                differences.push(format!("queue {queue}: is not bound to {name}{which}"));
            }
        }
        Ok(differences)
    }
}

/// Calls back for each argument that was asked for and is not what is present.
fn arguments(asked: &Arguments, present: &Value, note: &mut dyn FnMut(&str, &str, &str)) {
    for (name, wanted) in asked {
        let found = &present[name];
        let same = match wanted {
            AMQPValue::LongLongInt(number) => *found == *number,
            AMQPValue::Boolean(flag) => *found == *flag,
            other => found.as_str() == Some(&shown(other)),
        };
        if !same {
            note(name, &shown(wanted), &text(found));
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

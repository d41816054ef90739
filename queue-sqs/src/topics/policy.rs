//! The policy of a group's queue: whether it lets the topic send, and the statement that does.

use serde_json::{Map, Value, json};

/// What the name of a statement of ours starts with; a number that stands for the topic follows, so that a queue may
/// have one for each.
const SID: &str = "AnyqueueTopic";
const ACTION: &str = "sqs:SendMessage";
const SOURCE: &str = "aws:SourceArn";

/// Whether a policy lets a topic send to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allows {
    Yes,
    /// As far as its conditions can be read here.
    Perhaps,
    No,
}

/// Reads a policy; the error tells what it is instead of one.
pub(crate) fn judge(policy: Option<&str>, topic: &str, queue: &str) -> Result<Allows, &'static str> {
    let Some(policy) = policy else { return Ok(Allows::No) };
    let policy: Value = serde_json::from_str(policy).map_err(|_| "no JSON")?;
    if !policy.is_object() {
        return Err("no object of JSON");
    }
    let verdicts: Vec<Allows> = statements(&policy).iter().map(|s| judge_one(s, topic, queue)).collect();
    Ok([Allows::Yes, Allows::Perhaps].into_iter().find(|v| verdicts.contains(v)).unwrap_or(Allows::No))
}

/// The policy with a statement that lets the topic send; the others stay as they are.
pub(crate) fn with_ours(policy: Option<&str>, topic: &str, queue: &str) -> String {
    let read = policy.and_then(|policy| serde_json::from_str::<Map<String, Value>>(policy).ok());
    let mut policy = read.unwrap_or_else(|| Map::from_iter([("Version".to_owned(), json!("2012-10-17"))]));
    let sid = sid(topic);
    let mut all = statements(&Value::Object(policy.clone()));
    all.retain(|statement| statement["Sid"] != sid.as_str());
    all.push(json!({
        "Sid": sid,
        "Effect": "Allow",
        "Principal": { "Service": "sns.amazonaws.com" },
        "Action": ACTION,
        "Resource": queue,
        "Condition": { "ArnEquals": { SOURCE: topic } },
    }));
    policy.insert("Statement".to_owned(), all.into());
    Value::Object(policy).to_string()
}

/// The policy without the statements that were added here; `None` when nothing is left.
pub(crate) fn without_ours(policy: &str) -> Option<String> {
    let Ok(mut read) = serde_json::from_str::<Map<String, Value>>(policy) else { return Some(policy.to_owned()) };
    let mut all = statements(&Value::Object(read.clone()));
    let before = all.len();
    all.retain(|statement| !statement["Sid"].as_str().is_some_and(|sid| sid.starts_with(SID)));
    if all.len() == before {
        return Some(policy.to_owned());
    }
    if all.is_empty() {
        return None;
    }
    read.insert("Statement".to_owned(), all.into());
    Some(Value::Object(read).to_string())
}

fn sid(topic: &str) -> String {
    // FNV-1a: the same everywhere and for ever.
    let hash =
        topic.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{SID}{hash:016x}")
}

/// One statement may stand without a list.
fn statements(policy: &Value) -> Vec<Value> {
    list(&policy["Statement"])
}

fn list(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    }
}

fn judge_one(statement: &Value, topic: &str, queue: &str) -> Allows {
    let any =
        |field: &str, text: &str| list(&statement[field]).iter().any(|p| p.as_str().is_some_and(|p| like(p, text)));
    let action = list(&statement["Action"])
        .iter()
        .any(|a| a.as_str().is_some_and(|a| like(&a.to_ascii_lowercase(), &ACTION.to_ascii_lowercase())));
    let principal = &statement["Principal"];
    let service = principal == "*"
        || ["Service", "AWS"].iter().any(|kind| {
            list(&principal[*kind]).iter().any(|p| p == "*" || (*kind == "Service" && p == "sns.amazonaws.com"))
        });
    if statement["Effect"] != "Allow" || !action || !service || !any("Resource", queue) {
        return Allows::No;
    }
    let mut verdict = Allows::Yes;
    for (operator, tests) in statement["Condition"].as_object().into_iter().flatten() {
        let known = matches!(operator.as_str(), "ArnEquals" | "ArnLike" | "StringEquals" | "StringLike");
        for (key, values) in tests.as_object().into_iter().flatten() {
            match known && key.eq_ignore_ascii_case(SOURCE) {
                true if list(values).iter().any(|v| v.as_str().is_some_and(|v| like(v, topic))) => {}
                true => return Allows::No,
                false => verdict = Allows::Perhaps,
            }
        }
    }
    verdict
}

/// Whether a text fits a pattern, in which `*` stands for any text and `?` for any character.
fn like(pattern: &str, text: &str) -> bool {
    let (mut rest, mut pattern) = (text.as_bytes(), pattern.as_bytes());
    let mut star: Option<(&[u8], &[u8])> = None;
    while let Some((first, behind)) = rest.split_first() {
        match pattern.split_first() {
            Some((b'*', next)) => {
                star = Some((next, rest));
                pattern = next;
            }
            Some((p, next)) if p == first || *p == b'?' => {
                pattern = next;
                rest = behind;
            }
            _ => {
                let Some((next, from)) = star else { return false };
                rest = &from[1..];
                star = Some((next, rest));
                pattern = next;
            }
        }
    }
    pattern.iter().all(|p| *p == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:orders";
    const QUEUE: &str = "arn:aws:sqs:eu-west-1:123456789012:orders--billing";

    fn judged(statement: Value) -> Allows {
        judge(Some(&json!({ "Version": "2012-10-17", "Statement": statement }).to_string()), TOPIC, QUEUE).unwrap()
    }

    #[test]
    fn a_statement_is_added_once_and_no_other_is_lost() {
        let theirs = json!({ "Sid": "theirs", "Effect": "Allow", "Principal": "*", "Action": "sqs:ReceiveMessage",
                             "Resource": QUEUE });
        // One statement without a list, and a field that is kept.
        let before = json!({ "Version": "2008-10-17", "Id": "x", "Statement": theirs }).to_string();
        assert_eq!(judge(Some(&before), TOPIC, QUEUE), Ok(Allows::No));
        let after = with_ours(Some(&before), TOPIC, QUEUE);
        assert_eq!(judge(Some(&after), TOPIC, QUEUE), Ok(Allows::Yes));
        let read: Value = serde_json::from_str(&after).unwrap();
        assert_eq!((&read["Id"], &read["Version"]), (&json!("x"), &json!("2008-10-17")));
        assert_eq!(read["Statement"].as_array().unwrap().len(), 2);
        assert_eq!(read["Statement"][0], theirs);
        assert_eq!(with_ours(Some(&after), TOPIC, QUEUE), after);
        // Another topic has a statement of its own.
        let other = TOPIC.replace("orders", "invoices");
        assert_eq!(judge(Some(&after), &other, QUEUE), Ok(Allows::No));
        let both = with_ours(Some(&after), &other, QUEUE);
        assert_eq!(judge(Some(&both), TOPIC, QUEUE), Ok(Allows::Yes));
        assert_eq!(judge(Some(&both), &other, QUEUE), Ok(Allows::Yes));
        let without: Value = serde_json::from_str(&without_ours(&both).unwrap()).unwrap();
        assert_eq!(without["Statement"], json!([theirs]));
        assert_eq!(without_ours(&with_ours(None, TOPIC, QUEUE)), None);
        assert_eq!(without_ours(&before).as_deref(), Some(before.as_str()));
    }

    #[test]
    fn what_others_wrote_is_understood() {
        let base = json!({ "Effect": "Allow", "Principal": { "Service": "sns.amazonaws.com" },
                           "Action": ["SQS:SendMessage"], "Resource": QUEUE });
        let with = |changes: Value| {
            let mut statement = base.clone();
            statement.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            judged(statement)
        };
        let source = |operator: &str, arn: &str| json!({ "Condition": { operator: { "AWS:SourceArn": arn } } });
        assert_eq!(with(json!({})), Allows::Yes);
        assert_eq!(with(source("ArnLike", "arn:aws:sns:*:123456789012:ord*")), Allows::Yes);
        assert_eq!(with(source("StringEquals", TOPIC)), Allows::Yes);
        assert_eq!(with(source("ArnEquals", "arn:aws:sns:eu-west-1:123456789012:order")), Allows::No);
        assert_eq!(with(json!({ "Condition": { "Bool": { "aws:SecureTransport": "true" } } })), Allows::Perhaps);
        assert_eq!(with(json!({ "Action": "sqs:*", "Principal": "*", "Resource": "*" })), Allows::Yes);
        assert_eq!(with(json!({ "Principal": { "AWS": "*" } })), Allows::Yes);
        assert_eq!(with(json!({ "Principal": { "Service": "s3.amazonaws.com" } })), Allows::No);
        assert_eq!(with(json!({ "Effect": "Deny" })), Allows::No);
        assert_eq!(with(json!({ "Action": "sqs:ReceiveMessage" })), Allows::No);
        assert_eq!(with(json!({ "Resource": "arn:aws:sqs:eu-west-1:123456789012:other" })), Allows::No);
        assert_eq!(judge(None, TOPIC, QUEUE), Ok(Allows::No));
        assert!(judge(Some("[]"), TOPIC, QUEUE).is_err() && judge(Some("x"), TOPIC, QUEUE).is_err());
    }
}

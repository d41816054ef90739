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
    /// As far as it can be read here.
    Perhaps,
    No,
    /// Whatever else the policy says.
    Denied,
}

/// Whether a statement is about a topic that sends to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    No,
    Perhaps,
    Yes,
}

/// Reads a policy; the error tells what it is instead of one.
pub(crate) fn judge(policy: Option<&str>, topic: &str, queue: &str) -> Result<Allows, &'static str> {
    let Some(policy) = policy else { return Ok(Allows::No) };
    let policy: Value = serde_json::from_str(policy).map_err(|_| "no JSON")?;
    if !policy.is_object() {
        return Err("no object of JSON");
    }
    let all = statements(&policy);
    let most = |effect: &str| {
        let about = all.iter().filter(|s| s["Effect"] == effect).map(|s| about(s, topic, queue));
        about.max().unwrap_or(About::No)
    };
    Ok(match (most("Allow"), most("Deny")) {
        (_, About::Yes) => Allows::Denied,
        (About::No, _) => Allows::No,
        (About::Yes, About::No) => Allows::Yes,
        _ => Allows::Perhaps,
    })
}

/// Whether the policy has the statement that [`with_ours`] adds.
pub(crate) fn has_ours(policy: Option<&str>, topic: &str, queue: &str) -> bool {
    let read = policy.and_then(|policy| serde_json::from_str::<Value>(policy).ok());
    read.is_some_and(|policy| statements(&policy).contains(&ours(topic, queue)))
}

/// The policy with a statement that lets the topic send; the others stay as they are.
pub(crate) fn with_ours(policy: Option<&str>, topic: &str, queue: &str) -> String {
    let read = policy.and_then(|policy| serde_json::from_str::<Map<String, Value>>(policy).ok());
    let mut policy = read.unwrap_or_else(|| Map::from_iter([("Version".to_owned(), json!("2012-10-17"))]));
    let ours = ours(topic, queue);
    let mut all = statements(&Value::Object(policy.clone()));
    all.retain(|statement| statement["Sid"] != ours["Sid"]);
    all.push(ours);
    policy.insert("Statement".to_owned(), all.into());
    Value::Object(policy).to_string()
}

fn ours(topic: &str, queue: &str) -> Value {
    json!({
        "Sid": sid(topic),
        "Effect": "Allow",
        "Principal": { "Service": "sns.amazonaws.com" },
        "Action": ACTION,
        "Resource": queue,
        "Condition": { "ArnEquals": { SOURCE: topic } },
    })
}

/// The policy without the statements that were added here, its others as a list; `None` when there are no others.
pub(crate) fn without_ours(policy: &str) -> Option<String> {
    let Ok(mut read) = serde_json::from_str::<Map<String, Value>>(policy) else { return Some(policy.to_owned()) };
    let mut all = statements(&Value::Object(read.clone()));
    all.retain(|statement| !statement["Sid"].as_str().is_some_and(|sid| sid.starts_with(SID)));
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
    list(&policy["Statement"]).to_vec()
}

/// A list, or what stands in place of one.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(list) => list,
        one => std::slice::from_ref(one),
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    list(value).iter().filter_map(Value::as_str)
}

fn about(statement: &Value, topic: &str, queue: &str) -> About {
    let action = |a: &str| like(&a.to_ascii_lowercase(), &ACTION.to_ascii_lowercase());
    let principal = &statement["Principal"];
    let service = principal == "*"
        || list(&principal["AWS"]).iter().any(|p| p == "*")
        || list(&principal["Service"]).iter().any(|p| p == "*" || p == "sns.amazonaws.com");
    let parts = [
        part(statement, "Principal", service),
        part(statement, "Action", texts(&statement["Action"]).any(action)),
        part(statement, "Resource", texts(&statement["Resource"]).any(|r| like(r, queue))),
        conditions(&statement["Condition"], topic),
    ];
    parts.into_iter().min().unwrap_or(About::No)
}

/// A part of a statement that may stand as its opposite, `NotAction` for one, which is not read here.
fn part(statement: &Value, name: &str, fits: bool) -> About {
    match fits {
        true => About::Yes,
        false if statement.get(format!("Not{name}")).is_some() => About::Perhaps,
        false => About::No,
    }
}

/// Whether all conditions are met, as far as they ask for the topic.
fn conditions(all: &Value, topic: &str) -> About {
    let mut about = About::Yes;
    for (operator, tests) in all.as_object().into_iter().flatten() {
        let fits: Option<fn(&str, &str) -> bool> = match operator.as_str() {
            "ArnEquals" | "ArnLike" => Some(like_arn),
            "StringEquals" => Some(|wanted, text| wanted == text),
            "StringLike" => Some(like),
            _ => None,
        };
        for (key, values) in tests.as_object().into_iter().flatten() {
            match fits.filter(|_| key.eq_ignore_ascii_case(SOURCE)) {
                Some(fits) if texts(values).any(|wanted| fits(wanted, topic)) => {}
                Some(_) => return About::No,
                None => about = About::Perhaps,
            }
        }
    }
    about
}

/// Whether each of the six parts of an ARN fits its pattern.
fn like_arn(pattern: &str, arn: &str) -> bool {
    let parts = |text| str::splitn(text, 6, ':').collect::<Vec<_>>();
    let (pattern, arn) = (parts(pattern), parts(arn));
    pattern.len() == arn.len() && pattern.iter().zip(&arn).all(|(pattern, part)| like(pattern, part))
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
        // However it was written, it is the same.
        let listed = json!({ "Version": "2008-10-17", "Id": "x", "Statement": [theirs] }).to_string();
        assert_eq!(without_ours(&before), without_ours(&listed));
        assert_eq!(without_ours(r#"{"Statement":[]}"#), None);
        assert!(has_ours(Some(&both), TOPIC, QUEUE) && has_ours(Some(&both), &other, QUEUE));
        assert!(!has_ours(Some(&before), TOPIC, QUEUE) && !has_ours(None, TOPIC, QUEUE));
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
        assert_eq!(with(source("ArnEquals", "arn:aws:sns:*:123456789012:orders")), Allows::Yes);
        assert_eq!(with(source("ArnEquals", "arn:aws:sns:eu-west-1:123456789012:order")), Allows::No);
        // A part of an ARN is compared with that part, and only some operators know patterns.
        assert_eq!(with(source("ArnLike", "arn:aws:*:orders")), Allows::No);
        assert_eq!(with(source("StringLike", "arn:aws:*:orders")), Allows::Yes);
        assert_eq!(with(source("StringEquals", "arn:aws:sns:*:123456789012:orders")), Allows::No);
        assert_eq!(with(source("ArnNotEquals", TOPIC)), Allows::Perhaps);
        assert_eq!(with(json!({ "Condition": { "Bool": { "aws:SecureTransport": "true" } } })), Allows::Perhaps);
        assert_eq!(with(json!({ "Action": "sqs:*", "Principal": "*", "Resource": "*" })), Allows::Yes);
        assert_eq!(with(json!({ "Principal": { "AWS": "*" } })), Allows::Yes);
        assert_eq!(with(json!({ "Principal": { "Service": "s3.amazonaws.com" } })), Allows::No);
        assert_eq!(with(json!({ "Action": "sqs:ReceiveMessage" })), Allows::No);
        assert_eq!(with(json!({ "Resource": "arn:aws:sqs:eu-west-1:123456789012:other" })), Allows::No);
        assert_eq!(with(json!({ "Action": null, "NotAction": "sqs:ReceiveMessage" })), Allows::Perhaps);
        assert_eq!(judge(None, TOPIC, QUEUE), Ok(Allows::No));
        assert!(judge(Some("[]"), TOPIC, QUEUE).is_err() && judge(Some("x"), TOPIC, QUEUE).is_err());
    }

    #[test]
    fn what_is_denied_counts_for_more_than_what_is_allowed() {
        let allow = json!({ "Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": "*" });
        let with = |changes: Value| {
            let mut deny =
                json!({ "Effect": "Deny", "Principal": "*", "Action": "sqs:SendMessage", "Resource": QUEUE });
            deny.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            judged(json!([allow, deny]))
        };
        let source = |arn: &str| json!({ "Condition": { "ArnEquals": { SOURCE: arn } } });
        assert_eq!(with(json!({})), Allows::Denied);
        assert_eq!(with(source(TOPIC)), Allows::Denied);
        assert_eq!(with(source("arn:aws:sns:eu-west-1:123456789012:invoices")), Allows::Yes);
        assert_eq!(with(json!({ "Condition": { "Bool": { "aws:SecureTransport": "false" } } })), Allows::Perhaps);
        assert_eq!(with(json!({ "Action": "sqs:DeleteQueue" })), Allows::Yes);
        assert_eq!(with(json!({ "Principal": { "AWS": "arn:aws:iam::123456789012:root" } })), Allows::Yes);
        assert_eq!(
            judged(json!({ "Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*" })),
            Allows::Denied
        );
        let doubt = json!({ "Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*",
                            "Condition": { "Bool": { "aws:SecureTransport": "false" } } });
        assert_eq!(judged(doubt), Allows::No);
    }
}

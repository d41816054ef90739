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
mod tests;

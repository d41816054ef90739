//! The actions of SNS that the adapter uses, and what it asks STS: forms in, XML out.

use std::collections::BTreeMap;

use super::super::account::Account;
use super::super::entry::{Attribute, Entry};
use super::super::refusal::Refusal;
use super::super::topics::{self, MAX_BYTES, Subscription, Topic, no_topic};

/// The most entries of a request.
const MAX_ENTRIES: usize = 10;
/// Subscriptions on one page; Amazon has a hundred.
const PAGE: usize = 2;

/// Fields of a form, in the order of their names.
pub type Form = BTreeMap<String, String>;

/// Whether an action is asked for by a form.
pub fn act(account: &Account, action: &str, form: &Form) -> Result<String, Refusal> {
    let result = match action {
        "CreateTopic" => create(account, form),
        "DeleteTopic" => delete(account, form),
        "GetTopicAttributes" => attributes(account, form),
        "ListTopics" => Ok(element("Topics", "")),
        "Subscribe" => subscribe(account, form),
        "GetSubscriptionAttributes" => subscription(account, form),
        "ListSubscriptionsByTopic" => list(account, form),
        "PublishBatch" => publish(account, form),
        "GetCallerIdentity" => Ok(element("Account", "000000000000")),
        _ => Err(Refusal::new("InvalidAction", format!("There is no action {action}."))),
    };
    account.changed();
    result.map(|result| element(&format!("{action}Response"), &element(&format!("{action}Result"), &result)))
}

/// The answer to a request that is refused.
pub fn refusal(refusal: &Refusal) -> String {
    let who = if refusal.sender_fault { "Sender" } else { "Receiver" };
    let shape = if refusal.shape == "RequestThrottled" { "Throttled" } else { refusal.shape };
    let error = element("Type", who) + &element("Code", shape) + &element("Message", &escaped(&refusal.message));
    element("ErrorResponse", &element("Error", &error))
}

fn create(account: &Account, form: &Form) -> Result<String, Refusal> {
    let name = field(form, "Name")?;
    let said = map(form, "Attributes.entry", "key", "value");
    let stem = name.strip_suffix(".fifo").unwrap_or(name);
    let legal = !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let fifo = said.get("FifoTopic").is_some_and(|fifo| fifo == "true");
    if !legal || name.len() > 256 || fifo != name.ends_with(".fifo") {
        return Err(invalid("Topic Name"));
    }
    let arn = topics::arn(name);
    let mut state = account.state();
    let topic = state.topics.entry(arn.clone()).or_insert_with(|| Topic::new(said.clone()));
    if said.iter().any(|(name, value)| topic.attributes.get(name) != Some(value)) {
        return Err(invalid("Attributes Reason: Topic already exists with different attributes"));
    }
    Ok(element("TopicArn", &arn))
}

fn delete(account: &Account, form: &Form) -> Result<String, Refusal> {
    account.state().topics.remove(field(form, "TopicArn")?);
    Ok(String::new())
}

fn attributes(account: &Account, form: &Form) -> Result<String, Refusal> {
    let state = account.state();
    let arn = field(form, "TopicArn")?;
    let topic = state.topics.get(arn).ok_or_else(no_topic)?;
    let own = BTreeMap::from([("TopicArn".to_owned(), arn.to_owned())]);
    Ok(element("Attributes", &entries(topic.attributes.iter().chain(&own))))
}

fn subscribe(account: &Account, form: &Form) -> Result<String, Refusal> {
    let mut state = account.state();
    let (arn, endpoint) = (field(form, "TopicArn")?, field(form, "Endpoint")?);
    let said = map(form, "Attributes.entry", "key", "value");
    let topic = state.topics.get_mut(arn).ok_or_else(no_topic)?;
    if field(form, "Protocol")? != "sqs" || (endpoint.ends_with(".fifo") && !topics::is_fifo(arn)) {
        return Err(invalid("Endpoint Reason: FIFO SQS Queues can not be subscribed to standard SNS topics"));
    }
    if let Some(known) = topic.subscriptions.iter().find(|s| s.endpoint == endpoint) {
        if known.attributes != said {
            return Err(invalid("Attributes Reason: Subscription already exists with different attributes"));
        }
        return Ok(element("SubscriptionArn", &known.arn));
    }
    let own = format!("{arn}:{}", uuid::Uuid::now_v7());
    // Who asks owns what is in this account; others are asked first.
    let confirmed = super::super::account::name_of_arn(endpoint).is_some();
    let told = confirmed || form.get("ReturnSubscriptionArn").is_some_and(|asked| asked == "true");
    let answer = element("SubscriptionArn", if told { &own } else { "pending confirmation" });
    topic.subscriptions.push(Subscription { arn: own, endpoint: endpoint.to_owned(), confirmed, attributes: said });
    Ok(answer)
}

fn subscription(account: &Account, form: &Form) -> Result<String, Refusal> {
    let state = account.state();
    let arn = field(form, "SubscriptionArn")?;
    let found = state.topics.values().flat_map(|topic| &topic.subscriptions).find(|s| s.arn == arn);
    Ok(element("Attributes", &entries(&found.ok_or_else(no_topic)?.attributes)))
}

fn list(account: &Account, form: &Form) -> Result<String, Refusal> {
    let state = account.state();
    let topic = state.topics.get(field(form, "TopicArn")?).ok_or_else(no_topic)?;
    let from: usize = form.get("NextToken").and_then(|token| token.parse().ok()).unwrap_or_default();
    let page = topic.subscriptions.iter().skip(from).take(PAGE).map(|s| {
        let arn = if s.confirmed { &*s.arn } else { "PendingConfirmation" };
        let fields = [("SubscriptionArn", arn), ("Protocol", "sqs"), ("Endpoint", &*s.endpoint)];
        element("member", &fields.map(|(name, value)| element(name, value)).concat())
    });
    let mut answer = element("Subscriptions", &page.collect::<String>());
    if from + PAGE < topic.subscriptions.len() {
        answer += &element("NextToken", &(from + PAGE).to_string());
    }
    Ok(answer)
}

fn publish(account: &Account, form: &Form) -> Result<String, Refusal> {
    let (now, mut state) = (account.now(), account.state());
    let arn = field(form, "TopicArn")?;
    if !state.topics.contains_key(arn) {
        return Err(no_topic());
    }
    let mut batch = Vec::new();
    while let Some(id) = form.get(&format!("PublishBatchRequestEntries.member.{}.Id", batch.len() + 1)) {
        batch.push((id.clone(), entry(form, &format!("PublishBatchRequestEntries.member.{}", batch.len() + 1))));
    }
    if batch.is_empty() || batch.len() > MAX_ENTRIES {
        return Err(Refusal::new("TooManyEntriesInBatchRequest", "The batch request contains too many entries."));
    }
    if batch.iter().map(|(_, entry)| entry.size()).sum::<usize>() > MAX_BYTES {
        return Err(Refusal::new("BatchRequestTooLong", "The length of all the messages is more than the limit."));
    }
    let (mut successful, mut failed) = (String::new(), String::new());
    for (id, entry) in batch {
        let id = element("Id", &id);
        let verdict = match state.dice.fails_entry() {
            true => Err(Refusal::failed()),
            false => topics::publish(&mut state, arn, entry, now),
        };
        match verdict {
            Ok((message, sequence)) => {
                let sequence = sequence.map(|n| element("SequenceNumber", &n)).unwrap_or_default();
                successful += &element("member", &(id + &element("MessageId", &message) + &sequence));
            }
            Err(refusal) => {
                let told = [
                    element("Code", refusal.shape),
                    element("Message", &escaped(&refusal.message)),
                    element("SenderFault", &refusal.sender_fault.to_string()),
                ];
                failed += &element("member", &(id + &told.concat()));
            }
        }
    }
    Ok(element("Successful", &successful) + &element("Failed", &failed))
}

fn entry(form: &Form, at: &str) -> Entry {
    let own = |name: &str| form.get(&format!("{at}.{name}")).cloned();
    let mut message_attributes = BTreeMap::new();
    while let Some(name) = own(&format!("MessageAttributes.entry.{}.Name", message_attributes.len() + 1)) {
        let value =
            |field: &str| own(&format!("MessageAttributes.entry.{}.Value.{field}", message_attributes.len() + 1));
        let attribute = Attribute {
            data_type: value("DataType").unwrap_or_default(),
            string_value: value("StringValue"),
            binary_value: value("BinaryValue"),
        };
        message_attributes.insert(name, attribute);
    }
    Entry {
        message_body: own("Message").unwrap_or_default(),
        message_attributes,
        message_system_attributes: BTreeMap::new(),
        delay_seconds: None,
        message_group_id: own("MessageGroupId"),
        message_deduplication_id: own("MessageDeduplicationId"),
    }
}

fn field<'a>(form: &'a Form, name: &str) -> Result<&'a str, Refusal> {
    form.get(name).map(String::as_str).ok_or_else(|| invalid(name))
}

/// What stands as a numbered list of pairs.
fn map(form: &Form, at: &str, key: &str, value: &str) -> BTreeMap<String, String> {
    let pair = |n: usize| {
        Some((form.get(&format!("{at}.{n}.{key}"))?.clone(), form.get(&format!("{at}.{n}.{value}"))?.clone()))
    };
    (1..).map_while(pair).collect()
}

fn invalid(what: &str) -> Refusal {
    Refusal::new("InvalidParameter", format!("Invalid parameter: {what}"))
}

fn entries<'a>(of: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let entry = |(name, value): (&String, &String)| {
        element("entry", &(element("key", &escaped(name)) + &element("value", &escaped(value))))
    };
    of.into_iter().map(entry).collect()
}

fn element(name: &str, inner: &str) -> String {
    format!("<{name}>{inner}</{name}>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

//! What only topics have, on the endpoint of these tests: it delivers as SNS does, drops without a word what SNS drops, and
//! goes wrong when asked.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{
    Client, Declare, Entry, Error, ErrorKind, Message, Ordering, Outcome as Sent, Receiver, Source, Topology,
};
use tokio::time::timeout;

mod endpoint;

use endpoint::{Endpoint, Faults};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

const PATIENCE: Duration = Duration::from_secs(60);
const ACCOUNT: &str = "000000000000";

async fn connect(endpoint: &Endpoint) -> Result<Client, Failure> {
    Ok(Client::connect_with(&endpoint.url("&wait_time=1s"), &[queue_sqs::DRIVER]).await?)
}

async fn group(client: &Client, topic: &str, name: &str) -> Result<Receiver, Error> {
    client.receiver(topic).group(name).discard_dead_letters().await
}

/// The next messages; each is acknowledged.
async fn take(receiver: &mut Receiver, count: usize) -> Result<Vec<Message>, Failure> {
    let mut all = Vec::new();
    while all.len() < count {
        let delivery =
            timeout(PATIENCE, receiver.receive()).await.map_err(|_| format!("{} of {count}", all.len()))??;
        all.push(delivery.message().clone());
        delivery.ack();
    }
    Ok(all)
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().filter_map(Message::text).collect()
}

async fn attribute(endpoint: &Endpoint, queue: &str, name: Attribute) -> Result<Option<String>, Failure> {
    let sqs = endpoint.client();
    let url = sqs.get_queue_url().queue_name(queue).send().await?.queue_url;
    let told = sqs.get_queue_attributes().set_queue_url(url).attribute_names(name.clone()).send().await?;
    Ok(told.attributes.unwrap_or_default().remove(&name))
}

async fn exists(endpoint: &Endpoint, queue: &str) -> bool {
    endpoint.client().get_queue_url().queue_name(queue).send().await.is_ok()
}

fn arn(topic: &str) -> String {
    format!("arn:aws:sns:us-east-1:{ACCOUNT}:{topic}")
}

#[tokio::test]
async fn each_entry_of_a_request_has_its_own_verdict() -> Outcome {
    const COUNT: usize = 500;
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut groups = [group(&client, "topic:orders", "one").await?, group(&client, "topic:orders", "two").await?];
    let sender = client.sender("topic:orders").await?;
    endpoint.set_faults(Faults { fail_entry: 0.1, throttle: 0.05, ..Faults::default() });
    sender.send_batch((0..COUNT).map(|i| i.to_string())).await?;
    endpoint.set_faults(Faults::default());
    assert!(endpoint.counts().fault("fail_entry") > 0 && endpoint.counts().fault("throttle") > 0);
    for receiver in &mut groups {
        // What was refused was not sent, so nothing comes twice.
        let got = take(receiver, COUNT).await?;
        assert_eq!(texts(&got).into_iter().collect::<BTreeSet<_>>().len(), COUNT);
        assert!(timeout(Duration::from_millis(300), receiver.receive()).await.is_err());
    }
    Ok(())
}

#[tokio::test]
async fn a_fifo_topic_keeps_the_order_of_a_key_when_entries_fail_and_answers_are_lost() -> Outcome {
    const COUNT: usize = 300;
    const KEYS: usize = 15;
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let receiver = client.receiver("topic:orders.fifo").group("billing").discard_dead_letters();
    let mut receiver = receiver.ordering(Ordering::PerKey).await?;
    let sender = client.sender("topic:orders.fifo").deadline(PATIENCE).await?;
    endpoint.set_faults(Faults { fail_entry: 0.1, throttle: 0.02, lose: 0.05, ..Faults::default() });
    let message = |i: usize| Message::new((i / KEYS).to_string()).key((i % KEYS).to_string());
    sender.send_batch((0..COUNT).map(message)).await?;
    endpoint.set_faults(Faults::default());
    assert!(endpoint.counts().fault("lose") > 0 && endpoint.counts().fault("fail_entry") > 0);
    let mut next: HashMap<String, usize> = HashMap::new();
    for message in take(&mut receiver, COUNT).await? {
        let key = String::from_utf8_lossy(message.get_key().ok_or("no key")?).into_owned();
        let due = next.entry(key).or_default();
        assert_eq!(message.text(), Some(due.to_string().as_str()), "in order, and each once");
        *due += 1;
    }
    assert!(exists(&endpoint, "orders--billing.fifo").await);
    Ok(())
}

#[tokio::test]
async fn a_message_of_many_headers_gets_through() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut billing = group(&client, "topic:orders", "billing").await?;
    let mut message =
        Message::new(vec![0_u8, 0xff]).key("k").id("i").header("big", i64::MAX).header("bytes", vec![0, 255]);
    for i in 0..12 {
        message = message.header(format!("h{i}"), i);
    }
    client.sender("topic:orders").await?.send(message.clone()).await?;
    let got = take(&mut billing, 1).await?.remove(0);
    assert_eq!((got.payload(), got.headers()), (message.payload(), message.headers()));
    assert_eq!((got.get_key(), got.get_id()), (message.get_key(), message.get_id()));
    Ok(())
}

#[tokio::test]
async fn requests_are_full_and_no_larger_than_sns_takes() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut billing = group(&client, "topic:orders", "billing").await?;
    let sender = client.sender("topic:orders").await?;
    assert_eq!(sender.capabilities().max_message_bytes, 256 << 10);
    let published = || endpoint.counts().of("PublishBatch");
    sender.send_batch((0..100).map(|i| i.to_string())).await?;
    assert_eq!(published(), 10);
    take(&mut billing, 100).await?;
    sender.send_batch((0..6).map(|_| "x".repeat(120 << 10))).await?;
    assert_eq!(published(), 13, "two of them fit into a request");
    take(&mut billing, 6).await?;
    let large = sender.send("x".repeat((256 << 10) + 1)).await.unwrap_err();
    assert_eq!((large.kind(), large.context("limit")), (ErrorKind::TooLarge, Some("262144")), "{large}");
    let late = sender.send(Message::new("x").delay(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!((late.kind(), late.outcome()), (ErrorKind::Unsupported, Sent::NotSent), "{late}");
    assert_eq!(published(), 13, "refused before the network");
    Ok(())
}

#[tokio::test]
async fn a_message_may_go_through_the_other_door() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut billing = group(&client, "topic:orders", "billing").await?;
    let mut queue = client.receiver("tasks").discard_dead_letters().await?;
    let (tasks, orders) = (client.sender("tasks").await?, client.sender("topic:orders").await?);
    tasks.send(Message::new("a").to("topic:orders".parse()?)).await?;
    orders.send(Message::new("b").to("tasks".parse()?)).await?;
    assert_eq!(texts(&take(&mut billing, 1).await?), ["a"]);
    assert_eq!(texts(&take(&mut queue, 1).await?), ["b"]);
    // A queue takes more than a topic.
    let large = tasks.send(Message::new("x".repeat(300 << 10)).to("topic:orders".parse()?)).await.unwrap_err();
    assert_eq!((large.kind(), large.context("limit")), (ErrorKind::TooLarge, Some("262144")));
    let late = Message::new("x").delay(Duration::from_secs(1)).to("topic:orders".parse()?);
    assert_eq!(tasks.send(late).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let nowhere = tasks.send(Message::new("x").to("topic:nowhere".parse()?)).await.unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    Ok(())
}

#[tokio::test]
async fn the_policy_of_a_queue_that_exists_is_kept() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let theirs = r#"{"Version":"2012-10-17","Statement":[{"Sid":"theirs","Effect":"Allow","Principal":"*","Action":"sqs:ReceiveMessage","Resource":"*"}]}"#;
    let open = || client.receiver("topic:orders").group("billing").native("Policy", theirs).discard_dead_letters();
    open().await?;
    let policy = attribute(&endpoint, "orders--billing", Attribute::Policy).await?.unwrap_or_default();
    assert!(policy.contains("theirs") && policy.contains(&arn("orders")), "{policy}");
    // What was added is no difference, and nothing is added twice.
    let mut billing = open().declare(Declare::Verify).await?;
    open().await?;
    assert_eq!(attribute(&endpoint, "orders--billing", Attribute::Policy).await?, Some(policy));
    assert_eq!(endpoint.counts().of("SetQueueAttributes"), 0, "it was made with all of it");
    client.sender("topic:orders").await?.send("x").await?;
    assert_eq!(texts(&take(&mut billing, 1).await?), ["x"]);
    Ok(())
}

#[tokio::test]
async fn a_queue_that_exists_gets_the_statement_and_its_policy_is_kept() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let theirs = r#"{"Statement":{"Sid":"theirs","Effect":"Allow","Principal":"*","Action":"sqs:ReceiveMessage","Resource":"*"}}"#;
    let queue = endpoint.client().create_queue().queue_name("orders--billing");
    queue.attributes(Attribute::Policy, theirs).send().await?;
    let mut billing = group(&client, "topic:orders", "billing").await?;
    let policy = attribute(&endpoint, "orders--billing", Attribute::Policy).await?.unwrap_or_default();
    assert!(policy.contains("theirs") && policy.contains(&arn("orders")), "{policy}");
    client.sender("topic:orders").await?.send("x").await?;
    assert_eq!(texts(&take(&mut billing, 1).await?), ["x"]);
    // What opening once more takes, beside what a queue does.
    let before = endpoint.counts();
    group(&client, "topic:orders", "billing").await?;
    client.sender("topic:orders").await?;
    let asked = endpoint.counts().since(&before);
    let of = |actions: &[&str]| actions.iter().map(|action| asked.of(action)).collect::<Vec<_>>();
    assert_eq!(of(&["CreateTopic", "GetQueueAttributes", "Subscribe", "GetTopicAttributes"]), [2, 1, 1, 1]);
    assert_eq!(of(&["SetQueueAttributes", "CreateQueue", "GetCallerIdentity"]), [0, 0, 0]);
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_told_and_nothing_is_made() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut entry = Entry::new("topic:orders".parse()?);
    entry.group = Some("billing".into());
    let all = Topology::from_iter([entry]);
    let missing = async || client.verify(&all).await.map_err(|e| (e.kind(), e.to_string()));
    assert!(matches!(missing().await, Err((ErrorKind::NotFound, text)) if text.contains("the topic does not exist")));
    let topic = Topology::from_iter([Entry::new("topic:orders".parse()?)]);
    client.declare(&topic).await?;
    client.verify(&topic).await?;
    assert!(matches!(missing().await, Err((ErrorKind::NotFound, text)) if text.contains("the queue does not exist")));
    let sqs = endpoint.client();
    sqs.create_queue().queue_name("orders--billing").send().await?;
    assert!(matches!(missing().await, Err((ErrorKind::Conflict, text)) if text.contains("Policy")));
    // The policy of somebody else, and no subscription.
    let policy = format!(
        r#"{{"Statement":{{"Effect":"Allow","Principal":"*","Action":"sqs:SendMessage","Resource":"*","Condition":{{"ArnLike":{{"aws:SourceArn":"{}"}}}}}}}}"#,
        arn("orders")
    );
    let url = sqs.get_queue_url().queue_name("orders--billing").send().await?.queue_url;
    sqs.set_queue_attributes().set_queue_url(url).attributes(Attribute::Policy, policy).send().await?;
    assert!(matches!(missing().await, Err((ErrorKind::NotFound, text)) if text.contains("subscribed")));
    assert_eq!(endpoint.counts().of("Subscribe"), 0);
    client.declare(&all).await?;
    client.verify(&all).await?;
    assert_eq!(endpoint.counts().of("SetQueueAttributes"), 1, "the policy let it in already");
    Ok(())
}

#[tokio::test]
async fn a_subscription_of_somebody_else_is_taken_unless_it_packs_messages() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    client.declare(&Topology::from_iter([Entry::new("topic:orders".parse()?)])).await?;
    let sns = endpoint.topics();
    // More than a page of others before it.
    for group in ["one", "two", "three"] {
        group_of(&client, group).await?;
    }
    let subscribe = |queue: &str, attributes: &[(&str, &str)]| {
        let endpoint = format!("arn:aws:sqs:us-east-1:{ACCOUNT}:{queue}");
        let request = sns.subscribe().topic_arn(arn("orders")).protocol("sqs").endpoint(endpoint);
        attributes.iter().fold(request, |request, (name, value)| request.attributes(*name, *value)).send()
    };
    subscribe("orders--packed", &[]).await?;
    subscribe("orders--some", &[("RawMessageDelivery", "true"), ("FilterPolicy", "{}")]).await?;
    group_of(&client, "some").await?;
    let refused = group_of(&client, "packed").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    let told = ["option", "asked", "found"].map(|key| refused.context(key));
    assert_eq!(told, [Some("RawMessageDelivery"), Some("true"), Some("false")]);
    Ok(())
}

async fn group_of(client: &Client, name: &str) -> Result<(), Error> {
    group(client, "topic:orders", name).await.map(drop)
}

#[tokio::test]
async fn a_topic_goes_with_its_groups() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    for (topic, name) in
        [("topic:orders", "one"), ("topic:orders", "two"), ("topic:orders", "three"), ("topic:orders-x", "one")]
    {
        let mut entry = Entry::new(topic.parse()?);
        entry.group = Some(name.into());
        client.declare(&Topology::from_iter([entry])).await?;
    }
    // A queue of somebody else's, which subscribes too.
    let sqs = endpoint.client();
    sqs.create_queue().queue_name("orders-audit").send().await?;
    let audit = format!("arn:aws:sqs:us-east-1:{ACCOUNT}:orders-audit");
    endpoint.topics().subscribe().topic_arn(arn("orders")).protocol("sqs").endpoint(audit).send().await?;
    let sender = client.sender("topic:orders").await?;
    sender.send("x").await?;
    let one = Source::new("topic:orders".parse()?).with_group("one")?;
    assert_eq!(client.stats(&one).await?.ready, Some(1));
    client.purge("topic:orders").await?;
    assert_eq!(client.stats(&one).await?.ready, Some(0));
    client.delete("topic:orders").await?;
    for queue in ["orders--one", "orders--two", "orders--three"] {
        assert!(!exists(&endpoint, queue).await, "{queue}");
    }
    for queue in ["orders-x--one", "orders-audit"] {
        assert!(exists(&endpoint, queue).await, "{queue}");
    }
    assert_eq!(sender.send("x").await.unwrap_err().kind(), ErrorKind::NotFound);
    client.delete("topic:orders").await?;
    Ok(())
}

#[tokio::test]
async fn a_topic_goes_by_its_arn_and_its_groups_are_ones_own() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let owner = connect(&endpoint).await?;
    owner.declare(&Topology::from_iter([Entry::new("topic:orders".parse()?)])).await?;
    let client = connect(&endpoint).await?;
    let address = format!("topic:{}", arn("orders"));
    let mut billing = client.receiver(&*address).group("billing").await?;
    client.sender(&*address).declare(Declare::Assume).await?.send("x").await?;
    let delivery = timeout(PATIENCE, billing.receive()).await??;
    delivery.reject("no");
    billing.flush().await?;
    assert!(exists(&endpoint, "orders--billing").await && exists(&endpoint, "orders--billing-dlq").await);
    // For the policy of the queue that was made, once.
    assert_eq!(endpoint.counts().of("GetCallerIdentity"), 1);
    // Another account's is not made, and another region's not looked for.
    let foreign = format!("topic:arn:aws:sns:us-east-1:111111111111:{}", "orders");
    let refused = client.sender(&*foreign).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("account")), (ErrorKind::NotFound, Some("111111111111")), "{refused}");
    let far = client.sender("topic:arn:aws:sns:eu-west-1:000000000000:orders").await.unwrap_err();
    assert_eq!((far.kind(), far.context("region")), (ErrorKind::InvalidInput, Some("eu-west-1")), "{far}");
    Ok(())
}

#[tokio::test]
async fn assuming_asks_for_the_account_once_and_makes_nothing() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let owner = connect(&endpoint).await?;
    let mut billing = group(&owner, "topic:orders", "billing").await?;
    let client = connect(&endpoint).await?;
    let before = endpoint.counts();
    for text in ["a", "b"] {
        client.sender("topic:orders").declare(Declare::Assume).await?.send(text).await?;
    }
    let asked = endpoint.counts().since(&before).requests;
    let asked: Vec<_> = asked.iter().filter(|(_, n)| **n > 0).map(|(action, n)| (action.as_str(), *n)).collect();
    let asked: Vec<_> = asked.into_iter().filter(|(action, _)| *action != "ReceiveMessage").collect();
    assert_eq!(asked, [("GetCallerIdentity", 1), ("GetTopicAttributes", 2), ("PublishBatch", 2)]);
    assert_eq!(texts(&take(&mut billing, 2).await?).len(), 2);
    let before = endpoint.counts();
    client.receiver("topic:orders").group("billing").declare(Declare::Assume).discard_dead_letters().await?;
    let made = endpoint.counts().since(&before);
    assert_eq!((made.of("GetQueueUrl"), made.of("Subscribe"), made.of("GetTopicAttributes")), (1, 0, 0));
    Ok(())
}

#[tokio::test]
async fn options_and_limits_of_a_topic_are_told() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let refused = client.sender("topic:orders").native("DelaySeconds", "1").await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("option")), (ErrorKind::InvalidConfig, Some("DelaySeconds")));
    let refused = client.sender("topic:orders").require_route(true).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    let refused = client.receiver("topic:orders").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    let refused = client.sender("topic:orders.fifo").deadline(Duration::from_secs(300)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    let refused = group(&client, "topic:orders", &"x".repeat(80)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    let url = endpoint.url("&sns_endpoint=none");
    let without = Client::connect_with(&url, &[queue_sqs::DRIVER]).await?;
    assert!(!without.capabilities().topics && client.capabilities().topics);
    let refused = without.sender("topic:orders").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("sns_endpoint"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn an_sns_that_is_away_leaves_queues_alone() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let owner = connect(&endpoint).await?;
    owner.declare(&Topology::from_iter([Entry::new("topic:orders".parse()?)])).await?;
    // A port at which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let url = endpoint.url(&format!("&wait_time=1s&sns_endpoint=http://{free}"));
    let client = Client::connect_with(&url, &[queue_sqs::DRIVER]).await?;
    let queue = client.sender("tasks").await?;
    let to_topic = || Message::new("x").to(format!("topic:{}", arn("orders")).parse().expect("an address"));
    let refused = client.sender("tasks").deadline(Duration::from_secs(2)).await?.send(to_topic()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Connection, Sent::NotSent), "{refused}");
    queue.send("x").await?;
    assert!(!client.health().is_up(), "it is told");
    // While it is known to be away nothing is tried there.
    let refused = client.sender("tasks").deadline(Duration::from_secs(1)).await?.send(to_topic()).await.unwrap_err();
    assert_eq!(refused.message(), "the broker does not answer", "{refused}");
    Ok(())
}

//! Sending to topics: verdicts, order, limits, the other door, an SNS that is away.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use queue_core::{Address, Client, Entry, ErrorKind, Message, Ordering, Outcome as Sent, Topology};
use tokio::time::timeout;

use super::endpoint::{Endpoint, Faults};
use super::*;

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
    const COUNT: usize = 450;
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
    let careful = client.sender("tasks").require_route(true).await?;
    let refused = careful.send(Message::new("x").to("topic:orders".parse()?)).await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Unsupported, Sent::NotSent), "{refused}");
    let nowhere = tasks.send(Message::new("x").to("topic:nowhere".parse()?)).await.unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    Ok(())
}

#[tokio::test]
async fn options_and_limits_of_a_topic_are_told() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let refused = client.sender("topic:orders").native("DelaySeconds", "1").await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("option")), (ErrorKind::InvalidConfig, Some("DelaySeconds")));
    let topic: Address = "topic:orders".parse()?;
    let mut entries = ["retention", "dead_letter", "max_deliveries"].map(|option| (option, Entry::new(topic.clone())));
    entries[0].1.retention = Some(Duration::from_secs(60));
    entries[1].1.dead_letter = Some("orders-dlq".parse()?);
    entries[2].1.max_deliveries = Some(3);
    for (option, entry) in entries {
        let refused = client.declare(&Topology::from_iter([entry])).await.unwrap_err();
        assert_eq!((refused.kind(), refused.context("option")), (ErrorKind::InvalidConfig, Some(option)));
    }
    assert_eq!(endpoint.counts().of("CreateTopic"), 0, "nothing is made");
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

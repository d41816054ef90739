//! Queues as they are asked for: options by Amazon's names, what exists, addresses by URL and ARN.

use std::collections::HashMap;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{
    Address, Bindings, Broker, ConsumerOptions, Declare, Entry, Error, ErrorKind, Message, ProducerOptions, Source,
    Topology,
};

mod support;
use support::*;

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

fn main() {
    support::main(cases![
        a_queue_is_made_as_asked_and_found_so,
        what_differs_is_named_with_what_was_asked_and_found,
        what_was_not_asked_for_is_taken_as_it_is,
        options_of_a_handle_a_file_and_a_url_reach_the_queue,
        an_option_that_is_unknown_reaches_no_broker,
        the_queue_of_dead_letters_stands_before_the_queue_that_names_it,
        a_redrive_policy_that_is_asked_for_takes_the_place_of_the_backstop,
        a_queue_is_reached_by_its_url_and_its_arn,
        a_queue_that_is_named_by_url_or_arn_is_never_made,
        a_queue_of_another_region_is_an_error_that_says_so,
        a_queue_that_somebody_deleted_is_missing_to_verify_and_made_again_by_declare,
    ]);
}

fn native(broker: &dyn Broker) -> &Client {
    broker.native().downcast_ref().expect("the client of the SDK")
}

async fn url_of(broker: &dyn Broker, address: &Address) -> Result<String, Failure> {
    let found = native(broker).get_queue_url().queue_name(address.name()).send().await?;
    Ok(found.queue_url.ok_or("no URL")?)
}

async fn attributes(broker: &dyn Broker, address: &Address) -> Result<HashMap<Attribute, String>, Failure> {
    let url = url_of(broker, address).await?;
    let found = native(broker).get_queue_attributes().queue_url(url).attribute_names(Attribute::All).send().await?;
    Ok(found.attributes.unwrap_or_default())
}

/// Where the queue's redrive policy leads, and after how many receives: a number or a text, as brokers like.
async fn redrive(broker: &dyn Broker, address: &Address) -> Result<(String, String), Failure> {
    let policy = attributes(broker, address).await?.remove(&Attribute::RedrivePolicy).ok_or("no policy")?;
    let policy: serde_json::Value = serde_json::from_str(&policy)?;
    let text = |name: &str| policy[name].to_string().trim_matches('"').to_owned();
    Ok((text("deadLetterTargetArn"), text("maxReceiveCount")))
}

fn entry(stem: &str, options: &[(&str, &str)]) -> Entry {
    let mut entry = Entry::new(fresh(stem));
    entry.native = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    entry
}

fn only(entry: &Entry) -> Topology {
    Topology::from_iter([entry.clone()])
}

/// The options that the broker of the tests knows.
const KNOWN: [(&str, &str); 5] = [
    ("DelaySeconds", "7"),
    ("ReceiveMessageWaitTimeSeconds", "3"),
    ("VisibilityTimeout", "17"),
    ("tag.cost.centre", "7"),
    ("tag.team", "billing"),
];

async fn a_queue_is_made_as_asked_and_found_so() -> Outcome {
    let broker = connect(QUICK).await?;
    for stem in ["made", "made.fifo"] {
        let entry = entry(stem, &KNOWN);
        assert_eq!(broker.verify(&only(&entry)).await.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
        broker.declare(&only(&entry)).await?;
        let found = attributes(&*broker, &entry.address).await?;
        for (name, value) in KNOWN.iter().filter(|(name, _)| !name.starts_with("tag.")) {
            assert_eq!(found.get(&Attribute::from(*name)).map(String::as_str), Some(*value), "{name}");
        }
        let url = url_of(&*broker, &entry.address).await?;
        let tags = native(&*broker).list_queue_tags().queue_url(url).send().await?.tags.unwrap_or_default();
        let expected = [("cost.centre", "7"), ("team", "billing")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(tags, HashMap::from(expected));
        broker.declare(&only(&entry)).await?;
        broker.verify(&only(&entry)).await?;
        broker.delete(&entry.address).await?;
    }
    Ok(())
}

fn facts(error: &Error) -> (ErrorKind, [Option<&str>; 3]) {
    (error.kind(), ["option", "asked", "found"].map(|name| error.context(name)))
}

async fn what_differs_is_named_with_what_was_asked_and_found() -> Outcome {
    let broker = connect(QUICK).await?;
    let made = entry("differs", &KNOWN);
    broker.declare(&only(&made)).await?;
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:none","maxReceiveCount":3}"#;
    for (option, asked, found) in [
        ("VisibilityTimeout", "18", "17"),
        ("DelaySeconds", "0", "7"),
        ("tag.team", "orders", "billing"),
        ("tag.owner", "me", "none"),
        // What a queue has none of is not told.
        ("RedrivePolicy", policy, "none"),
        ("KmsMasterKeyId", "alias/a", "none"),
    ] {
        let mut differs = made.clone();
        differs.native.insert(option.to_owned(), asked.to_owned());
        for outcome in [broker.declare(&only(&differs)).await, broker.verify(&only(&differs)).await] {
            let error = outcome.err().ok_or("it was taken")?;
            assert_eq!(facts(&error), (ErrorKind::Conflict, [Some(option), Some(asked), Some(found)]));
            assert_eq!(error.context("address"), Some(made.address.name()));
        }
    }
    // Nothing of it was done to the queue.
    broker.verify(&only(&made)).await?;
    broker.delete(&made.address).await?;
    Ok(())
}

async fn what_was_not_asked_for_is_taken_as_it_is() -> Outcome {
    let broker = connect("&wait_time=1s&sqs.VisibilityTimeout=55&sqs.tag.team=all").await?;
    let made = entry("taken", &KNOWN);
    broker.declare(&only(&made)).await?;
    // Neither an entry that asks for nothing nor the options of a connection ask anything of what exists.
    let plain = Entry::new(made.address.clone());
    broker.declare(&only(&plain)).await?;
    broker.verify(&only(&plain)).await?;
    let found = attributes(&*broker, &made.address).await?;
    assert_eq!(found.get(&Attribute::VisibilityTimeout).map(String::as_str), Some("17"));
    broker.delete(&made.address).await?;
    Ok(())
}

async fn options_of_a_handle_a_file_and_a_url_reach_the_queue() -> Outcome {
    let file = format!(
        r#"
        [brokers.main]
        url = "{}"
        wait_time = "1s"
        sqs.DelaySeconds = 5
        [senders.orders]
        to = "{}"
        sqs.VisibilityTimeout = 19
        sqs.tag.team = "billing"
        kafka."cleanup.policy" = "compact"
        "#,
        url(),
        fresh("file").name()
    );
    let connections = Bindings::parse(&file)?.connect_with(&[queue_sqs::DRIVER]).await?;
    let sender = connections.sender("orders").native("ReceiveMessageWaitTimeSeconds", "4").await?;
    let client = connections.client("main").ok_or("no client")?;
    let found = attributes(&**client.broker(), sender.address()).await?;
    let seen = [Attribute::DelaySeconds, Attribute::VisibilityTimeout, Attribute::ReceiveMessageWaitTimeSeconds]
        .map(|name| found.get(&name).map(String::as_str));
    assert_eq!(seen, [Some("5"), Some("19"), Some("4")]);
    let differs = client.sender(sender.address()).native("VisibilityTimeout", "20").declare(Declare::Verify).await;
    assert_eq!(differs.err().map(|e| e.kind()), Some(ErrorKind::Conflict));
    client.delete(sender.address()).await?;
    Ok(())
}

async fn an_option_that_is_unknown_reaches_no_broker() -> Outcome {
    let broker = connect(QUICK).await?;
    let entry = entry("unknown", &[("VisibilityTimout", "3")]);
    for outcome in [broker.declare(&only(&entry)).await, broker.verify(&only(&entry)).await] {
        let error = outcome.err().ok_or("it was taken")?;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert_eq!(error.context("did_you_mean"), Some("VisibilityTimeout"));
    }
    let missing = broker.verify(&only(&Entry::new(entry.address))).await;
    assert_eq!(missing.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    let error = connect("&sqs.VisibilityTimeout=long").await.err().ok_or("it connected")?;
    assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("VisibilityTimeout")));
    Ok(())
}

/// In whatever order they are asked for.
async fn the_queue_of_dead_letters_stands_before_the_queue_that_names_it() -> Outcome {
    let broker = connect(QUICK).await?;
    let mut entry = entry("graves", &[]);
    let grave = entry.address.dead_letter();
    entry.dead_letter = Some(grave.clone());
    entry.max_deliveries = Some(3);
    broker.declare(&Topology::from_iter([entry.clone(), Entry::new(grave.clone())])).await?;
    let (target, receives) = redrive(&*broker, &entry.address).await?;
    assert!(target.ends_with(&format!(":{grave}")), "{target}");
    assert_eq!(receives, "13");
    broker.verify(&Topology::from_iter([entry.clone(), Entry::new(grave.clone())])).await?;
    broker.delete(&entry.address).await?;
    broker.delete(&grave).await?;
    Ok(())
}

async fn a_redrive_policy_that_is_asked_for_takes_the_place_of_the_backstop() -> Outcome {
    let broker = connect(QUICK).await?;
    let mut entry = entry("redrive", &[]);
    let grave = entry.address.dead_letter();
    broker.declare(&only(&Entry::new(grave.clone()))).await?;
    let arn = attributes(&*broker, &grave).await?.remove(&Attribute::QueueArn).ok_or("no ARN")?;
    let policy = format!(r#"{{"maxReceiveCount": 4, "deadLetterTargetArn": "{arn}"}}"#);
    entry.native.insert("RedrivePolicy".to_owned(), policy);
    entry.dead_letter = Some(grave.clone());
    for _ in 0..2 {
        broker.declare(&only(&entry)).await?;
    }
    assert_eq!(redrive(&*broker, &entry.address).await?, (arn, "4".to_owned()));
    broker.delete(&entry.address).await?;
    broker.delete(&grave).await?;
    Ok(())
}

async fn a_queue_is_reached_by_its_url_and_its_arn() -> Outcome {
    let broker = connect(QUICK).await?;
    for stem in ["reached", "reached.fifo"] {
        let made = entry(stem, &KNOWN[2..3]);
        broker.declare(&only(&made)).await?;
        let url = url_of(&*broker, &made.address).await?;
        let arn = attributes(&*broker, &made.address).await?.remove(&Attribute::QueueArn).ok_or("no ARN")?;
        // The broker of the tests knows no regions, and takes any.
        let arn = arn.replace(":elasticmq:", ":us-east-1:");
        for text in [url, arn] {
            let address: Address = text.parse()?;
            let mut same = made.clone();
            same.address = address.clone();
            broker.declare(&only(&same)).await?;
            broker.verify(&only(&same)).await?;
            same.native.insert("VisibilityTimeout".to_owned(), "18".to_owned());
            let differs = broker.verify(&only(&same)).await;
            assert_eq!(differs.map_err(|e| e.kind()), Err(ErrorKind::Conflict), "{text}");

            let producer = broker.producer(&address, &ProducerOptions::default()).await?;
            deliver(&*producer, vec![Message::new(text.clone())]).await?;
            let consumer = broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await?;
            let got = collect(&*consumer, 1, SOON).await?.remove(0);
            assert_eq!(support::text(&got), text);
            consumer.ack(&[got.token]);
            consumer.flush().await?;
            // One message for another address than the producer's.
            let other = broker.producer(&made.address, &ProducerOptions::default()).await?;
            deliver(&*other, vec![Message::new("by the way").to(address.clone())]).await?;
            let got = collect(&*consumer, 1, SOON).await?.remove(0);
            consumer.ack(&[got.token]);
            consumer.flush().await?;
            assert_eq!(broker.stats(&Source::new(address.clone())).await?.ready, Some(0));
            consumer.close(tokio::time::Instant::now() + SOON).await;
        }
        broker.delete(&made.address).await?;
    }
    Ok(())
}

async fn a_queue_that_is_named_by_url_or_arn_is_never_made() -> Outcome {
    let broker = connect(QUICK).await?;
    let name = fresh("never");
    for text in [format!("http://127.0.0.1/000000000000/{name}"), format!("arn:aws:sqs:us-east-1:000000000000:{name}")]
    {
        let address: Address = text.parse()?;
        let made = broker.declare(&only(&Entry::new(address.clone()))).await;
        assert_eq!(made.map_err(|e| e.kind()), Err(ErrorKind::NotFound), "{text}");
        let verified = broker.verify(&only(&Entry::new(address.clone()))).await;
        assert_eq!(verified.map_err(|e| e.kind()), Err(ErrorKind::NotFound), "{text}");
        let producer = broker.producer(&address, &ProducerOptions::default()).await.err();
        let consumer = broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await.err();
        for error in [producer, consumer] {
            assert_eq!(error.ok_or("it opened")?.kind(), ErrorKind::NotFound, "{text}");
        }
        broker.delete(&address).await?;
    }
    // An account that the connection names is somebody else's just so.
    let broker = connect("&wait_time=1s&account=000000000000").await?;
    let error = broker.declare(&only(&Entry::new(name.clone()))).await.err().ok_or("it was made")?;
    assert_eq!((error.kind(), error.context("account")), (ErrorKind::NotFound, Some("000000000000")));
    let missing = broker.verify(&only(&Entry::new(name))).await;
    assert_eq!(missing.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    Ok(())
}

async fn a_queue_of_another_region_is_an_error_that_says_so() -> Outcome {
    let broker = connect(QUICK).await?;
    for text in ["https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "arn:aws:sqs:eu-west-1:123456789012:orders"]
    {
        let address: Address = text.parse()?;
        let declared = broker.declare(&only(&Entry::new(address.clone()))).await.err();
        let sent = broker.producer(&address, &ProducerOptions::default()).await.err();
        let received = broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await.err();
        for error in [declared, sent, received] {
            let error = error.ok_or("it was taken")?;
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
            assert_eq!(
                (error.context("region"), error.context("client_region")),
                (Some("eu-west-1"), Some("us-east-1"))
            );
        }
    }
    Ok(())
}

async fn a_queue_that_somebody_deleted_is_missing_to_verify_and_made_again_by_declare() -> Outcome {
    let (broker, other) = (connect(QUICK).await?, connect(QUICK).await?);
    let entry = entry("gone", &[]);
    broker.declare(&only(&entry)).await?;
    broker.verify(&only(&entry)).await?;
    other.delete(&entry.address).await?;
    assert_eq!(broker.verify(&only(&entry)).await.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    broker.declare(&only(&entry)).await?;
    other.verify(&only(&entry)).await?;
    broker.delete(&entry.address).await?;
    Ok(())
}

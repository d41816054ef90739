//! Bad input gets a clear, typed error and loses nothing.

use std::time::Duration;

use anyqueue::{Bindings, Client, Error, ErrorKind, Message, Outcome};

async fn refused(url: &str) -> Error {
    anyqueue::connect(url).await.expect_err(url)
}

async fn memory() -> Client {
    anyqueue::connect("memory://").await.unwrap()
}

#[tokio::test]
async fn an_unknown_scheme_names_those_that_are_compiled_in() {
    let error = refused("nats://localhost").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.context("compiled_in").unwrap().contains("memory"), "{error}");
    let error = refused("memroy://").await;
    assert_eq!(error.context("did_you_mean"), Some("memory"), "{error}");
}

#[cfg(not(feature = "kafka"))]
#[tokio::test]
async fn a_scheme_whose_feature_is_missing_names_the_feature() {
    let error = refused("kafka://localhost:9092").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(error.context("missing_feature"), Some("kafka"), "{error}");
}

#[tokio::test]
async fn an_unknown_option_names_the_nearest() {
    let error = refused("memory://?prefech=5").await;
    assert_eq!((error.kind(), error.context("did_you_mean")), (ErrorKind::InvalidConfig, Some("prefetch")), "{error}");
    let error = refused("memory://?profil=sqs").await;
    assert_eq!(error.context("did_you_mean"), Some("profile"), "{error}");
}

#[tokio::test]
async fn a_value_that_does_not_fit_names_its_option() {
    for (url, option) in [
        ("memory://?prefetch=many", "prefetch"),
        ("memory://?deadline=soon", "deadline"),
        ("memory://?profile=nats", "profile"),
        ("memory://?connect_timeout=x", "connect_timeout"),
        ("memory://?on_unknown=shrug", "on_unknown"),
    ] {
        let error = refused(url).await;
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(option)), "{url}: {error}");
    }
    for (option, zero) in [("window", "0"), ("deadline", "0s")] {
        let client = anyqueue::connect(&format!("memory://?{option}={zero}")).await.unwrap();
        let error = client.sender("orders").await.unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(option)), "{error}");
    }
    for option in ["prefetch", "max_deliveries"] {
        let client = anyqueue::connect(&format!("memory://?{option}=0")).await.unwrap();
        let error = client.receiver("orders").await.unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(option)), "{error}");
    }
}

#[tokio::test]
async fn a_malformed_url_is_refused_without_its_password() {
    for url in ["", "memory", "memory:/x", "amqp://user:hunter2@host:port", "amqp://user:hunter2@[::1"] {
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn illegal_names_are_refused() {
    let client = memory().await;
    let long = "x".repeat(256);
    for name in ["", "a b", "a--b", "tab\there", "topic:", long.as_str()] {
        let error = client.sender(name).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}: {error}");
        let error = client.receiver(name).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}: {error}");
    }
    let error = client.receiver("orders").group("billing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "a queue has no groups: {error}");
}

#[tokio::test]
async fn one_name_used_as_queue_and_topic_is_a_conflict() {
    let client = memory().await;
    client.sender("orders").await.unwrap();
    assert_eq!(client.sender("topic:orders").await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn what_is_too_large_is_told_with_limit_and_size_and_the_rest_is_sent() {
    let client = anyqueue::connect("memory://?profile=sqs").await.unwrap();
    let sender = client.sender("orders").await.unwrap();
    let limit = sender.capabilities().max_message_bytes;
    let error = sender.send_batch([vec![0; 1], vec![0; limit + 1], vec![0; 2]]).await.unwrap_err();
    let failures = error.failures();
    assert_eq!(failures.len(), 1);
    let (index, error) = &failures[0];
    assert_eq!((*index, error.kind(), error.outcome()), (1, ErrorKind::TooLarge, Outcome::NotSent));
    assert_eq!(error.context("limit"), Some(limit.to_string().as_str()));
    assert_eq!(error.context("actual"), Some((limit + 1).to_string().as_str()));
    let mut receiver = client.receiver("orders").await.unwrap();
    let mut sizes = vec![receiver.receive().await.unwrap().payload().len()];
    sizes.push(receiver.receive().await.unwrap().payload().len());
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2]);
}

#[tokio::test]
async fn reserved_headers_are_refused_and_named() {
    let sender = memory().await.sender("orders").await.unwrap();
    let error = sender.send(Message::new("x").header("anyqueue-attempt", 1)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("header")), (ErrorKind::InvalidInput, Some("anyqueue-attempt")));
}

#[tokio::test]
async fn what_an_address_cannot_do_is_unsupported() {
    let client = anyqueue::connect("memory://?profile=sqs").await.unwrap();
    let sender = client.sender("orders").await.unwrap();
    for message in [
        Message::new("x").delay(Duration::from_secs(901)),
        Message::new("x").ttl(Duration::from_secs(1)),
        Message::new("x").priority(1),
    ] {
        assert_eq!(sender.send(message).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert_eq!(client.sender("topic:orders").await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn closed_handles_say_so() {
    let client = memory().await;
    let (sender, mut receiver) = (client.sender("a").await.unwrap(), client.receiver("a").await.unwrap());
    client.close(Duration::from_secs(1)).await;
    assert_eq!(sender.send("x").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(sender.send_batch(["x"]).await.unwrap_err().failures()[0].1.kind(), ErrorKind::Closed);
    assert_eq!(receiver.receive().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.sender("b").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.ping().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn a_file_with_an_unknown_key_names_file_line_and_key() {
    let path = std::env::temp_dir().join(format!("anyqueue-{}.toml", std::process::id()));
    std::fs::write(
        &path,
        "[brokers.main]\nurl = \"memory://\"\n\n[receivers.orders]\nfrom = \"orders\"\nprefech = 5\n",
    )
    .unwrap();
    let error = Bindings::from_path(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(error.context("file"), Some(path.display().to_string().as_str()));
    assert_eq!(error.context("line"), Some("6"));
    assert_eq!(error.context("key"), Some("prefech"));
    assert_eq!(error.context("did_you_mean"), Some("prefetch"));
}

#[test]
fn a_file_that_is_no_toml_shows_the_line_and_no_secret() {
    let error = Bindings::parse("[brokers.main]\nurl = \"amqp://u:hunter2@h\n").unwrap_err();
    assert_eq!((error.kind(), error.context("line")), (ErrorKind::InvalidConfig, Some("2")), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    let error = Bindings::parse("[brokres.main]\nurl = \"memory://\"\n").unwrap_err();
    assert_eq!((error.kind(), error.context("line")), (ErrorKind::InvalidConfig, Some("1")), "{error}");
    let error = Bindings::parse("[brokers.main]\nurl = \"memory://\"\n[senders.a]\nbroker = \"mian\"\nto = \"a\"\n")
        .unwrap_err();
    assert_eq!((error.context("line"), error.context("key")), (Some("4"), Some("broker")), "{error}");
}

#[tokio::test]
async fn an_unknown_option_of_a_broker_in_a_file_is_refused_before_connecting() {
    let bindings =
        Bindings::parse("[brokers.main]\nurl = \"memory://\"\ncapcity = 5\n[senders.a]\nto = \"a\"\n").unwrap();
    let error = bindings.connect().await.unwrap_err();
    assert_eq!((error.kind(), error.context("did_you_mean")), (ErrorKind::InvalidConfig, Some("capacity")), "{error}");
    assert_eq!((error.context("line"), error.context("key")), (Some("3"), Some("capcity")), "{error}");
}

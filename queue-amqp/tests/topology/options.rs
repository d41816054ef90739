//! Native options: where they come from, and what is said about wrong ones.

use queue_amqp::DRIVER;
use queue_core::{Address, AddressKind, Bindings, Client, Entry, ErrorKind, Start, Topology};

use crate::common::{soon, unique};
use crate::{client, native, next};

/// The error of asking for a limit that differs tells which one the queue has.
async fn max_length(client: &Client, name: &str) -> String {
    let mut entry = Entry::new(name.parse().unwrap());
    entry.native.insert("x-max-length".into(), "999".into());
    let error = soon(client.declare(&Topology::from_iter([entry]))).await.unwrap_err();
    error.context("found").unwrap_or_default().to_owned()
}

pub(crate) async fn options_come_by_program_handle_file_and_url(url: String) {
    let plain = client(&url).await;
    let name = unique("options");
    let [program, sender, receiver, file, defaulted] =
        ["program", "sender", "receiver", "file", "url"].map(|way| format!("{name}-{way}"));
    let mut entry = Entry::new(program.parse().unwrap());
    entry.native.insert("x-max-length".into(), "1".into());
    plain.declare(&Topology::from_iter([entry])).await.unwrap();
    plain.sender(sender.as_str()).native("x-max-length", "2").await.unwrap();
    plain.receiver(receiver.as_str()).native("x-max-length", "3").await.unwrap();
    let bindings = Bindings::parse(&format!(
        "[brokers.main]\nurl = \"{url}\"\n[receivers.r]\nfrom = \"{file}\"\namqp.x-max-length = 4\nkafka.x = 1\n"
    ))
    .unwrap();
    let connections = bindings.connect_with(&[DRIVER]).await.unwrap();
    connections.receiver("r").await.unwrap();
    let defaults = client(&format!("{url}?amqp.x-queue-type=classic&amqp.x-max-length=5")).await;
    let mut opened = defaults.receiver(defaulted.as_str()).await.unwrap();
    for (queue, expected) in [(&program, "1"), (&sender, "2"), (&receiver, "3"), (&file, "4"), (&defaulted, "5")] {
        assert_eq!(max_length(&plain, queue).await, expected, "{queue}");
    }
    // A default asks for nothing: what exists is taken as it is.
    opened.close(std::time::Duration::from_secs(5)).await;
    defaults.receiver(program.as_str()).await.unwrap();
    // What the connection makes for itself has it too.
    assert_eq!(max_length(&plain, &format!("{defaulted}-dlq")).await, "5");
    for queue in [&program, &sender, &receiver, &file, &defaulted] {
        plain.delete(queue).await.unwrap();
        plain.delete(&format!("{queue}-dlq")).await.unwrap();
    }
}

pub(crate) async fn what_is_wrong_is_named(url: String) {
    let client = client(&url).await;
    let name = unique("wrong");
    for (option, value, near) in [
        ("binding_kye", "a", Some("binding_key")),
        ("max-length", "5", None),
        ("x-queue-type", "quorm", Some("quorum")),
        ("x-max-length", "five", None),
    ] {
        let error = client.sender(name.as_str()).native(option, value).await.expect_err(option);
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(option)), "{error}");
        assert!(near.is_none() || error.context("did_you_mean") == near, "{error}");
    }
    // What the server refuses of an argument is told as it says it, with the right kind.
    let error = client.sender(name.as_str()).native("x-max-priority", "5").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "a quorum queue with a number of priorities: {error}");
    let topic = format!("topic:{name}-t");
    let error = client.sender(topic.as_str()).native("x-max-length", "5").await.unwrap_err();
    assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("x-max-length")), "{error}");
    let error = client.receiver(topic.as_str()).group("g").native("exchange_type", "direct").await.unwrap_err();
    assert_eq!((error.kind(), error.context("found")), (ErrorKind::Conflict, Some("fanout")), "{error}");
    for (option, expected) in [("amqp.binding_key=a", "binding_key"), ("amqp.queue=a", "queue")] {
        let error = Client::connect_with(&format!("{url}?{option}"), &[DRIVER]).await.unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(expected)), "{error}");
    }
    client.delete(topic.as_str()).await.unwrap();
    let letters = Address::derived(AddressKind::Queue, &format!("{name}-t--g-dlq"));
    client.delete(letters).await.unwrap();
}

pub(crate) async fn keys_of_other_brokers_are_left_alone_in_a_file(url: String) {
    let name = unique("file");
    let file = |own: &str, other: &str| {
        Bindings::parse(&format!(
            "[brokers.main]\nurl = \"{url}\"\n[senders.s]\nto = \"{name}\"\n{own}\n[senders.t]\nto = \"topic:{name}-t\"\n{other}\n"
        ))
    };
    let connections = file("kafka.partitions = 3\nsqs.KmsMasterKeyId = \"k\"", "amqp.exchange_type = \"topic\"")
        .unwrap()
        .connect_with(&[DRIVER])
        .await
        .unwrap();
    connections.sender("s").await.unwrap();
    connections.sender("t").await.unwrap();
    let client = connections.client("main").unwrap();
    let mut fanout = Entry::new(format!("topic:{name}-t").parse().unwrap());
    fanout.native.insert("exchange_type".into(), "fanout".into());
    let error = client.declare(&Topology::from_iter([fanout])).await.unwrap_err();
    assert_eq!(error.context("found"), Some("topic"), "{error}");
    // Its own it has to know, and a table of nobody is one of the file's own mistakes.
    let connections = file("amqp.binding_kye = \"a\"", "").unwrap().connect_with(&[DRIVER]).await.unwrap();
    let error = connections.sender("s").await.unwrap_err();
    assert_eq!(error.context("option"), Some("binding_kye"), "{error}");
    let error = file("rabbit.x-max-length = 5", "").unwrap_err();
    assert_eq!((error.kind(), error.context("key")), (ErrorKind::InvalidConfig, Some("rabbit")), "{error}");
    client.delete(&name).await.unwrap();
    client.delete(format!("topic:{name}-t")).await.unwrap();
}

pub(crate) async fn the_version_of_the_server_is_known(url: String) {
    let client = client(&url).await;
    let version = native(&client).server_version().expect("RabbitMQ tells its version");
    assert!(((3, 10, 0)..(5, 0, 0)).contains(&version), "{version:?}");
    // It decides what a queue can do.
    let name = unique("version");
    let sender = client.sender(name.as_str()).await.unwrap();
    assert_eq!(sender.capabilities().priority, version >= (4, 0, 0));
    assert!(!sender.capabilities().replay && client.capabilities().replay);
    let refused = client.receiver(name.as_str()).discard_dead_letters().start(Start::Earliest).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    client.delete(&name).await.unwrap();
}

pub(crate) async fn defaults_of_the_url_are_for_the_queue_of_a_subscriber_too(url: String) {
    // The last two are for other types of queues than the one that ends with its connection.
    let defaults = "amqp.x-max-length=1&amqp.x-overflow=drop-head&amqp.x-queue-type=quorum&amqp.x-delivery-limit=7";
    let client = client(&format!("{url}?{defaults}")).await;
    let topic = format!("topic:{}", unique("defaults"));
    let mut receiver = client.receiver(topic.as_str()).prefetch(1).await.unwrap();
    let sender = client.sender(topic.as_str()).await.unwrap();
    sender.send("0").await.unwrap();
    let held = next(&mut receiver).await;
    for n in 1..=5 {
        sender.send(n.to_string()).await.unwrap();
    }
    held.ack();
    assert_eq!(next(&mut receiver).await.text().unwrap(), "5", "one waits at most");
    client.delete(topic.as_str()).await.unwrap();
}

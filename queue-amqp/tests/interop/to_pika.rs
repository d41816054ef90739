//! What is sent from here, as pika sees it.

use std::time::{Duration, UNIX_EPOCH};

use queue_core::{Address, Client, Entry, HeaderValue, Message, Source, Text, Topology};
use serde_json::{Value, json};

use crate::common::{connect, consumer, producer, queue, receive_count, send_all, soon, unique};
use crate::{client, python};

/// Sends to a fresh queue, and takes what pika says of it.
async fn seen(url: &str, messages: Vec<Message>) -> Vec<Value> {
    let broker = connect(url).await.unwrap();
    let address = queue(&broker, "to-pika").await;
    let count = messages.len();
    send_all(&producer(&broker, &address).await, messages).await;
    let mut all = python::received(url, address.name(), count).await;
    for one in &mut all {
        let one = one.as_object_mut().unwrap();
        assert_eq!(one.remove("exchange").unwrap(), "");
        assert_eq!(one.remove("routing_key").unwrap(), address.name());
        assert_eq!(one.remove("delivery_mode").unwrap(), json!({"int": 2}));
    }
    broker.delete(&address).await.unwrap();
    all
}

pub(crate) async fn bodies_and_properties_reach_pika_as_they_are(url: String) {
    let text = Message::new("grüße")
        .id("id-1")
        .content_type("text/plain")
        .correlation_id("c-1")
        .reply_to("replies")
        .timestamp(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .ttl(Duration::from_millis(60_000))
        .priority(5);
    let bytes: Vec<u8> = (0..=255).collect();
    let messages = vec![text, Message::new(bytes.clone()).id("b"), Message::new("").id("e")];
    let seen = seen(&url, messages).await;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = json!({
        "body": hex("grüße".as_bytes()),
        "message_id": "id-1",
        "content_type": "text/plain",
        "correlation_id": "c-1",
        "reply_to": "replies",
        "timestamp": {"int": 1_700_000_000},
        "expiration": "60000",
        "priority": {"int": 5},
    });
    assert_eq!(seen[0], text);
    assert_eq!(seen[1], json!({"body": hex(&bytes), "message_id": "b"}));
    assert_eq!(seen[2], json!({"body": "", "message_id": "e"}));
}

pub(crate) async fn every_header_reaches_pika_with_its_type(url: String) {
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let map: Vec<(Text, HeaderValue)> = vec![("a".into(), 1.into()), ("b".into(), HeaderValue::Null)];
    // In order of their names, and none twice: nothing to note.
    let message = Message::new("x")
        .header("", "empty name")
        .header("bool", true)
        .header("bytes", vec![0, 255])
        .header("float", 2.75)
        .header("int", i64::MIN)
        .header("list", vec![HeaderValue::Int(1), "two".into(), HeaderValue::List(vec![])])
        .header("map", map)
        .header("n".repeat(255), "long name")
        .header("null", HeaderValue::Null)
        .header("text", "ünï")
        .header("time", at)
        .header("ünï ;%\n", 7);
    let seen = seen(&url, vec![message]).await;
    let expected = json!({"dict": {
        "": "empty name",
        "bool": true,
        "bytes": {"bytes": "00ff"},
        // A double on the wire; pika makes an integer of every floating point number that it reads.
        "float": {"int": 2},
        "int": {"int": i64::MIN},
        "list": [{"int": 1}, "two", []],
        "map": {"dict": {"a": {"int": 1}, "b": null}},
        "n".repeat(255): "long name",
        "null": null,
        "text": "ünï",
        "time": {"datetime": 1_700_000_000},
        "ünï ;%\n": {"int": 7},
    }});
    assert_eq!(seen[0]["headers"], expected);
}

pub(crate) async fn what_amqp_cannot_say_is_one_header_more_for_pika(url: String) {
    let message = Message::new("x")
        .id("i")
        .key("user;7")
        .subject("eu.north")
        .timestamp(UNIX_EPOCH + Duration::new(5, 7))
        .header("z", 1)
        .header("a", 2)
        .header("z", 3)
        .header("CC", "nobody")
        .header("inf", f64::INFINITY)
        .header("half", UNIX_EPOCH + Duration::from_millis(500));
    let seen = seen(&url, vec![message, Message::tombstone("k").id("t")]).await;
    let noted = json!({
        "body": "78",
        "message_id": "i",
        "timestamp": {"int": 5},
        "headers": {"dict": {
            "a": {"int": 2},
            "anyqueue-h": "#t5.000000007;#seu.north;#kuser%3B7;3.0.:z;i3;:CC;snobody;2d1@",
            "half": "0.500000000",
            "inf": "inf",
            "z": {"int": 1},
        }},
    });
    assert_eq!(seen[0], noted);
    let tombstone = json!({"body": "", "message_id": "t", "headers": {"dict": {"anyqueue-h": "#x;#kk;"}}});
    assert_eq!(seen[1], tombstone);
}

/// `send.py` to a queue of ours, from there to another, and then what pika sees is what it sent.
pub(crate) async fn what_pika_sent_is_the_same_for_pika_when_it_was_sent_on(url: String) {
    let broker = connect(&url).await.unwrap();
    let (first, second) = (queue(&broker, "first").await, queue(&broker, "second").await);
    let count = crate::from_pika::COUNT;
    python::run("send.py", &[&url, first.name()]).await;
    let original = python::received(&url, first.name(), count).await;
    python::run("send.py", &[&url, first.name()]).await;
    let receiver = consumer(&broker, &first).await;
    let messages = receive_count(&receiver, count).await.into_iter().map(|r| r.message.unwrap()).collect();
    send_all(&producer(&broker, &second).await, messages).await;
    let copies = python::received(&url, second.name(), count).await;
    for (mut original, mut copy) in original.into_iter().zip(copies) {
        for one in [&mut original, &mut copy] {
            let one = one.as_object_mut().unwrap();
            one.remove("routing_key");
            one.remove("delivery_mode");
        }
        let name = original["message_id"].as_str().unwrap().to_owned();
        if name == "text" {
            // Only its own user may set one, and the other is none's to set.
            for property in ["user_id", "cluster_id"] {
                assert!(original.as_object_mut().unwrap().remove(property).is_some(), "{property}");
            }
        }
        match name.as_str() {
            "headers" => {
                let headers = &mut original["headers"]["dict"];
                // A decimal is a floating point number here.
                headers["decimal"] = json!({"int": 2});
                headers["below zero"] = json!({"int": 0});
            }
            // Headers of the broker are not the message's own, nor are notes.
            "moved" | "a note that is none" | "a note that is no text" => {
                original["headers"]["dict"] = json!({"a": {"int": 1}});
            }
            _ => {}
        }
        assert_eq!(copy, original, "{name}");
    }
    for address in [&first, &second] {
        broker.delete(address).await.unwrap();
    }
}

pub(crate) async fn a_dead_letter_is_a_plain_message_for_pika(url: String) {
    let client: Client = client(&url).await;
    let name = unique("dead");
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let sent = Message::new("hello").id("i").content_type("text/plain").header("tenant", "acme");
    client.sender(name.as_str()).await.unwrap().send(sent).await.unwrap();
    soon(receiver.receive()).await.unwrap().reject("not a number");
    let dead = Address::queue(&name).unwrap().dead_letter();
    let seen = python::received(&url, dead.name(), 1).await.remove(0);
    assert_eq!(seen["body"], "68656c6c6f");
    assert_eq!(seen["message_id"], "i");
    assert_eq!(seen["content_type"], "text/plain");
    let headers = &seen["headers"]["dict"];
    assert_eq!(headers["tenant"], "acme");
    assert_eq!(headers["anyqueue-reason"], "not a number");
    assert_eq!(headers["anyqueue-origin"], name);
    assert_eq!(headers["anyqueue-attempts"], json!({"int": 1}));
    receiver.close(crate::common::PATIENCE).await;
    client.delete(name.as_str()).await.unwrap();
    client.delete(dead).await.unwrap();
}

pub(crate) async fn what_describes_a_body_stays_on_retries_and_dead_letters(url: String) {
    let client: Client = client(&url).await;
    let name = unique("described");
    let dead = Address::queue(&name).unwrap().dead_letter();
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let mut pika = python::Declaring::start(&url).await;
    let described = json!({"content_encoding": "gzip", "type": "order", "app_id": "shop", "user_id": "guest"});
    pika.publish(&name, "x", &described).await;
    for attempt in 1..=2 {
        let delivery = soon(receiver.receive()).await.unwrap();
        assert_eq!(delivery.attempt(), attempt);
        let native = |name| delivery.native_headers().get(name).and_then(HeaderValue::as_str);
        let seen = [native("content-encoding"), native("type"), native("app-id")];
        assert_eq!(seen, [Some("gzip"), Some("order"), Some("shop")]);
        if attempt == 1 {
            delivery.retry_after(Duration::from_millis(100))
        } else {
            delivery.reject("no")
        };
    }
    let seen = python::received(&url, dead.name(), 1).await.remove(0);
    assert_eq!((&seen["content_encoding"], &seen["type"]), (&json!("gzip"), &json!("order")));
    // Whoever sends a copy is another user, perhaps.
    assert_eq!((&seen["app_id"], seen.get("user_id")), (&json!("shop"), None));
    receiver.close(crate::common::PATIENCE).await;
    client.delete(name.as_str()).await.unwrap();
    client.delete(dead).await.unwrap();
}

pub(crate) async fn retries_and_delayed_messages_come_to_pika_by_the_ladder(url: String) {
    let client: Client = client(&url).await;
    let name = unique("ladder");
    let dead = Address::queue(&name).unwrap().dead_letter();
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let sender = client.sender(name.as_str()).await.unwrap();
    sender.send(Message::new("retried").id("r").content_type("text/plain").header("tenant", "acme")).await.unwrap();
    let delivery = soon(receiver.receive()).await.unwrap();
    // What comes back is for pika.
    receiver.stop().await;
    delivery.retry_after(Duration::from_millis(700));
    sender.send(Message::new("delayed").id("d").delay(Duration::from_millis(900))).await.unwrap();
    let seen = python::received(&url, &name, 2).await;
    for (seen, id) in seen.iter().zip(["r", "d"]) {
        assert_eq!((&seen["message_id"], &seen["exchange"]), (&json!(id), &json!("anyqueue-delay-out")));
        let headers = &seen["headers"]["dict"];
        assert_eq!(headers["x-first-death-reason"], "expired");
        let waited = headers["x-death"].as_array().unwrap();
        assert!(waited.iter().all(|w| w["dict"]["queue"].as_str().unwrap().starts_with("anyqueue-delay-")), "{seen}");
    }
    let retried = &seen[0]["headers"]["dict"];
    assert_eq!((&retried["anyqueue-attempt"], &retried["tenant"]), (&json!({"int": 2}), &json!("acme")));
    assert_eq!(seen[0]["content_type"], "text/plain");
    assert_eq!(seen[1]["headers"]["dict"].get("anyqueue-attempt"), None);
    assert!(receiver.close(crate::common::PATIENCE).await.is_clean());
    client.delete(name.as_str()).await.unwrap();
    client.delete(dead).await.unwrap();
}

pub(crate) async fn topics_and_exchanges_of_pika_are_the_same(url: String) {
    let broker = connect(&url).await.unwrap();
    let topic = Address::topic(&unique("topic")).unwrap();
    let group = Source::new(topic.clone()).with_group("g").unwrap();
    broker.declare(&Topology::from_iter([Entry::new(topic.clone()), Entry::from(&group)])).await.unwrap();
    let mut pika = python::Declaring::start(&url).await;
    let own = unique("pikas");
    pika.call(&json!([
        ["queue_declare", {"queue": own, "durable": true}],
        ["queue_bind", {"queue": own, "exchange": topic.name(), "routing_key": "any"}],
    ]))
    .await;
    let sender = producer(&broker, &topic).await;
    send_all(&sender, vec![Message::new("x").subject("eu.north").id("i")]).await;
    let seen = python::received(&url, &own, 1).await.remove(0);
    assert_eq!((&seen["exchange"], &seen["routing_key"]), (&json!(topic.name()), &json!("eu.north")));
    assert_eq!(seen.get("headers"), None);
    // And the other way.
    pika.call(&json!([["basic_publish", {"exchange": topic.name(), "routing_key": "eu.south", "body": "y"}]])).await;
    let receiver = broker.consumer(&group, &queue_core::ConsumerOptions::default()).await.unwrap();
    let subjects: Vec<_> = receive_count(&receiver, 2)
        .await
        .iter()
        .map(|r| r.message.as_ref().unwrap().get_subject().map(str::to_owned))
        .collect();
    assert_eq!(subjects, [Some("eu.north".to_owned()), Some("eu.south".to_owned())]);
    pika.call(&json!([["queue_delete", {"queue": own}]])).await;
    broker.delete(&topic).await.unwrap();
}

//! Comparing through the server's HTTP API, which listens at the port of AMQP plus 10,000.

use queue_amqp::DRIVER;
use queue_core::{Client, Declare, Entry, Error, ErrorKind, Ordering, Topology};

use crate::client;
use crate::common::{soon, unique};

fn entry(address: &str, group: Option<&str>, options: &[(&str, &str)]) -> Entry {
    let mut entry = Entry::new(address.parse().unwrap());
    entry.group = group.map(Into::into);
    entry.native = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    entry
}

async fn verify(client: &Client, entries: &[Entry]) -> Result<(), Error> {
    soon(client.verify(&Topology::from_iter(entries.to_vec()))).await
}

/// The URL with that of the API of the same server.
fn with_api(url: &str, login: &str) -> String {
    let (host, port) = url.rsplit_once('@').unwrap().1.rsplit_once(':').unwrap();
    let port = port.parse::<u16>().unwrap() + 10_000;
    format!("{url}?management_url=http%3A%2F%2F{login}%40{host}%3A{port}")
}

pub(crate) async fn the_http_api_names_every_difference(url: String) {
    let plain = client(&url).await;
    let name = unique("api");
    let topic = format!("topic:{name}-t");
    let made = [
        entry(&name, None, &[("x-max-length", "5"), ("x-overflow", "reject-publish")]),
        entry(&topic, Some("g"), &[("exchange_type", "topic"), ("binding_key", "eu.*"), ("x-queue-type", "classic")]),
    ];
    plain.declare(&Topology::from_iter(made.clone())).await.unwrap();
    let api = Client::connect_with(&with_api(&url, "guest%3Aguest"), &[DRIVER]).await.unwrap();
    // The API tells of something new after a moment.
    let deadline = tokio::time::Instant::now() + crate::common::PATIENCE;
    while let Err(error) = verify(&api, &made).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
    verify(&api, &[entry(&name, None, &[]), entry(&topic, Some("g"), &[])]).await.unwrap();
    let differs = [
        entry(&name, None, &[("x-max-length", "6"), ("x-overflow", "drop-head"), ("x-message-ttl", "9")]),
        entry(&topic, Some("g"), &[("exchange_type", "direct"), ("binding_key", "us"), ("x-queue-type", "quorum")]),
    ];
    let error = verify(&api, &differs).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let told: Vec<&str> = error.context("differences").unwrap().split("; ").collect();
    let expected = [
        format!("queue {name}: x-max-length is 5, asked for 6"),
        format!("queue {name}: x-message-ttl is none, asked for 9"),
        format!("queue {name}: x-overflow is reject-publish, asked for drop-head"),
        format!("exchange {name}-t: type is topic, asked for direct"),
        format!("queue {name}-t--g: x-queue-type is classic, asked for quorum"),
        format!("queue {name}-t--g: is not bound to {name}-t for us"),
    ];
    assert_eq!(told, expected);
    let headers = |x_match| entry(&topic, Some("h"), &[("binding.x-match", x_match), ("binding.size", "3")]);
    let other = Topology::from_iter([headers("any")]);
    plain.declare(&other).await.unwrap();
    while let Err(error) = verify(&api, &[headers("any")]).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
    let error = verify(&api, &[headers("all")]).await.unwrap_err();
    let told = error.context("differences").unwrap();
    assert_eq!(told, format!("queue {name}-t--h: is not bound to {name}-t with these arguments"));
    // What was compared in this way is believed.
    let single = format!("{name}-single");
    let ordered = |client: &Client| client.receiver(single.as_str()).native("x-single-active-consumer", "true");
    ordered(&plain).discard_dead_letters().await.unwrap();
    let ordered = || ordered(&api).discard_dead_letters().declare(Declare::Verify).ordering(Ordering::PerKey);
    while let Err(error) = ordered().await {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
    plain.delete(&single).await.unwrap();
    let missing = verify(&api, &[entry(&format!("{name}-no"), None, &[])]).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    // It is asked when something is verified, and its password never shows.
    let wrong = Client::connect_with(&with_api(&url, "guest%3Ahunter2"), &[DRIVER]).await.unwrap();
    let error = verify(&wrong, &made).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!format!("{error:?} {wrong:?}").contains("hunter2"));
    plain.delete(&name).await.unwrap();
    plain.delete(topic.as_str()).await.unwrap();
}

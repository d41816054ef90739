//! Queues, topics, groups and logins.

use queue_core::{Address, ConsumerOptions, Entry, ErrorKind, Message, ProducerOptions, Source, Topology};
use tokio::time::Instant;

use crate::common::{
    PATIENCE, connect, consumer, producer, queue, receive, receive_count, send, send_all, soon, text, unique, until,
};
use crate::numbered;

pub(crate) async fn groups_each_get_everything_and_subscribers_what_is_new(url: String) {
    let broker = connect(&url).await.unwrap();
    let topic = Address::topic(&unique("topic")).unwrap();
    let source = |group: &str| Source::new(topic.clone()).with_group(group).unwrap();
    let entries = [Entry::new(topic.clone()), Entry::from(&source("a")), Entry::from(&source("b"))];
    broker.declare(&Topology::from_iter(entries.clone())).await.unwrap();
    broker.declare(&Topology::from_iter(entries.clone())).await.unwrap();
    broker.verify(&Topology::from_iter(entries)).await.unwrap();
    let sender = producer(&broker, &topic).await;
    send_all(&sender, vec![Message::new("1").subject("s.1")]).await;
    let options = ConsumerOptions::default();
    let anonymous = broker.consumer(&Source::new(topic.clone()), &options).await.unwrap();
    send_all(&sender, vec!["2".into()]).await;
    for group in ["a", "b"] {
        let receiver = broker.consumer(&source(group), &options).await.unwrap();
        let got = receive_count(&receiver, 2).await;
        assert_eq!(got.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(got[0].message.as_ref().unwrap().get_subject(), Some("s.1"));
        assert_eq!(got[1].message.as_ref().unwrap().get_subject(), None);
    }
    assert_eq!(receive_count(&anonymous, 1).await.iter().map(text).collect::<Vec<_>>(), ["2"]);
    // A topic without subscribers is no error, unless a route is required.
    let lonely = Address::topic(&unique("lonely")).unwrap();
    broker.declare(&Topology::from_iter([Entry::new(lonely.clone())])).await.unwrap();
    send_all(&producer(&broker, &lonely).await, numbered(1)).await;
    let mut strict = ProducerOptions::default();
    strict.require_route = true;
    let strict = broker.producer(&lonely, &strict).await.unwrap();
    assert_eq!(send(&strict, numbered(1)).await[0].as_ref().unwrap().kind(), ErrorKind::Unroutable);
    broker.delete(&lonely).await.unwrap();
    broker.delete(&topic).await.unwrap();
    broker.delete(&topic).await.unwrap();
    let error = broker.stats(&source("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub(crate) async fn a_deleted_queue_ends_its_consumer(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "deleted").await;
    let other = queue(&broker, "kept").await;
    let receiver = consumer(&broker, &address).await;
    let kept = consumer(&broker, &other).await;
    let waiting = tokio::spawn({
        let receiver = receiver.clone();
        async move { receive(&receiver).await.map(|_| ()).unwrap_err() }
    });
    until("it waits", async || broker.stats(&Source::new(address.clone())).await.unwrap().consumers == Some(1)).await;
    broker.delete(&address).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().kind(), ErrorKind::NotFound);
    receiver.close(Instant::now() + PATIENCE).await;
    send_all(&producer(&broker, &other).await, numbered(1)).await;
    receive_count(&kept, 1).await;
    broker.delete(&other).await.unwrap();
}

pub(crate) async fn what_exists_is_taken_as_it_is_unless_it_differs_from_what_was_asked(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = Address::queue(&unique("native")).unwrap();
    let declare = |entry: Entry| {
        let broker = broker.clone();
        async move { broker.declare(&Topology::from_iter([entry])).await.map_err(|e| e.kind()) }
    };
    let plain = Entry::new(address.clone());
    let mut classic = plain.clone();
    classic.native.insert("x-queue-type".into(), "classic".into());
    classic.native.insert("x-max-length".into(), "5".into());
    let mut other = plain.clone();
    other.native.insert("x-max-length".into(), "6".into());
    let mut guarded = plain.clone();
    guarded.dead_letter = Some(address.dead_letter());
    guarded.max_deliveries = Some(3);
    assert_eq!(broker.verify(&Topology::from_iter([plain.clone()])).await.unwrap_err().kind(), ErrorKind::NotFound);
    declare(classic.clone()).await.unwrap();
    declare(classic.clone()).await.unwrap();
    declare(plain.clone()).await.unwrap();
    declare(guarded.clone()).await.unwrap();
    broker.verify(&Topology::from_iter([plain.clone()])).await.unwrap();
    assert_eq!(declare(other.clone()).await, Err(ErrorKind::Conflict));
    broker.delete(&address).await.unwrap();
    declare(guarded.clone()).await.unwrap();
    declare(plain).await.unwrap();
    broker.purge(&address).await.unwrap();
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn wrong_logins_and_addresses_are_told_apart(url: String) {
    let mut parts = url.splitn(2, '@');
    let hosts = parts.nth(1).unwrap().to_owned();
    let error = connect(&format!("amqp://guest:hunter2@{hosts}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    let error = connect(&format!("{url}/nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let error = connect("amqp://guest:guest@127.0.0.1:1").await.unwrap_err();
    assert_eq!((error.kind(), error.context("host")), (ErrorKind::Connection, Some("127.0.0.1:1")));
    let error = connect(&format!("{url}?hartbeat=1s")).await.unwrap_err();
    assert_eq!(error.context("did_you_mean"), Some("heartbeat"));
    // The second host answers.
    let both = connect(&format!("amqp://guest:guest@127.0.0.1:1,{hosts}")).await.unwrap();
    both.ping().await.unwrap();
    assert!(both.health().is_up());
    let shown = format!("{both:?}");
    assert!(!shown.contains("guest"), "{shown}");
    let missing = Source::new(Address::queue(&unique("missing")).unwrap());
    let error = both.consumer(&missing, &ConsumerOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// More than a connection has channels, each refused by the server.
pub(crate) async fn thousands_of_refused_questions_leave_no_trace(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "asked").await;
    let missing = Source::new(Address::queue(&unique("missing")).unwrap());
    for _ in 0..2100 {
        let error = soon(broker.stats(&missing)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
    for _ in 0..100 {
        soon(broker.ping()).await.unwrap();
        let receiver = consumer(&broker, &address).await;
        receiver.close(Instant::now() + PATIENCE).await;
    }
    broker.delete(&address).await.unwrap();
}

//! Requests and replies on a real broker.

mod common;
#[path = "security/proxy.rs"]
mod proxy;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join, join_all};
use queue_core::{
    Address, Broker, Consumer, Endpoint, Entry, ErrorKind, Message, Outcome, Producer, Result, Source, Topology,
};
use tokio::time::{Instant, timeout};

use crate::common::{
    Case, PATIENCE, connect, consumer, producer, queue, receive, run, send, send_all, soon, unique, until,
};
use crate::proxy::Proxy;

fn main() {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $name(url).boxed_local())),*] };
    }
    run(
        common::URL,
        cases![
            a_thousand_requests_share_one_channel_and_each_gets_its_reply,
            late_second_and_foreign_replies_are_ignored,
            a_request_to_no_queue_fails_at_once_and_alone,
            a_refused_request_is_rejected,
            a_lost_connection_fails_what_is_pending_and_the_next_request_works,
            a_caller_that_goes_away_leaves_nothing_behind,
            a_request_that_nobody_waits_for_expires,
            a_reply_to_nobody_is_no_error,
            closing_fails_what_is_pending,
            closing_at_any_moment_is_clean,
            what_is_no_request_is_refused,
        ],
    );
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

async fn ask(broker: &Arc<dyn Broker>, to: &Address, text: impl Into<String>) -> Result<Message> {
    broker.requests().expect("as declared").request(to, Message::new(text.into()), deadline()).await
}

/// A queue with somebody who answers.
struct Replier {
    address: Address,
    inbox: Arc<dyn Consumer>,
    /// To another address: a reply goes where the request says.
    sender: Arc<dyn Producer>,
}

impl Replier {
    async fn new(broker: &Arc<dyn Broker>) -> Self {
        let address = queue(broker, "requests").await;
        let inbox = consumer(broker, &address).await;
        let sender = producer(broker, &address).await;
        Self { address, inbox, sender }
    }

    async fn requests(&self) -> Vec<Message> {
        let batch = soon(receive(&self.inbox)).await.unwrap();
        self.inbox.ack(&batch.iter().map(|r| r.token).collect::<Vec<_>>());
        batch.into_iter().map(|r| r.message.unwrap()).collect()
    }

    async fn one(&self) -> Message {
        let mut requests = self.requests().await;
        assert_eq!(requests.len(), 1);
        requests.remove(0)
    }
}

fn reply(request: &Message, text: impl Into<String>) -> Message {
    let address = Address::queue(request.get_reply_to().unwrap()).unwrap();
    Message::new(text.into()).to(address).correlation_id(request.get_correlation_id().unwrap().to_owned())
}

async fn a_thousand_requests_share_one_channel_and_each_gets_its_reply(url: String) {
    const COUNT: usize = 1000;
    let (broker, other) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let replier = Replier::new(&other).await;
    assert!(broker.capabilities().requests);
    let asking = join_all((0..COUNT).map(|n| ask(&broker, &replier.address, n.to_string())));
    let replying = async {
        let (mut count, mut addresses) = (0, BTreeSet::new());
        while count < COUNT {
            // The last comes first.
            let requests = replier.requests().await;
            let replies: Vec<_> =
                requests.iter().rev().map(|r| reply(r, format!("re {}", r.text().unwrap()))).collect();
            addresses.extend(requests.iter().map(|r| r.get_reply_to().unwrap().to_owned()));
            count += requests.len();
            send_all(&replier.sender, replies).await;
        }
        addresses
    };
    let start = Instant::now();
    let (replies, addresses) = soon(join(asking, replying)).await;
    eprintln!("{COUNT} requests in {:?}", start.elapsed());
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.unwrap().text(), Some(&*format!("re {n}")));
    }
    // Each channel has a reply address of its own.
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    broker.delete(&replier.address).await.unwrap();
}

async fn late_second_and_foreign_replies_are_ignored(url: String) {
    let broker = connect(&url).await.unwrap();
    let replier = Replier::new(&broker).await;
    let requests = broker.requests().unwrap();
    let soon_over = Instant::now() + Duration::from_secs(2);
    let asking = requests.request(&replier.address, "late".into(), soon_over);
    let (late, request) = join(asking, replier.one()).await;
    let error = late.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    let (answer, next) = join(ask(&broker, &replier.address, "next"), async {
        let next = replier.one().await;
        let foreign = reply(&next, "foreign").correlation_id("somebody else's");
        let nameless = Message::new("nameless").to(Address::queue(next.get_reply_to().unwrap()).unwrap());
        send_all(&replier.sender, vec![reply(&request, "late"), foreign, nameless, reply(&next, "right")]).await;
        send_all(&replier.sender, vec![reply(&next, "second")]).await;
        next
    })
    .await;
    assert_eq!(answer.unwrap().text(), Some("right"));
    let (answer, ()) = join(ask(&broker, &replier.address, "last"), async {
        let last = replier.one().await;
        send_all(&replier.sender, vec![reply(&next, "third"), reply(&last, "last")]).await;
    })
    .await;
    assert_eq!(answer.unwrap().text(), Some("last"));
    broker.delete(&replier.address).await.unwrap();
}

async fn a_request_to_no_queue_fails_at_once_and_alone(url: String) {
    let broker = connect(&url).await.unwrap();
    let replier = Replier::new(&broker).await;
    let missing = Address::queue(&unique("missing")).unwrap();
    let start = Instant::now();
    let asking = join_all((0..200).map(|n| {
        let to = if n % 2 == 0 { &replier.address } else { &missing };
        ask(&broker, to, n.to_string())
    }));
    let replying = async {
        let mut count = 0;
        while count < 100 {
            let requests = replier.requests().await;
            count += requests.len();
            send_all(&replier.sender, requests.iter().map(|r| reply(r, r.text().unwrap())).collect()).await;
        }
    };
    let (answers, ()) = soon(join(asking, replying)).await;
    for (n, answer) in answers.into_iter().enumerate() {
        if n % 2 == 0 {
            assert_eq!(answer.unwrap().text(), Some(&*n.to_string()));
        } else {
            let error = answer.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unroutable, Outcome::Rejected), "{error:?}");
            assert_eq!(error.context("address"), Some(missing.name()));
        }
    }
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    broker.delete(&replier.address).await.unwrap();
}

async fn a_refused_request_is_rejected(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = Address::queue(&unique("full")).unwrap();
    let mut full = Entry::new(address.clone());
    for (name, value) in [("x-queue-type", "classic"), ("x-max-length", "1"), ("x-overflow", "reject-publish")] {
        full.native.insert(name.into(), value.into());
    }
    broker.declare(&Topology::from_iter([full])).await.unwrap();
    let sender = producer(&broker, &address).await;
    // The limit is noticed a little late.
    until("the queue is full", async || send(&sender, vec!["x".into()]).await[0].is_some()).await;
    let error = soon(ask(&broker, &address, "too many")).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Rejected, Outcome::Rejected), "{error:?}");
    broker.delete(&address).await.unwrap();
}

async fn a_lost_connection_fails_what_is_pending_and_the_next_request_works(url: String) {
    let endpoint: Endpoint = url.parse().unwrap();
    let proxy = Proxy::to(endpoint.hosts[0].port.unwrap()).await;
    let (broker, other) = (
        connect(&format!("amqp://guest:guest@127.0.0.1:{}?max_backoff=500ms", proxy.port)).await.unwrap(),
        connect(&url).await.unwrap(),
    );
    let replier = Replier::new(&other).await;
    for round in 0..3 {
        let asking = join_all((0..10).map(|n| ask(&broker, &replier.address, n.to_string())));
        let cutting = async {
            let mut seen = Vec::new();
            while seen.len() < 10 {
                seen.extend(replier.requests().await);
            }
            proxy.cut();
            seen
        };
        let (answers, old) = soon(join(asking, cutting)).await;
        for answer in answers {
            let error = answer.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Connection, Outcome::Unknown), "{error:?}");
        }
        // Waits for the connection by itself, and gets no reply of an earlier one.
        let (answer, ()) = soon(join(ask(&broker, &replier.address, "again"), async {
            let request = replier.one().await;
            send_all(&replier.sender, old.iter().map(|r| reply(r, "old")).collect()).await;
            send_all(&replier.sender, vec![reply(&request, format!("round {round}"))]).await;
        }))
        .await;
        assert_eq!(answer.unwrap().text(), Some(&*format!("round {round}")));
    }
    other.delete(&replier.address).await.unwrap();
}

async fn a_caller_that_goes_away_leaves_nothing_behind(url: String) {
    let broker = connect(&url).await.unwrap();
    let replier = Replier::new(&broker).await;
    let mut dropped = Vec::new();
    for n in 0..20 {
        let asking = ask(&broker, &replier.address, n.to_string());
        let request = tokio::select! {
            answer = asking => panic!("{answer:?}"),
            request = replier.one() => request,
        };
        dropped.push(reply(&request, "for nobody"));
    }
    let shown = format!("{broker:?}");
    assert!(shown.contains("pending: 0"), "{shown}");
    send_all(&replier.sender, dropped).await;
    let (answer, ()) = soon(join(ask(&broker, &replier.address, "x"), async {
        let request = replier.one().await;
        send_all(&replier.sender, vec![reply(&request, "y")]).await;
    }))
    .await;
    assert_eq!(answer.unwrap().text(), Some("y"));
    broker.delete(&replier.address).await.unwrap();
}

async fn a_request_that_nobody_waits_for_expires(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "expires").await;
    let requests = broker.requests().unwrap();
    let error = requests.request(&address, "x".into(), Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    let source = Source::new(address.clone());
    until("it is gone", async || broker.stats(&source).await.unwrap().ready == Some(0)).await;
    let inbox = consumer(&broker, &address).await;
    assert!(timeout(Duration::from_secs(1), receive(&inbox)).await.is_err());
    broker.delete(&address).await.unwrap();
}

async fn a_reply_to_nobody_is_no_error(url: String) {
    let (broker, other) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let replier = Replier::new(&other).await;
    let asking = ask(&broker, &replier.address, "x");
    let request = tokio::select! {
        answer = asking => panic!("{answer:?}"),
        request = replier.one() => request,
    };
    broker.close(deadline()).await;
    send_all(&replier.sender, vec![reply(&request, "for nobody"), Message::new("to the queue")]).await;
    assert_eq!(replier.one().await.text(), Some("to the queue"));
    other.delete(&replier.address).await.unwrap();
}

async fn closing_fails_what_is_pending(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "closing").await;
    let pending = ask(&broker, &address, "x");
    let closing = async {
        until("it is asked", async || format!("{broker:?}").contains("pending: 1")).await;
        broker.close(deadline()).await
    };
    let (answer, report) = soon(join(pending, closing)).await;
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(soon(ask(&broker, &address, "x")).await.unwrap_err().kind(), ErrorKind::Closed);
    connect(&url).await.unwrap().delete(&address).await.unwrap();
}

/// While the channel of the requests is opened, and shortly after.
async fn closing_at_any_moment_is_clean(url: String) {
    let first = connect(&url).await.unwrap();
    let address = queue(&first, "closing").await;
    for n in 0..60 {
        let broker = connect(&url).await.unwrap();
        let pending = ask(&broker, &address, "x");
        let closing = async {
            tokio::time::sleep(Duration::from_micros(n * 300)).await;
            broker.close(deadline()).await
        };
        let (answer, report) = soon(join(pending, closing)).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed, "{n}");
        assert!(report.is_clean(), "{n}: {report:?}");
    }
    first.delete(&address).await.unwrap();
}

async fn what_is_no_request_is_refused(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "odd").await;
    let requests = broker.requests().unwrap();
    let topic = Address::topic("t").unwrap();
    let huge = vec![0; broker.capabilities().max_message_bytes + 1];
    let wide = Message::new("x").header("h", "x".repeat(200_000));
    for (to, message, kind) in [
        (&topic, Message::new("x"), ErrorKind::Unsupported),
        (&address, Message::new("x").delay(Duration::from_secs(1)), ErrorKind::Unsupported),
        (&address, Message::new("x").ttl(Duration::from_secs(50 * 24 * 3600)), ErrorKind::Unsupported),
        (&address, Message::new(huge), ErrorKind::TooLarge),
        (&address, wide, ErrorKind::TooLarge),
    ] {
        let error = soon(requests.request(to, message, deadline())).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotSent), "{error:?}");
    }
    // Later than a time to live can say.
    let far = Instant::now() + Duration::from_secs(60 * 24 * 3600);
    let nowhere = Address::queue(&unique("nowhere")).unwrap();
    let error = soon(requests.request(&nowhere, Message::new("x"), far)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unroutable, "{error:?}");
    let past = Instant::now() - Duration::from_millis(1);
    let error = soon(requests.request(&address, "x".into(), past)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotSent));
    assert_eq!(broker.stats(&Source::new(address.clone())).await.unwrap().ready, Some(0));
    broker.delete(&address).await.unwrap();
}

//! Commits of transactions whose answer is lost, on a real broker (`ANYQUEUE_TEST_KAFKA_URL`) behind a relay: whatever the
//! broker made of them, each message is copied once.

mod common;
mod own;

use std::time::Duration;

use common::{block_on, fresh_name, run, url};
use own::relay::{End, Relay};
use queue_core::{Client, Delivery, Outcome, Receiver, Source, Transaction, Transactor};
use queue_kafka::DRIVER;
use tokio::time::{Instant, timeout};

const CLOSE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(3);
/// How much later than its deadline an answer may come, on a busy machine.
const GRACE: Duration = Duration::from_secs(4);
const SOON: Duration = Duration::from_secs(60);
/// Half of what a transaction that nobody ends is open for.
const BEFORE_IT_EXPIRES: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(3);

fn main() {
    run(&[
        ("one_that_was_committed_is_not_repeated", || one_without_an_answer(End::Unanswered)),
        ("one_that_was_not_committed_is_repeated", || one_without_an_answer(End::Swallowed)),
        ("one_that_was_not_committed_is_repeated_without_a_begin", nobody_begins_another),
        ("a_closed_transactor_shuts_nobody_out", the_successor_is_left_alone),
        ("one_that_was_committed_is_not_repeated_elsewhere", || another_member_goes_on(End::Unanswered)),
        ("one_that_was_not_committed_is_repeated_elsewhere", || another_member_goes_on(End::Swallowed)),
    ]);
}

struct Rig {
    relay: Relay,
    client: Client,
    from: String,
    to: String,
    source: Receiver,
    transactions: Transactor,
}

impl Rig {
    async fn new() -> Self {
        let url = url().unwrap();
        let broker: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let relay = Relay::start(port, broker).unwrap();
        let url = format!("kafka://127.0.0.1:{port}?partitions=1&commit_interval=50ms&kafka.session.timeout.ms=12000");
        let client = Client::connect_with(&url, &[DRIVER]).await.unwrap();
        let (from, to) = (fresh_name(), fresh_name());
        client.sender(from.as_str()).await.unwrap().send_batch((0..4).map(|i| i.to_string())).await.unwrap();
        let source = client.receiver(from.as_str()).discard_dead_letters().await.unwrap();
        let transactions = client.transactions(fresh_name()).deadline(DEADLINE).await.unwrap();
        Self { relay, client, from, to, source, transactions }
    }

    /// Copies messages 0 and 2 in a transaction whose commit gets no answer; the other messages.
    async fn doubt(&mut self, end: End) -> Vec<Delivery> {
        let mut tx = self.transactions.begin().await.unwrap();
        let mut rest = Vec::new();
        for (index, delivery) in receive(&mut self.source, 4).await.into_iter().enumerate() {
            if index % 2 == 0 { copy(&mut tx, &self.to, delivery).await } else { rest.push(delivery) }
        }
        self.relay.at_the_end(end);
        let begun = Instant::now();
        let error = tx.commit().await.unwrap_err();
        assert!(self.relay.is_silent(), "the commit did not get as far: {error:?}");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
        assert!(begun.elapsed() < DEADLINE + GRACE, "{:?}", begun.elapsed());
        rest
    }

    /// As soon as the broker is there again.
    async fn begin(&self) -> Transaction {
        let end = Instant::now() + SOON;
        loop {
            match self.transactions.begin().await {
                Ok(tx) => return tx,
                Err(error) => assert!(error.is_retryable() && Instant::now() < end, "{error:?}"),
            }
        }
    }
}

async fn receive(receiver: &mut Receiver, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = timeout(SOON, receiver.receive()).await;
        all.push(next.unwrap_or_else(|_| panic!("{} of {count} messages came", all.len())).unwrap());
    }
    all
}

async fn copy(tx: &mut Transaction, to: &str, delivery: Delivery) {
    tx.send(to, delivery.message().clone()).await.unwrap();
    tx.ack(delivery).unwrap();
}

fn texts(all: &[Delivery]) -> Vec<&str> {
    all.iter().filter_map(|delivery| delivery.text()).collect()
}

/// What is in the topic of the copies.
async fn copies(to: &str) -> Vec<String> {
    let client = Client::connect_with(&url().unwrap(), &[DRIVER]).await.unwrap();
    let mut target = client.receiver(to).discard_dead_letters().await.unwrap();
    let mut all = Vec::new();
    loop {
        let batch = target.receive_batch_within(10, QUIET).await.unwrap();
        if batch.is_empty() {
            break;
        }
        all.extend(batch.iter().filter_map(|copy| copy.text().map(str::to_owned)));
        batch.ack();
    }
    client.close(CLOSE).await;
    all
}

fn one_without_an_answer(end: End) {
    block_on(async {
        let mut rig = Rig::new().await;
        let rest = rig.doubt(end).await;
        // Nobody knows yet, and so nothing comes.
        assert!(rig.source.receive_batch_within(1, QUIET).await.unwrap().is_empty());
        rig.relay.heal();
        // Decides it, where that was not done.
        let mut tx = rig.begin().await;
        if end == End::Swallowed {
            let again = receive(&mut rig.source, 2).await;
            assert_eq!(texts(&again), ["0", "2"]);
            for delivery in again {
                copy(&mut tx, &rig.to, delivery).await;
            }
        }
        for delivery in rest {
            copy(&mut tx, &rig.to, delivery).await;
        }
        tx.commit().await.unwrap();
        assert!(rig.source.receive_batch_within(1, QUIET).await.unwrap().is_empty(), "what is done comes again");
        rig.source.flush().await.unwrap();
        let lag = rig.client.stats(&Source::new(rig.from.parse().unwrap())).await.unwrap().lag;
        assert_eq!(lag, Some(0));
        let mut copies = copies(&rig.to).await;
        copies.sort();
        assert_eq!(copies, ["0", "1", "2", "3"]);
        rig.client.close(CLOSE).await;
    });
}

/// Who begins a transaction for what was received waits for ever if nothing is received before one begins.
fn nobody_begins_another() {
    block_on(async {
        let mut rig = Rig::new().await;
        let rest = rig.doubt(End::Swallowed).await;
        rig.relay.heal();
        let again = timeout(BEFORE_IT_EXPIRES, receive(&mut rig.source, 2)).await.expect("it is decided by itself");
        assert_eq!(texts(&again), ["0", "2"]);
        let mut tx = rig.begin().await;
        for delivery in again.into_iter().chain(rest) {
            copy(&mut tx, &rig.to, delivery).await;
        }
        tx.commit().await.unwrap();
        let mut copies = copies(&rig.to).await;
        copies.sort();
        assert_eq!(copies, ["0", "1", "2", "3"]);
        rig.client.close(CLOSE).await;
    });
}

/// What would decide the transaction that was left open would shut out whoever has opened the name since.
fn the_successor_is_left_alone() {
    block_on(async {
        let mut rig = Rig::new().await;
        let rest = rig.doubt(End::Swallowed).await;
        rest.into_iter().for_each(std::mem::forget);
        let name = rig.transactions.name().to_owned();
        rig.client.close(CLOSE).await;
        let second = Client::connect_with(&url().unwrap(), &[DRIVER]).await.unwrap();
        let transactions = second.transactions(name).await.unwrap();
        rig.relay.heal();
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            let mut tx = transactions.begin().await.unwrap();
            tx.send(rig.to.as_str(), "of the successor").await.unwrap();
            tx.commit().await.unwrap();
        }
        second.close(CLOSE).await;
    });
}

fn another_member_goes_on(end: End) {
    block_on(async {
        let mut rig = Rig::new().await;
        let rest = rig.doubt(end).await;
        // The first is gone before it knows, and never says a word again.
        let name = rig.transactions.name().to_owned();
        rest.into_iter().for_each(std::mem::forget);
        rig.client.close(Duration::ZERO).await;
        let second = Client::connect_with(&url().unwrap(), &[DRIVER]).await.unwrap();
        let transactions = second.transactions(name).await.unwrap();
        // Until the group has given the first one up.
        let mut source = second.receiver(rig.from.as_str()).discard_dead_letters().await.unwrap();
        let expected: &[&str] = if end == End::Swallowed { &["0", "1", "2", "3"] } else { &["1", "3"] };
        let again = timeout(SOON * 2, receive(&mut source, expected.len())).await.unwrap();
        assert_eq!(texts(&again), expected);
        let mut tx = transactions.begin().await.unwrap();
        for delivery in again {
            copy(&mut tx, &rig.to, delivery).await;
        }
        tx.commit().await.unwrap();
        let mut copies = copies(&rig.to).await;
        copies.sort();
        assert_eq!(copies, ["0", "1", "2", "3"]);
        second.close(CLOSE).await;
        rig.relay.cut();
    });
}

//! Transactions on a real broker (`ANYQUEUE_TEST_KAFKA_URL`): what happens and what does not. What faults make of them is
//! in `transactions_faults.rs`.

mod common;
#[path = "transactions/positions.rs"]
mod positions;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{block_on, fresh_name, run, url};
use futures::FutureExt;
use queue_core::{
    Address, Answered, Batch, Client, Declare, Delivery, Entry, ErrorKind, Message, Outcome, Receiver, Source, Topology,
};
use queue_kafka::DRIVER;
use queue_kafka::rdkafka::consumer::{BaseConsumer, Consumer as _};
use queue_kafka::rdkafka::producer::{BaseProducer, Producer as _};
use queue_kafka::rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::{Instant, timeout};

const CLOSE: Duration = Duration::from_secs(10);
/// Until what is there is handed out, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// How long nothing is to come.
const QUIET: Duration = Duration::from_secs(2);
/// Enough to open transactions on a busy machine, and not for ever.
const IMPATIENT: Duration = Duration::from_secs(8);

fn main() {
    run(&[
        ("a_transaction_happens_when_it_is_committed", a_transaction_happens_when_it_is_committed),
        ("what_is_given_up_never_happened_and_comes_again", what_is_given_up_never_happened_and_comes_again),
        ("a_dropped_transaction_is_given_up", a_dropped_transaction_is_given_up),
        ("an_instance_of_the_same_name_shuts_the_first_out", an_instance_of_the_same_name_shuts_the_first_out),
        ("acks_out_of_order_are_part_of_it", positions::acks_out_of_order_are_part_of_it),
        ("what_has_no_room_in_the_note_is_refused", positions::what_has_no_room_in_the_note_is_refused),
        ("later_acks_leave_it_in_the_note", positions::later_acks_leave_it_in_the_note),
        ("ordinary_commits_undo_nothing", positions::ordinary_commits_undo_nothing),
        ("a_partition_that_went_fails_the_commit", a_partition_that_went_fails_the_commit),
        ("an_open_position_is_waited_for", an_open_position_is_waited_for),
        ("one_that_expired_is_told", one_that_expired_is_told),
        ("a_message_that_is_refused_fails_the_commit", a_message_that_is_refused_fails_the_commit),
        ("two_receivers_and_many_messages_go_together", two_receivers_and_many_messages_go_together),
        ("what_cannot_take_part_is_told", what_cannot_take_part_is_told),
    ]);
}

async fn client_with(options: &str) -> Client {
    Client::connect_with(&format!("{}?{options}", url().unwrap()), &[DRIVER]).await.unwrap()
}

async fn client() -> Client {
    client_with("partitions=1&commit_interval=50ms").await
}

async fn receiver(client: &Client, queue: &str) -> Receiver {
    client.receiver(queue).prefetch(500).discard_dead_letters().await.unwrap()
}

async fn send(client: &Client, queue: &str, range: std::ops::Range<u32>) {
    let sender = client.sender(queue).await.unwrap();
    sender.send_batch(range.map(|i| i.to_string())).await.unwrap();
}

async fn receive(receiver: &mut Receiver, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = timeout(SOON, receiver.receive()).await;
        all.push(next.unwrap_or_else(|_| panic!("{} of {count} messages came", all.len())).unwrap());
    }
    all
}

fn texts<'a>(all: impl IntoIterator<Item = &'a Delivery>) -> Vec<u32> {
    all.into_iter().map(|delivery| delivery.text().unwrap().parse().unwrap()).collect()
}

/// Whether nothing comes for a while.
async fn nothing(receiver: &mut Receiver) -> bool {
    receiver.receive_batch_within(1, QUIET).await.unwrap().is_empty()
}

/// Goes as a process does that is killed: without another commit, and without leaving the group in good order.
async fn crash(client: Client, held: Vec<Delivery>) {
    // What is unanswered stays so: no drop retries it.
    held.into_iter().for_each(std::mem::forget);
    client.close(Duration::ZERO).await;
}

fn a_transaction_happens_when_it_is_committed() {
    block_on(async {
        let (client, from, to) = (client().await, fresh_name(), fresh_name());
        send(&client, &from, 0..10).await;
        let (mut source, mut target) = (receiver(&client, &from).await, receiver(&client, &to).await);
        let transactions = client.transactions(fresh_name()).await.unwrap();
        assert!(client.capabilities().transactions);

        let batch = receive(&mut source, 10).await;
        let mut tx = transactions.begin().await.unwrap();
        for delivery in &batch {
            tx.send(to.as_str(), format!("1{}", delivery.text().unwrap())).await.unwrap();
        }
        for delivery in batch {
            tx.ack(delivery).unwrap();
        }
        // The broker has the messages, and nobody sees them.
        assert!(nothing(&mut target).await, "a transaction that is open was read");
        tx.commit().await.unwrap();
        let copies = receive(&mut target, 10).await;
        assert_eq!(texts(&copies), (10..20).collect::<Vec<_>>());
        // The group has the position, without a commit of the receiver's own.
        let lag = client.stats(&Source::new(from.parse().unwrap())).await.unwrap().lag;
        assert_eq!(lag, Some(0));
        assert!(nothing(&mut source).await);
        // An empty one, and one with messages alone.
        transactions.begin().await.unwrap().commit().await.unwrap();
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "20").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(texts(&receive(&mut target, 1).await), [20]);
        client.close(CLOSE).await;
    });
}

fn what_is_given_up_never_happened_and_comes_again() {
    block_on(async {
        let (client, from, to) = (client().await, fresh_name(), fresh_name());
        send(&client, &from, 0..5).await;
        let (mut source, mut target) = (receiver(&client, &from).await, receiver(&client, &to).await);
        let transactions = client.transactions(fresh_name()).await.unwrap();
        for _ in 0..3 {
            let batch = receive(&mut source, 5).await;
            assert!(batch.iter().all(|delivery| delivery.attempt() == 1), "what is given up counts as no attempt");
            let mut tx = transactions.begin().await.unwrap();
            tx.send_batch(to.as_str(), batch.iter().map(|d| d.message().clone())).await.unwrap();
            batch.into_iter().for_each(|delivery| tx.ack(delivery).unwrap());
            tx.abort().await.unwrap();
        }
        assert!(nothing(&mut target).await, "what was given up was read");
        let again = receive(&mut source, 5).await;
        assert_eq!(texts(&again), [0, 1, 2, 3, 4]);
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "7").await.unwrap();
        again.into_iter().for_each(|delivery| tx.ack(delivery).unwrap());
        tx.commit().await.unwrap();
        assert_eq!(texts(&receive(&mut target, 1).await), [7]);
        assert!(nothing(&mut source).await);
        let report = client.close(CLOSE).await;
        assert!(report.errors.is_empty(), "{report:?}");
    });
}

fn a_dropped_transaction_is_given_up() {
    block_on(async {
        let (client, from, to) = (client().await, fresh_name(), fresh_name());
        send(&client, &from, 0..2).await;
        let (mut source, mut target) = (receiver(&client, &from).await, receiver(&client, &to).await);
        let transactions = client.transactions(fresh_name()).await.unwrap();
        let batch = source.receive_batch(2).await.unwrap();
        let count = batch.len();
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "1").await.unwrap();
        tx.ack(batch).unwrap();
        drop(tx);
        // The next begins when that is over.
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "2").await.unwrap();
        let again = receive(&mut source, count).await;
        assert!(again.iter().all(|delivery| delivery.attempt() == 1));
        again.into_iter().for_each(|delivery| tx.ack(delivery).unwrap());
        // One at a time: the second waits, and is told when its time is over.
        let impatient = client.transactions(fresh_name()).deadline(IMPATIENT).await.unwrap();
        let open = impatient.begin().await.unwrap();
        assert_eq!(impatient.begin().await.unwrap_err().kind(), ErrorKind::Timeout);
        drop(open);
        impatient.begin().await.unwrap().abort().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(texts(&receive(&mut target, 1).await), [2]);
        client.close(CLOSE).await;
    });
}

fn an_instance_of_the_same_name_shuts_the_first_out() {
    block_on(async {
        let (client, from, to, name) = (client().await, fresh_name(), fresh_name(), fresh_name());
        send(&client, &from, 0..1).await;
        let (mut source, mut target) = (receiver(&client, &from).await, receiver(&client, &to).await);
        let first = client.transactions(&name).await.unwrap();
        let mut tx = first.begin().await.unwrap();
        tx.send(to.as_str(), "1").await.unwrap();
        tx.ack(receive(&mut source, 1).await.remove(0)).unwrap();
        let other = client_with("partitions=1").await;
        let second = other.transactions(&name).await.unwrap();
        let error = tx.commit().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotSent), "{error:?}");
        assert_eq!(error.context("transactions"), Some(name.as_str()));
        assert!(!error.is_retryable());
        // For good: opening the name again would shut the other out.
        assert_eq!(first.begin().await.unwrap_err().kind(), ErrorKind::Conflict);
        // What it was to acknowledge comes again.
        let again = receive(&mut source, 1).await;
        let mut tx = second.begin().await.unwrap();
        tx.send(to.as_str(), "2").await.unwrap();
        // A receiver of another client is none of this one's.
        let error = tx.ack(again.into_iter().next().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(tx.commit().await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let mut tx = second.begin().await.unwrap();
        tx.send(to.as_str(), "3").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(texts(&receive(&mut target, 1).await), [3]);
        other.close(CLOSE).await;
        client.close(CLOSE).await;
    });
}

fn a_partition_that_went_fails_the_commit() {
    block_on(async {
        let (first, from, to) = (client().await, fresh_name(), fresh_name());
        let mut entry = Entry::new(from.parse::<Address>().unwrap());
        entry.partitions = Some(2);
        first.declare(&Topology::from_iter([entry])).await.unwrap();
        let sender = first.sender(from.as_str()).await.unwrap();
        sender.send_batch((0..40).map(|i| Message::new(i.to_string()).key(i.to_string()))).await.unwrap();
        let mut source = receiver(&first, &from).await;
        let transactions = first.transactions(fresh_name()).await.unwrap();
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "1").await.unwrap();
        let mut all = receive(&mut source, 40).await;
        let kept = all.pop().unwrap();
        let kept_partition = kept.position().partition;
        all.into_iter().for_each(|delivery| tx.ack(delivery).unwrap());
        // Another member gets one of the two partitions; the messages of it are its own then.
        let second = client().await;
        let mut other = receiver(&second, &from).await;
        let moved = receive(&mut other, 1).await.remove(0);
        let error = tx.commit().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::LeaseLost, Outcome::NotSent), "{error:?}");
        assert!(error.is_retryable());
        // Each is with one of the two.
        let mut seen: BTreeSet<u32> = texts([&moved]).into_iter().collect();
        let is_kept = moved.position().partition != kept_partition;
        if is_kept {
            seen.extend(texts([&kept]));
        }
        let end = Instant::now() + SOON;
        let (mut here, mut there) = (Vec::new(), vec![moved]);
        while seen.len() < 40 && Instant::now() < end {
            for (receiver, all) in [(&mut source, &mut here), (&mut other, &mut there)] {
                for delivery in receiver.receive_batch_within(40, Duration::from_millis(100)).await.unwrap() {
                    assert!(seen.insert(texts([&delivery])[0]), "{delivery:?} is with both");
                    all.push(delivery);
                }
            }
        }
        assert_eq!(seen.len(), 40);
        let mut tx = transactions.begin().await.unwrap();
        here.into_iter().chain(is_kept.then_some(kept)).for_each(|delivery| tx.ack(delivery).unwrap());
        tx.send(to.as_str(), "2").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(texts(&receive(&mut receiver(&first, &to).await, 1).await), [2]);
        second.close(CLOSE).await;
        first.close(CLOSE).await;
    });
}

/// A transaction that has sent a position and is not over: by the native client, which is left in the middle.
fn an_open_position_is_waited_for() {
    block_on(async {
        let (client, from) = (client().await, fresh_name());
        send(&client, &from, 0..5).await;
        let native = client.broker().native().downcast_ref::<ClientConfig>().unwrap().clone();
        let (group, name) = (from.clone(), fresh_name());
        let open = move || {
            let producer: BaseProducer = native.clone().set("transactional.id", &name).create().unwrap();
            producer.init_transactions(SOON).unwrap();
            producer.begin_transaction().unwrap();
            let member: BaseConsumer = native.clone().set("group.id", &group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&group, 0, Offset::Offset(2)).unwrap();
            list.find_partition(&group, 0).unwrap().set_metadata("aq1:1+1");
            let member = member.group_metadata().unwrap();
            producer.send_offsets_to_transaction(&list, &member, SOON).unwrap();
            producer
        };
        let producer = tokio::task::spawn_blocking(open).await.unwrap();
        let mut source = receiver(&client, &from).await;
        assert!(
            source.receive_batch_within(1, Duration::from_secs(5)).await.unwrap().is_empty(),
            "it begins where nobody knows yet whether it may"
        );
        let commit = tokio::task::spawn_blocking(move || producer.commit_transaction(SOON).unwrap());
        commit.await.unwrap();
        // With the note: 3 is done.
        let rest = receive(&mut source, 2).await;
        assert_eq!(texts(&rest), [2, 4]);
        assert!(nothing(&mut source).await);
        client.close(CLOSE).await;
    });
}

fn one_that_expired_is_told() {
    block_on(async {
        let (client, from, to) = (client().await, fresh_name(), fresh_name());
        send(&client, &from, 0..1).await;
        let (mut source, mut target) = (receiver(&client, &from).await, receiver(&client, &to).await);
        let name = fresh_name();
        let transactions = client.transactions(&name).expires_after(Duration::from_secs(2)).await.unwrap();
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "1").await.unwrap();
        tx.ack(receive(&mut source, 1).await.remove(0)).unwrap();
        let sloppy = client_with("partitions=1&kafka.isolation.level=read_uncommitted").await;
        let topic = format!("topic:{to}");
        let mut all = sloppy.receiver(topic.as_str()).group("all").discard_dead_letters().await.unwrap();
        assert_eq!(texts(&receive(&mut all, 1).await), [1]);
        // Behind it, and read when the broker has given it up: it looks every ten seconds.
        client.sender(to.as_str()).await.unwrap().send("2").await.unwrap();
        let behind = timeout(Duration::from_secs(60), target.receive()).await.unwrap().unwrap();
        assert_eq!(texts([&behind]), [2]);
        let error = tx.commit().await.unwrap_err();
        assert_ne!(error.outcome(), Outcome::Unknown, "{error:?}");
        println!("expired: {error:?}");
        let transactions = match transactions.begin().await {
            Ok(tx) => {
                drop(tx);
                transactions
            }
            Err(_) => client.transactions(&name).await.unwrap(),
        };
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "3").await.unwrap();
        tx.ack(receive(&mut source, 1).await.remove(0)).unwrap();
        tx.commit().await.unwrap();
        assert_eq!(texts(&receive(&mut target, 1).await), [3]);
        sloppy.close(CLOSE).await;
        client.close(CLOSE).await;
    });
}

fn a_message_that_is_refused_fails_the_commit() {
    block_on(async {
        let (client, from, to) = (client().await, fresh_name(), fresh_name());
        send(&client, &from, 0..1).await;
        let mut source = receiver(&client, &from).await;
        let transactions = client.transactions(fresh_name()).declare(Declare::Assume).await.unwrap();
        let mut tx = transactions.begin().await.unwrap();
        // Known before it is sent: no part of the transaction.
        let large = tx.send(from.as_str(), vec![0; 2_000_000]).await.unwrap_err();
        assert_eq!((large.kind(), large.outcome()), (ErrorKind::TooLarge, Outcome::NotSent));
        // Known later.
        let missing = format!("{to}-missing");
        tx.send(missing.as_str(), "1").await.unwrap();
        tx.ack(receive(&mut source, 1).await.remove(0)).unwrap();
        let error = tx.commit().await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotSent, "{error:?}");
        println!("refused: {error:?}");
        let mut tx = transactions.begin().await.unwrap();
        tx.ack(receive(&mut source, 1).await.remove(0)).unwrap();
        tx.commit().await.unwrap();
        assert!(nothing(&mut source).await);
        client.close(CLOSE).await;
    });
}

fn two_receivers_and_many_messages_go_together() {
    block_on(async {
        let (client, one, two, to) = (client().await, fresh_name(), fresh_name(), fresh_name());
        send(&client, &one, 0..300).await;
        send(&client, &two, 300..600).await;
        let (mut first, mut second) = (receiver(&client, &one).await, receiver(&client, &two).await);
        let transactions = client.transactions(fresh_name()).await.unwrap();
        let mut tx = transactions.begin().await.unwrap();
        let mut left = 600;
        while left > 0 {
            let batch: Batch = tokio::select! {
                batch = first.receive_batch(100) => batch.unwrap(),
                batch = second.receive_batch(100) => batch.unwrap(),
            };
            left -= batch.len();
            tx.send_batch(to.as_str(), batch.iter().map(|item| item.message().clone())).await.unwrap();
            tx.ack(batch).unwrap();
        }
        tx.commit().await.unwrap();
        let mut target = client.receiver(to.as_str()).prefetch(1_000).discard_dead_letters().await.unwrap();
        let copies = receive(&mut target, 600).await;
        assert_eq!(texts(&copies).into_iter().collect::<BTreeSet<_>>().len(), 600);
        for queue in [&one, &two] {
            let lag = client.stats(&Source::new(queue.parse().unwrap())).await.unwrap().lag;
            assert_eq!(lag, Some(0));
        }
        client.close(CLOSE).await;
    });
}

fn what_cannot_take_part_is_told() {
    block_on(async {
        let (client, topic) = (client().await, fresh_name());
        let address = format!("topic:{topic}");
        let mut anonymous = client.receiver(address.as_str()).discard_dead_letters().await.unwrap();
        client.sender(address.as_str()).await.unwrap().send("1").await.unwrap();
        let transactions = client.transactions(fresh_name()).await.unwrap();
        let mut tx = transactions.begin().await.unwrap();
        let delivery = timeout(SOON, anonymous.receive()).await.unwrap().unwrap();
        assert_eq!(tx.ack(delivery).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(tx.commit().await.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(client.transactions("").await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let endless = client.transactions(fresh_name()).expires_after(Duration::from_secs(86_400)).await;
        assert_eq!(endless.unwrap_err().kind(), ErrorKind::InvalidConfig);
        transactions.close(CLOSE).await;
        assert_eq!(transactions.begin().await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(transactions.begin().now_or_never().is_some());
        client.close(CLOSE).await;
    });
}

//! The positions that a transaction commits, with the notes of what is done beyond them.

use super::*;

pub(crate) fn acks_out_of_order_are_part_of_it() {
    block_on(async {
        let (first, from, to) = (client().await, fresh_name(), fresh_name());
        send(&first, &from, 0..10).await;
        let mut source = receiver(&first, &from).await;
        let transactions = first.transactions(fresh_name()).await.unwrap();
        let (mut tx, mut held) = (transactions.begin().await.unwrap(), Vec::new());
        for (index, delivery) in receive(&mut source, 10).await.into_iter().enumerate() {
            match index {
                2 | 5 | 6 | 9 => tx.ack(delivery).unwrap(),
                _ => held.push(delivery),
            }
        }
        tx.send(to.as_str(), "1").await.unwrap();
        tx.commit().await.unwrap();
        crash(first, held).await;
        let second = client().await;
        let again = receive(&mut receiver(&second, &from).await, 6).await;
        assert_eq!(texts(&again), [0, 1, 3, 4, 7, 8]);
        second.close(CLOSE).await;
    });
}

pub(crate) fn what_has_no_room_in_the_note_is_refused() {
    block_on(async {
        let (client, from, to) = (client().await, fresh_name(), fresh_name());
        send(&client, &from, 0..4_000).await;
        let mut source = client.receiver(from.as_str()).prefetch(4_000).discard_dead_letters().await.unwrap();
        let transactions = client.transactions(fresh_name()).await.unwrap();
        let (mut tx, mut held) = (transactions.begin().await.unwrap(), Vec::new());
        for (index, delivery) in receive(&mut source, 4_000).await.into_iter().enumerate() {
            if index % 2 == 1 { tx.ack(delivery).unwrap() } else { held.push(delivery) }
        }
        tx.send(to.as_str(), "1").await.unwrap();
        let error = tx.commit().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::NotSent), "{error:?}");
        assert!(error.is_retryable());
        // Once the others are answered there is room.
        let again = receive(&mut source, 2_000).await;
        held.into_iter().for_each(|delivery| assert_eq!(delivery.ack(), Answered::Accepted));
        let mut tx = transactions.begin().await.unwrap();
        tx.send(to.as_str(), "2").await.unwrap();
        again.into_iter().for_each(|delivery| tx.ack(delivery).unwrap());
        tx.commit().await.unwrap();
        let mut target = receiver(&client, &to).await;
        assert_eq!(texts(&receive(&mut target, 1).await), [2]);
        client.close(CLOSE).await;
    });
}

pub(crate) fn later_acks_leave_it_in_the_note() {
    block_on(async {
        let (first, from) = (client().await, fresh_name());
        send(&first, &from, 0..4_000).await;
        let mut source = first.receiver(from.as_str()).prefetch(4_000).discard_dead_letters().await.unwrap();
        let transactions = first.transactions(fresh_name()).await.unwrap();
        let mut all = receive(&mut source, 4_000).await;
        let mut tx = transactions.begin().await.unwrap();
        tx.ack(all.pop().unwrap()).unwrap();
        tx.commit().await.unwrap();
        // More than there is room for, all before it.
        let mut held = Vec::new();
        for (index, delivery) in all.into_iter().enumerate() {
            if index % 2 == 1 { assert_eq!(delivery.ack(), Answered::Accepted) } else { held.push(delivery) }
        }
        source.flush().await.unwrap();
        crash(first, held).await;
        let second = client().await;
        let mut source = second.receiver(from.as_str()).prefetch(4_000).discard_dead_letters().await.unwrap();
        let mut again = receive(&mut source, 2_000).await;
        while let Some(next) = source.receive_batch_within(500, QUIET).await.ok().filter(|batch| !batch.is_empty()) {
            again.extend(next);
        }
        assert!(!texts(&again).contains(&3_999), "what a transaction acknowledged came again");
        second.close(CLOSE).await;
    });
}

/// Looks at what the group of a queue has in its partition.
struct Look {
    group: String,
    consumer: BaseConsumer,
}

impl Look {
    fn new(group: &str) -> Self {
        let url = url().unwrap();
        let hosts = url.trim_start_matches("kafka://");
        let consumer = ClientConfig::new().set("bootstrap.servers", hosts).set("group.id", group).create().unwrap();
        Self { group: group.to_owned(), consumer }
    }

    /// Every offset below the position, and those that the note names.
    fn acknowledged(&self) -> BTreeSet<i64> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.group, 0);
        let list = self.consumer.committed_offsets(list, SOON).unwrap();
        let element = list.find_partition(&self.group, 0).unwrap();
        let position = element.offset().to_raw().unwrap().max(0);
        let mut all: BTreeSet<i64> = (0..position).collect();
        let mut at = position;
        let note = element.metadata().strip_prefix("aq1:").unwrap_or_default();
        for run in note.split(';').next().unwrap().split(',').filter(|run| !run.is_empty()) {
            let (skip, count) = run.split_once('+').unwrap();
            at += skip.parse::<i64>().unwrap();
            let end = at + count.parse::<i64>().unwrap();
            all.extend(at..end);
            at = end;
        }
        all
    }
}

pub(crate) fn ordinary_commits_undo_nothing() {
    block_on(async {
        const ROUNDS: usize = 120;
        const EACH: usize = 40;
        // Long enough that what an ordinary commit undid is seen before the next repairs it.
        let client = client_with("partitions=1&commit_interval=20ms").await;
        let (from, to) = (fresh_name(), fresh_name());
        send(&client, &from, 0..4_800).await;
        let mut source = receiver(&client, &from).await;
        let transactions = client.transactions(fresh_name()).await.unwrap();
        let mut expected = BTreeSet::new();
        let look = Arc::new(Look::new(&from));
        for round in 0..ROUNDS {
            let (mut tx, mut rest) = (transactions.begin().await.unwrap(), Vec::new());
            for delivery in receive(&mut source, EACH).await {
                let offset = delivery.position().offset.unwrap();
                if offset % 2 == 0 {
                    expected.insert(i64::try_from(offset).unwrap());
                    tx.ack(delivery).unwrap();
                } else {
                    rest.push(delivery);
                }
            }
            tx.send(to.as_str(), round.to_string()).await.unwrap();
            // Acknowledged all the while, so that there is always something to commit.
            let acks = tokio::spawn(async move {
                for delivery in rest {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    delivery.ack();
                }
            });
            tokio::time::sleep(Duration::from_millis(u64::try_from(round % 20).unwrap())).await;
            tx.commit().await.unwrap();
            let look = look.clone();
            let found = tokio::task::spawn_blocking(move || look.acknowledged()).await.unwrap();
            let lost: Vec<_> = expected.difference(&found).collect();
            assert!(lost.is_empty(), "round {round}: the group lost {lost:?}");
            acks.await.unwrap();
        }
        client.close(CLOSE).await;
    });
}

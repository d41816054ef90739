//! Putting dead letters back where some of a partition stay, on a real broker (`ANYQUEUE_TEST_KAFKA_URL`).

mod common;

use common::{block_on, fresh_name, run, url};
use queue_core::{Client, ErrorKind, Message};
use queue_kafka::DRIVER;

/// More runs than a commit has room to note.
const COUNT: u64 = 2500;

fn main() {
    run(&[(
        "a_pass_that_leaves_more_than_a_commit_can_note_says_so",
        a_pass_that_leaves_more_than_a_commit_can_note_says_so,
    )]);
}

fn a_pass_that_leaves_more_than_a_commit_can_note_says_so() {
    block_on(async {
        let url = format!("{}?partitions=1", url().unwrap());
        let client = Client::connect_with(&url, &[DRIVER]).await.unwrap();
        let queue = fresh_name();
        drop(client.sender(&queue).await.unwrap());
        let letters = (0..COUNT).map(|n| Message::new(n.to_string()));
        client.sender(format!("{queue}-dlq")).await.unwrap().send_batch(letters).await.unwrap();
        let is_even = |message: &Message| message.text().is_some_and(|n| n.ends_with(['0', '2', '4', '6', '8']));
        let redriven = client.redrive(&queue).filter(is_even).await.unwrap();
        assert_eq!((redriven.moved, redriven.kept), (COUNT / 2, COUNT / 2));
        let error = redriven.stopped.expect("some that are back stay as well");
        assert_eq!((error.kind(), error.context("partition")), (ErrorKind::TooLarge, Some("0")));
        // Without a filter nothing is left that would have to be noted.
        let redriven = client.redrive(&queue).await.unwrap();
        assert!(redriven.moved >= COUNT / 2 && redriven.stopped.is_none(), "{redriven:?}");
        assert_eq!(client.redrive(&queue).await.unwrap().moved, 0);
    });
}

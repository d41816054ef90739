//! Receiving, answering, declaring and closing against a real broker, at the level of the contract.

use std::collections::HashSet;
use std::time::Duration;

use queue_core::{
    Answer, ConsumerOptions, Entry, ErrorKind, Events, Message, Outcome as Fate, ProducerOptions, Source, Topology,
};
use tokio::time::Instant;

mod support;
use support::*;

const SOON: Duration = Duration::from_secs(10);

fn main() {
    support::main(cases![
        a_batch_of_any_size_arrives_and_acked_messages_never_come_back,
        a_retry_comes_not_before_its_delay_and_counts,
        released_messages_come_again_at_once,
        extension_keeps_a_message_away,
        late_answers_are_stale_and_touch_nothing,
        buffered_messages_are_kept_beyond_their_lease,
        never_more_than_prefetch_is_out,
        declaring_twice_changes_nothing_and_a_difference_is_a_conflict,
        a_missing_queue_is_named,
        an_unreachable_endpoint_is_named_in_time,
        closing_during_a_long_poll_keeps_its_deadline,
        after_close_everything_is_closed,
        a_deleted_queue_ends_the_receiver,
        stopping_gives_back_what_is_buffered,
    ]);
}

async fn a_batch_of_any_size_arrives_and_acked_messages_never_come_back() -> Outcome {
    let pair = Pair::new("batch", QUICK, ConsumerOptions::default()).await?;
    for count in [1, 10, 11, 251] {
        deliver(&*pair.producer, (0..count).map(|i| Message::new(i.to_string())).collect()).await?;
        let got = collect(&*pair.consumer, count, SOON).await?;
        let bodies: HashSet<_> = got.iter().map(text).collect();
        assert_eq!(bodies.len(), count);
        let tokens: Vec<_> = got.iter().map(|r| r.token).collect();
        assert!(pair.consumer.ack(&tokens).stale.is_empty());
        assert_eq!(pair.consumer.ack(&tokens).stale.len(), count, "answered twice");
        pair.consumer.flush().await?;
    }
    // Neither waiting nor leased: gone.
    let stats = pair.broker.stats(&Source::new(pair.address.clone())).await?;
    assert_eq!((stats.ready, stats.in_flight), (Some(0), Some(0)));
    pair.end().await
}

async fn a_retry_comes_not_before_its_delay_and_counts() -> Outcome {
    let pair = Pair::new("retry", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, vec![Message::new("again")]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert_eq!(got.attempt, 1);
    let began = Instant::now();
    let settled = pair.consumer.settle(vec![Answer::Retry(got.token, Duration::from_millis(1500))]);
    assert!(settled.stale.is_empty() && !pair.consumer.holds(got.token));
    assert!(settled.pending.ok_or("nothing to wait for")?.await.is_empty());
    deliver(&*pair.producer, vec![Message::new("meanwhile")]).await?;
    let other = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert_eq!(text(&other), "meanwhile");
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let after = began.elapsed();
    assert!(after >= Duration::from_millis(1500) && after < Duration::from_secs(6), "{after:?}");
    assert_eq!((text(&got).as_str(), got.attempt), ("again", 2));

    let too_long = Answer::Retry(got.token, Duration::from_secs(13 * 3600));
    let refused = pair.consumer.settle(vec![too_long]).pending.ok_or("nothing to wait for")?.await;
    assert_eq!(refused.first().map(|(i, e)| (*i, e.kind())), Some((0, ErrorKind::InvalidInput)));
    assert!(pair.consumer.holds(got.token));
    pair.end().await
}

async fn released_messages_come_again_at_once() -> Outcome {
    let pair = Pair::new("release", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, (0..30).map(|i| Message::new(i.to_string())).collect()).await?;
    let got = collect(&*pair.consumer, 30, SOON).await?;
    let settled = pair.consumer.settle(got.iter().map(|r| Answer::Release(r.token)).collect());
    assert!(settled.stale.is_empty());
    pair.consumer.flush().await?;
    let again = collect(&*pair.consumer, 30, SOON).await?;
    assert!(again.iter().all(|r| r.attempt == 2));
    pair.end().await
}

async fn extension_keeps_a_message_away() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.lease = Duration::from_secs(4);
    let pair = Pair::new("extend", QUICK, options).await?;
    deliver(&*pair.producer, vec![Message::new("mine")]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let settled = pair.consumer.settle(vec![Answer::Extend(got.token, Duration::from_secs(12))]);
    assert!(settled.pending.ok_or("nothing to wait for")?.await.is_empty());
    // Longer than its first lease.
    silence(&*pair.consumer, Duration::from_secs(6)).await?;
    assert!(pair.consumer.holds(got.token));
    assert!(pair.consumer.ack(&[got.token]).stale.is_empty());
    pair.consumer.flush().await?;
    // Longer than what is left of the second.
    silence(&*pair.consumer, Duration::from_secs(8)).await?;
    pair.end().await
}

async fn late_answers_are_stale_and_touch_nothing() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.lease = Duration::from_secs(1);
    let pair = Pair::new("late", QUICK, options).await?;
    deliver(&*pair.producer, vec![Message::new("slow")]).await?;
    let first = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let lease = first.lease.ok_or("no lease")?;
    assert!(lease <= Instant::now() + Duration::from_secs(1));
    tokio::time::sleep_until(lease).await;
    assert!(!pair.consumer.holds(first.token));
    assert_eq!(pair.consumer.ack(&[first.token]).stale, [0]);
    assert_eq!(pair.consumer.settle(vec![Answer::Release(first.token)]).stale, [0]);
    let second = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert_eq!(second.attempt, 2);
    assert_eq!(pair.consumer.ack(&[first.token, second.token]).stale, [0]);
    pair.consumer.flush().await?;
    pair.end().await
}

async fn buffered_messages_are_kept_beyond_their_lease() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.lease = Duration::from_secs(2);
    let pair = Pair::new("buffer", QUICK, options).await?;
    deliver(&*pair.producer, (0..20).map(|i| Message::new(i.to_string())).collect()).await?;
    let first = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    pair.consumer.ack(&[first.token]);
    // More than two leases later nothing of the rest has come back to the queue.
    silence_of_the_queue(&pair, Duration::from_secs(5)).await?;
    let got = collect(&*pair.consumer, 19, SOON).await?;
    assert!(got.iter().all(|r| r.attempt == 1), "{:?}", got.iter().map(|r| r.attempt).collect::<Vec<_>>());
    pair.end().await
}

async fn never_more_than_prefetch_is_out() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.prefetch = 7;
    let pair = Pair::new("prefetch", QUICK, options).await?;
    deliver(&*pair.producer, (0..40).map(|i| Message::new(i.to_string())).collect()).await?;
    let source = Source::new(pair.address.clone());
    let mut held = collect(&*pair.consumer, 7, SOON).await?;
    silence(&*pair.consumer, Duration::from_millis(1500)).await?;
    assert_eq!(pair.broker.stats(&source).await?.in_flight, Some(7));
    let mut seen = 7;
    while seen < 40 {
        let half = held.split_off(held.len() / 2);
        let tokens: Vec<_> = half.iter().map(|r| r.token).collect();
        assert!(pair.consumer.ack(&tokens).stale.is_empty());
        let more = receive(&*pair.consumer, 40, SOON).await?;
        seen += more.len();
        held.extend(more);
        assert!(held.len() <= 7);
    }
    pair.end().await
}

async fn declaring_twice_changes_nothing_and_a_difference_is_a_conflict() -> Outcome {
    let broker = connect(QUICK).await?;
    let mut entry = Entry::new(fresh("declare"));
    let missing = broker.verify(&Topology::from_iter([entry.clone()])).await;
    assert_eq!(missing.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    entry.dead_letter = Some(entry.address.dead_letter());
    entry.max_deliveries = Some(3);
    entry.native.insert("VisibilityTimeout".to_owned(), "17".to_owned());
    let topology = Topology::from_iter([entry.clone()]);
    broker.declare(&topology).await?;
    broker.declare(&topology).await?;
    broker.verify(&topology).await?;

    let client = broker.native().downcast_ref::<aws_sdk_sqs::Client>().ok_or("no client")?;
    let url = client.get_queue_url().queue_name(entry.address.name()).send().await?.queue_url.ok_or("no URL")?;
    let policy = aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy;
    let found = client.get_queue_attributes().queue_url(url).attribute_names(policy.clone()).send().await?;
    let policy = found.attributes.unwrap_or_default().remove(&policy).ok_or("no redrive policy")?;
    assert!(policy.replace('"', "").contains("maxReceiveCount:13") && policy.contains("-dlq"), "{policy}");

    entry.native.insert("VisibilityTimeout".to_owned(), "18".to_owned());
    let differs = Topology::from_iter([entry.clone()]);
    for outcome in [broker.declare(&differs).await, broker.verify(&differs).await] {
        let error = outcome.err().ok_or("it was taken")?;
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!((error.context("found"), error.context("asked")), (Some("17"), Some("18")));
    }
    for address in [entry.address.dead_letter(), entry.address.clone()] {
        broker.delete(&address).await?;
        broker.delete(&address).await?;
    }
    Ok(())
}

async fn a_missing_queue_is_named() -> Outcome {
    let broker = connect(QUICK).await?;
    let address = fresh("missing");
    let producer = broker.producer(&address, &ProducerOptions::default()).await.err().ok_or("it opened")?;
    let consumer = broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await.err();
    for error in [producer, consumer.ok_or("it opened")?] {
        assert_eq!((error.kind(), error.context("address")), (ErrorKind::NotFound, Some(address.name())));
    }
    let topic = broker.producer(&"topic:orders".parse()?, &ProducerOptions::default()).await.err();
    assert_eq!(topic.map(|e| e.kind()), Some(ErrorKind::Unsupported));
    Ok(())
}

async fn an_unreachable_endpoint_is_named_in_time() -> Outcome {
    let began = Instant::now();
    let url = "sqs://127.0.0.1:1?region=us-east-1&access_key=test&secret_key=hunter2";
    let error = connect_to(url, Events::new()).await.err().ok_or("it connected")?;
    assert_eq!((error.kind(), error.context("host")), (ErrorKind::Connection, Some("127.0.0.1:1")));
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    Ok(())
}

async fn closing_during_a_long_poll_keeps_its_deadline() -> Outcome {
    let pair = Pair::new("close", "&wait_time=20s", ConsumerOptions::default()).await?;
    silence(&*pair.consumer, Duration::from_millis(300)).await?;
    let began = Instant::now();
    let report = pair.consumer.close(began + Duration::from_secs(2)).await;
    assert!(report.is_clean() && began.elapsed() < Duration::from_secs(3), "{report:?}");
    // What the poll under way brings is given back.
    deliver(&*pair.producer, vec![Message::new("for the next")]).await?;
    let next = pair.broker.consumer(&Source::new(pair.address.clone()), &ConsumerOptions::default()).await?;
    assert_eq!(text(&collect(&*next, 1, SOON).await?[0]), "for the next");
    let began = Instant::now();
    next.close(began + Duration::from_secs(1)).await;
    pair.broker.close(began + Duration::from_secs(2)).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    Ok(())
}

async fn after_close_everything_is_closed() -> Outcome {
    let pair = Pair::new("closed", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, vec![Message::new("x")]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let deadline = Instant::now() + Duration::from_secs(5);
    assert_eq!(pair.consumer.close(deadline).await.unanswered, 1);
    assert!(pair.consumer.close(deadline).await.is_clean());
    assert_eq!(pair.consumer.ack(&[got.token]).stale, [0]);
    assert!(receive(&*pair.consumer, 1, SOON).await.is_err_and(|e| e.to_string().contains("closed")));
    assert!(pair.producer.close(deadline).await.is_clean());
    let late = send(&*pair.producer, vec![Message::new("y")]).await.remove(0);
    assert_eq!(late.map_err(|e| (e.kind(), e.outcome())), Err((ErrorKind::Closed, Fate::NotSent)));
    pair.broker.delete(&pair.address).await?;
    pair.broker.close(deadline).await;
    let reopened = pair.broker.producer(&pair.address, &ProducerOptions::default()).await;
    assert_eq!(reopened.err().map(|e| e.kind()), Some(ErrorKind::Closed));
    Ok(())
}

async fn a_deleted_queue_ends_the_receiver() -> Outcome {
    let pair = Pair::new("deleted", QUICK, ConsumerOptions::default()).await?;
    pair.broker.delete(&pair.address).await?;
    let error = receive(&*pair.consumer, 1, SOON).await.err().ok_or("something arrived")?;
    let kind = error.downcast_ref::<queue_core::Error>().map(queue_core::Error::kind);
    assert_eq!(kind, Some(ErrorKind::NotFound), "{error}");
    let late = send(&*pair.producer, vec![Message::new("x")]).await.remove(0);
    assert_eq!(late.map_err(|e| (e.kind(), e.outcome())), Err((ErrorKind::NotFound, Fate::NotSent)));
    Ok(())
}

async fn stopping_gives_back_what_is_buffered() -> Outcome {
    let pair = Pair::new("stop", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, (0..20).map(|i| Message::new(i.to_string())).collect()).await?;
    let got = collect(&*pair.consumer, 5, SOON).await?;
    pair.consumer.stop().await;
    assert!(receive(&*pair.consumer, 1, SOON).await.is_err_and(|e| e.to_string().contains("closed")));
    let tokens: Vec<_> = got.iter().map(|r| r.token).collect();
    assert!(pair.consumer.ack(&tokens).stale.is_empty());
    pair.consumer.flush().await?;
    let next = pair.broker.consumer(&Source::new(pair.address.clone()), &ConsumerOptions::default()).await?;
    collect(&*next, 15, SOON).await?;
    next.close(Instant::now() + SOON).await;
    pair.end().await
}

/// Looks at the queue for a while: nothing of it is ready.
async fn silence_of_the_queue(pair: &Pair, time: Duration) -> Outcome {
    let source = Source::new(pair.address.clone());
    let until = Instant::now() + time;
    let mut all_out = false;
    while Instant::now() < until {
        let ready = pair.broker.stats(&source).await?.ready;
        all_out |= ready == Some(0);
        assert!(!all_out || ready == Some(0), "{ready:?} came back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(all_out);
    Ok(())
}

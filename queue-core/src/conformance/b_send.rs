//! B. `Ok` means that the broker has it, and a failure says what it means.

use std::time::Duration;

use futures::SinkExt;
use tokio::time::Instant;

use super::case::{
    CLOSE, CaseResult, Ctx, QUIET, bodies, broken, cases, drain, ensure, expect_error, expect_same, message, next,
    only_a_marker_arrives, open, quiet, within, within_time,
};
use super::flaky::{Fate, MARK, flaky};
use crate::error::{ErrorKind, Outcome};
use crate::message::Message;
use crate::sender::OnUnknown;
use crate::topology::Declare;
use crate::verdict::BatchError;

cases! { "b_send":
    what_was_confirmed_is_there_for_another_client;
    a_missing_queue_is_an_error_and_no_hang;
    a_message_to_a_missing_queue_is_an_error_and_no_hang;
    a_batch_over_every_limit_is_cut_and_arrives_whole;
    a_bad_message_in_a_batch_fails_alone_and_is_named;
    only_failed_messages_are_sent_again_with_all_they_had;
    an_unknown_outcome_is_retried_and_the_receipt_says_so;
    an_unknown_outcome_is_an_error_when_asked_for;
    an_outage_is_an_error_at_the_deadline;
    a_silent_broker_is_an_error_at_the_deadline;
    a_lost_verdict_is_an_error_and_no_hang;
    a_dropped_send_neither_leaks_nor_doubles;
    a_dropped_verdict_does_not_stop_the_message;
    fifty_concurrent_senders_lose_and_double_nothing;
    a_sink_sends_everything;
    flush_waits_for_what_was_submitted;
    close_flushes_what_was_submitted;
    a_closed_sender_answers_closed;
}

/// How long the deadline of a send is where it is meant to pass.
const DEADLINE: Duration = Duration::from_secs(2);

async fn what_was_confirmed_is_there_for_another_client(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..20 {
        within("a send", sender.send(message(i))).await??;
    }
    drop(sender);
    let another = ctx.another().await?;
    let mut receiver = open(ctx.receiver_of(&another, &queue)).await?;
    expect_same(&drain(&mut receiver, 20).await?, &bodies(20), "what another client got")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_missing_queue_is_an_error_and_no_hang(ctx: Ctx) -> CaseResult {
    let (missing, declared) = (ctx.queue()?, ctx.queue()?);
    let gone = &[ErrorKind::NotFound, ErrorKind::Unroutable];
    let verified = within("verify", async { ctx.client.sender(&missing).declare(Declare::Verify).await }).await?;
    expect_error(verified.map(drop), &[ErrorKind::NotFound], "verifying a missing queue")?;
    let verified = within("verify", async { ctx.client.receiver(&missing).declare(Declare::Verify).await }).await?;
    expect_error(verified.map(drop), &[ErrorKind::NotFound], "verifying a missing queue")?;

    let opened = within("an open", async { ctx.client.sender(&missing).declare(Declare::Assume).await }).await?;
    let sent = match opened {
        Ok(sender) => within_time(Duration::from_secs(40), "the error", sender.send(message(1))).await?.map(drop),
        Err(error) => Err(error),
    };
    expect_error(sent, gone, "a send to a missing queue")?;
    let opened = within("an open", async { ctx.client.receiver(&missing).declare(Declare::Assume).await }).await?;
    let received = match opened {
        Ok(mut receiver) => within("the error", receiver.receive()).await?.map(drop),
        Err(error) => Err(error),
    };
    expect_error(received, gone, "a receive from a missing queue")?;

    // Verify and assume go on to work where the queue exists.
    within("a send", ctx.sender(&declared).await?.send(message(0))).await??;
    for declare in [Declare::Verify, Declare::Assume] {
        let sender = within("an open", async { ctx.client.sender(&declared).declare(declare).await }).await??;
        within("a send", sender.send(message(1))).await??;
    }
    let mut receiver = ctx.open(&declared).await?;
    drain(&mut receiver, 3).await.map(drop)
}

async fn a_message_to_a_missing_queue_is_an_error_and_no_hang(ctx: Ctx) -> CaseResult {
    let (queue, other, missing) = (ctx.queue()?, ctx.queue()?, ctx.queue()?);
    let sender = ctx.sender(&queue).await?;
    let limit = Duration::from_secs(40);
    let sent = within_time(limit, "the error", sender.send(message(1).to(missing))).await?;
    expect_error(sent, &[ErrorKind::NotFound, ErrorKind::Unroutable], "a message to a missing queue")?;
    // The override works, and the sender is none the worse.
    let (mut here, mut there) = (ctx.open(&queue).await?, ctx.open(&other).await?);
    within("a send", sender.send(message(2).to(other))).await??;
    within("a send", sender.send(message(3))).await??;
    expect_same(&drain(&mut there, 1).await?, &["m2".to_owned()], "the other queue")?;
    expect_same(&drain(&mut here, 1).await?, &["m3".to_owned()], "the sender's queue")
}

async fn a_batch_over_every_limit_is_cut_and_arrives_whole(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 137;
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let batch = (0..COUNT).map(|i| message(i).header("pad", "x".repeat(20_000)));
    let receipts = match within("a batch", sender.send_batch(batch)).await? {
        Ok(receipts) => receipts,
        Err(error) => return Err(broken(format!("the batch failed: {error:?}"))),
    };
    ensure!(receipts.len() == COUNT, "{} receipts for {COUNT} messages", receipts.len());
    ensure!(receipts.iter().all(|r| r.is_some()), "a message has no receipt");
    let none: [Message; 0] = [];
    ensure!(within("an empty batch", sender.send_batch(none)).await?.is_ok(), "an empty batch failed");
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, COUNT).await?, &bodies(COUNT), "the batch")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_bad_message_in_a_batch_fails_alone_and_is_named(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let batch = vec![message(0), message(9).header("anyqueue-mine", "1"), message(1), message(2)];
    let error: BatchError = match within("a batch", sender.send_batch(batch)).await? {
        Ok(_) => return Err(broken("a batch with a bad message succeeded".into())),
        Err(error) => error,
    };
    let failures = error.failures();
    ensure!(
        failures.len() == 1 && failures[0].0 == 1 && failures[0].1.kind() == ErrorKind::InvalidInput,
        "the failures are {failures:?}, not InvalidInput at index 1"
    );
    let accepted: Vec<_> = (0..4).filter(|i| error.receipts().get(*i).is_some()).collect();
    ensure!(accepted == [0, 2, 3], "receipts are there for {accepted:?}");
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 3).await?, &bodies(3), "the rest of the batch")?;
    quiet(&mut receiver, QUIET).await
}

async fn only_failed_messages_are_sent_again_with_all_they_had(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let client = flaky(&ctx.client, Fate::NotSentOnce);
    let sender = within("a sender", async { client.sender(&queue).await }).await??;
    let batch = (0..20).map(|i| {
        let message = message(i).id(format!("id-{i}")).correlation_id("c").header("tenant", "acme");
        if i % 3 == 0 { message.header(MARK, format!("{i}")) } else { message }
    });
    if let Err(error) = within("the batch with its retries", sender.send_batch(batch)).await? {
        return Err(broken(format!("the retry of what was not sent failed: {error:?}")));
    }
    let mut receiver = ctx.open(&queue).await?;
    let mut got = Vec::new();
    while got.len() < 20 {
        let delivery = next(&mut receiver).await?;
        let number = delivery.text().unwrap_or_default().trim_start_matches('m').to_owned();
        let complete = delivery.get_id() == Some(&format!("id-{number}"))
            && delivery.get_key().is_some_and(|k| k == format!("k{number}").as_bytes())
            && delivery.get_correlation_id() == Some("c")
            && delivery.headers().get("tenant").and_then(|v| v.as_str()) == Some("acme");
        ensure!(complete, "message {number} lost something: {:?}", delivery.message());
        got.push(format!("m{number}"));
        delivery.ack();
    }
    expect_same(&got, &bodies(20), "what was sent, some of it twice")?;
    quiet(&mut receiver, QUIET).await
}

async fn an_unknown_outcome_is_retried_and_the_receipt_says_so(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let client = flaky(&ctx.client, Fate::UnknownOnce);
    let sender = within("a sender", async { client.sender(&queue).await }).await??;
    let receipt = within("the second try", sender.send(message(1).id("same").header(MARK, "1"))).await??;
    ensure!(receipt.retried, "the receipt does not say that a copy may exist: {receipt:?}");
    let plain = within("a send", sender.send(message(2))).await??;
    ensure!(!plain.retried, "the receipt of a first try says retried");
    // A broker that recognises the id may keep one of the two.
    let mut receiver = ctx.open(&queue).await?;
    let (mut first, mut second) = (0, 0);
    while first == 0 || second == 0 {
        let delivery = next(&mut receiver).await?;
        match delivery.text() {
            Some("m1") => first += 1,
            Some("m2") => second += 1,
            other => return Err(broken(format!("{other:?} arrived"))),
        }
        ensure!(first < 3 && second < 2, "m1 came {first} times, m2 {second} times");
        delivery.ack();
    }
    Ok(())
}

async fn an_unknown_outcome_is_an_error_when_asked_for(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let client = flaky(&ctx.client, Fate::UnknownOnce);
    let sender = within("a sender", async { client.sender(&queue).on_unknown(OnUnknown::Fail).await }).await??;
    let sent = within("the error", sender.send(message(1).header(MARK, "1"))).await?;
    let error = expect_error(sent, &[ErrorKind::Connection, ErrorKind::Timeout], "a send of unknown outcome")?;
    ensure!(error.outcome() == Outcome::Unknown, "the outcome is {:?}", error.outcome());
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m1".to_owned()], "what was sent once")?;
    quiet(&mut receiver, QUIET).await
}

/// Sends a message that meets this fate: an error must come at the deadline, not much later.
async fn fails_in_time(ctx: &Ctx, fate: Fate, outcome: Outcome) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let client = flaky(&ctx.client, fate);
    let sender = within("a sender", async { client.sender(&queue).deadline(DEADLINE).await }).await??;
    let started = Instant::now();
    let sent = within("the error", sender.send(message(1).header(MARK, "1"))).await?;
    let took = started.elapsed();
    let kinds = &[ErrorKind::Connection, ErrorKind::Timeout, ErrorKind::Internal];
    let error = expect_error(sent, kinds, "a send during an outage")?;
    ensure!(error.outcome() == outcome, "{fate:?}: the outcome is {:?}, not {outcome:?}", error.outcome());
    ensure!(took < DEADLINE * 4, "{fate:?}: the error of a deadline of {DEADLINE:?} took {took:?}");
    only_a_marker_arrives(&ctx.sender(&queue).await?, &mut receiver).await
}

async fn an_outage_is_an_error_at_the_deadline(ctx: Ctx) -> CaseResult {
    fails_in_time(&ctx, Fate::NeverSent, Outcome::NotSent).await
}

async fn a_silent_broker_is_an_error_at_the_deadline(ctx: Ctx) -> CaseResult {
    fails_in_time(&ctx, Fate::NeverAnswered, Outcome::Unknown).await
}

async fn a_lost_verdict_is_an_error_and_no_hang(ctx: Ctx) -> CaseResult {
    fails_in_time(&ctx, Fate::VerdictLost, Outcome::Unknown).await
}

async fn a_dropped_send_neither_leaks_nor_doubles(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 60;
    let queue = ctx.queue()?;
    // A small window: a leak of it would stop the sender.
    let sender = within("a sender", async { ctx.client.sender(&queue).window(8).await }).await??;
    for i in 0..COUNT {
        let send = sender.send(message(i));
        if i % 2 == 0 {
            within("a send", send).await??;
        } else {
            // Polled once, then dropped.
            let _ = futures::future::select(Box::pin(send), std::future::ready(())).await;
        }
    }
    within("the flush", sender.flush()).await??;
    let mut receiver = ctx.open(&queue).await?;
    let mut got: Vec<String> = Vec::new();
    let confirmed: Vec<_> = (0..COUNT).step_by(2).map(|i| format!("m{i}")).collect();
    while !confirmed.iter().all(|c| got.contains(c)) {
        got.extend(drain(&mut receiver, 1).await?);
    }
    while let Ok(delivery) = tokio::time::timeout(QUIET, receiver.receive()).await {
        let delivery = delivery?;
        got.push(delivery.text().unwrap_or_default().to_owned());
        delivery.ack();
    }
    let mut once = got.clone();
    once.sort();
    once.dedup();
    expect_same(&got, &once, "messages whose sends were dropped")
}

async fn a_dropped_verdict_does_not_stop_the_message(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = within("a sender", async { ctx.client.sender(&queue).window(8).await }).await??;
    for i in 0..40 {
        drop(within("room in the window", sender.submit(message(i))).await??);
    }
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 40).await?, &bodies(40), "what was submitted")?;
    quiet(&mut receiver, QUIET).await
}

async fn fifty_concurrent_senders_lose_and_double_nothing(ctx: Ctx) -> CaseResult {
    const TASKS: usize = 50;
    const EACH: usize = 100;
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let sender = sender.clone();
            tokio::spawn(async move {
                for i in 0..EACH {
                    let message = message(task * EACH + i);
                    // Most have a key: what has none is one group to a FIFO queue, and takes its turns one by one.
                    let keyless = task % 10 == 0;
                    sender.send(if keyless { message } else { message.key(format!("sender {task}")) }).await?;
                }
                Ok::<_, crate::Error>(())
            })
        })
        .collect();
    for sent in within_time(Duration::from_secs(120), "5000 sends", futures::future::join_all(tasks)).await? {
        sent.map_err(|e| broken(format!("a sender panicked: {e}")))??;
    }
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, TASKS * EACH).await?, &bodies(TASKS * EACH), "5000 messages")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_sink_sends_everything(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut sink = ctx.sender(&queue).await?.sink();
    for i in 0..50 {
        within("room in the sink", sink.feed(message(i))).await??;
    }
    within("the sink to flush", sink.flush()).await??;
    within("the sink to close", sink.close()).await??;
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 50).await?, &bodies(50), "what went into the sink")
}

async fn flush_waits_for_what_was_submitted(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut verdicts = Vec::new();
    for i in 0..50 {
        verdicts.push(within("room in the window", sender.submit(message(i))).await??);
    }
    within("the flush", sender.flush()).await??;
    for (i, verdict) in verdicts.into_iter().enumerate() {
        let verdict = tokio::time::timeout(Duration::from_millis(1), verdict).await;
        ensure!(matches!(verdict, Ok(Ok(_))), "after the flush the verdict of message {i} is {verdict:?}");
    }
    Ok(())
}

async fn close_flushes_what_was_submitted(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut verdicts = Vec::new();
    for i in 0..50 {
        verdicts.push(within("room in the window", sender.submit(message(i))).await??);
    }
    let report = within("the close", sender.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    for verdict in within("the verdicts", futures::future::join_all(verdicts)).await? {
        verdict?;
    }
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 50).await?, &bodies(50), "what was submitted before the close")
}

async fn a_closed_sender_answers_closed(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let clone = sender.clone();
    within("the close", sender.close(CLOSE)).await?;
    for sender in [&sender, &clone] {
        let sent = within("a send", sender.send(message(1))).await?;
        let error = expect_error(sent, &[ErrorKind::Closed], "a send after close")?;
        ensure!(error.outcome() == Outcome::NotSent, "the outcome is {:?}", error.outcome());
        let submitted = within("a submit", sender.submit(message(2))).await?;
        let verdict = match submitted {
            Ok(verdict) => within("the verdict", verdict).await?.map(drop),
            Err(error) => Err(error),
        };
        expect_error(verdict, &[ErrorKind::Closed], "a submit after close")?;
        let batch = within("a batch", sender.send_batch([message(3)])).await?;
        expect_error(batch.map(drop).map_err(Into::into), &[ErrorKind::Closed], "a batch after close")?;
    }
    only_a_marker_arrives(&ctx.sender(&queue).await?, &mut receiver).await
}

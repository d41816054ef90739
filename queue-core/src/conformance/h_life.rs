//! H. Handles open, close and go away without losing, leaking or hanging.

use std::time::Duration;

use tokio::time::Instant;

use super::case::{
    CLOSE, CaseResult, Ctx, LEASE, QUIET, WAIT, bodies, broken, cases, drain, ensure, expect_error, expect_same,
    message, next, next_of, open, quiet, within, within_time,
};
use crate::address::Address;
use crate::delivery::Answered;
use crate::error::ErrorKind;
use crate::sender::Sender;

cases! { "h_life":
    closing_twice_is_fine;
    a_close_wakes_whoever_waits_for_a_message;
    a_close_with_nobody_reading_loses_nothing;
    a_close_lets_a_running_handler_finish;
    a_close_ends_at_its_deadline_and_says_what_is_left;
    a_receiver_closed_leaves_the_others_alone;
    a_dropped_receiver_gives_back_what_it_had_fetched;
    a_delivery_may_be_dropped_outside_the_runtime;
    a_closed_client_closes_what_was_opened_from_it_and_no_more;
    a_client_closed_sends_what_was_submitted;
    #[alone] opening_and_closing_leaks_nothing;
}

async fn filled(ctx: &Ctx, count: usize) -> CaseResult<(Address, Sender)> {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    match within("the batch", sender.send_batch((0..count).map(message))).await? {
        Ok(_) => Ok((queue, sender)),
        Err(error) => Err(broken(format!("the batch failed: {error:?}"))),
    }
}

async fn closing_twice_is_fine(ctx: Ctx) -> CaseResult {
    let (queue, sender) = filled(&ctx, 1).await?;
    let mut receiver = ctx.open(&queue).await?;
    drain(&mut receiver, 1).await?;
    let control = receiver.control();
    for time in ["first", "second"] {
        let report = within(format!("the {time} close"), sender.close(CLOSE)).await?;
        ensure!(report.is_clean(), "the {time} close of a sender: {report:?}");
        let report = within(format!("the {time} close"), receiver.close(CLOSE)).await?;
        ensure!(report.is_clean(), "the {time} close of a receiver: {report:?}");
    }
    let report = within("a close by the control", control.close(CLOSE)).await?;
    ensure!(report.is_clean() && report.released == 0, "a third close: {report:?}");
    within("a stop after the close", receiver.stop()).await?;
    let client = ctx.another().await?;
    for time in ["first", "second"] {
        let report = within(format!("the {time} close"), client.close(CLOSE)).await?;
        ensure!(report.is_clean(), "the {time} close of a client: {report:?}");
    }
    Ok(())
}

async fn a_close_wakes_whoever_waits_for_a_message(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let control = receiver.control();
    let waiting = tokio::spawn(async move { receiver.next().await.is_none() });
    tokio::task::yield_now().await;
    within("the close", control.close(CLOSE)).await?;
    let ended = within("the end of the wait", waiting).await?.map_err(|e| broken(format!("the reader: {e}")))?;
    ensure!(ended, "something was received from an empty queue");

    let mut receiver = ctx.open(&queue).await?;
    let control = receiver.control();
    let waiting = tokio::spawn(async move { receiver.receive_batch(10).await.map(|batch| batch.len()) });
    tokio::task::yield_now().await;
    within("the stop", control.stop()).await?;
    let ended = within("the end of the wait", waiting).await?.map_err(|e| broken(format!("the reader: {e}")))?;
    expect_error(ended, &[ErrorKind::Closed], "a batch after a stop").map(drop)
}

async fn a_close_with_nobody_reading_loses_nothing(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = filled(&ctx, 100).await?;
    let mut receiver = open(ctx.receiver(&queue).prefetch(50)).await?;
    // One is read, so that others are fetched; they wait in a buffer when the close comes.
    let mut got = drain(&mut receiver, 1).await?;
    let report = within("the close", receiver.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    let mut receiver = ctx.open(&queue).await?;
    got.extend(drain(&mut receiver, 99).await?);
    expect_same(&got, &bodies(100), "before and after the close")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_close_lets_a_running_handler_finish(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = filled(&ctx, 10).await?;
    let mut receiver = ctx.open(&queue).await?;
    let held = next(&mut receiver).await?;
    let done = held.text().unwrap_or_default().to_owned();
    let handler = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.ack()
    });
    let started = Instant::now();
    let report = within("the close", receiver.close(CLOSE)).await?;
    ensure!(report.is_clean(), "a close that waited for the handler: {report:?}");
    ensure!(started.elapsed() < CLOSE, "the close took {:?}", started.elapsed());
    let answered = within("the handler", handler).await?.map_err(|e| broken(format!("the handler: {e}")))?;
    ensure!(answered == Answered::Accepted, "the ack of a running handler came to {answered:?}");
    let mut receiver = ctx.open(&queue).await?;
    let mut got = drain(&mut receiver, 9).await?;
    got.push(done);
    expect_same(&got, &bodies(10), "before and after the close")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_close_ends_at_its_deadline_and_says_what_is_left(ctx: Ctx) -> CaseResult {
    const DEADLINE: Duration = Duration::from_secs(1);
    let (queue, _sender) = filled(&ctx, 10).await?;
    let mut receiver = open(ctx.receiver(&queue).lease(LEASE)).await?;
    let held = next(&mut receiver).await?;
    let started = Instant::now();
    let report = within("the close", receiver.close(DEADLINE)).await?;
    let took = started.elapsed();
    ensure!(report.unanswered == 1, "one delivery is out, and the report says {report:?}");
    ensure!(took >= DEADLINE, "the close gave up after {took:?}");
    ensure!(took < DEADLINE + WAIT / 2, "a close within {DEADLINE:?} took {took:?}");
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 10).await?, &bodies(10), "after the close")?;
    drop(held);
    quiet(&mut receiver, QUIET).await
}

async fn a_receiver_closed_leaves_the_others_alone(ctx: Ctx) -> CaseResult {
    let (queue, other) = (ctx.queue()?, ctx.queue()?);
    let mut first = ctx.open(&queue).await?;
    let mut second = ctx.open(&queue).await?;
    let mut elsewhere = ctx.open(&other).await?;
    let (sender, to_other) = (ctx.sender(&queue).await?, ctx.sender(&other).await?);
    within("the close", first.close(CLOSE)).await?;
    for i in 0..10 {
        within("a send", sender.send(message(i))).await??;
        within("a send", to_other.send(message(i))).await??;
    }
    expect_same(&drain(&mut second, 10).await?, &bodies(10), "the other receiver of the queue")?;
    expect_same(&drain(&mut elsewhere, 10).await?, &bodies(10), "the receiver of another queue")
}

async fn a_dropped_receiver_gives_back_what_it_had_fetched(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = filled(&ctx, 20).await?;
    let mut receiver = ctx.open(&queue).await?;
    let mut got = drain(&mut receiver, 1).await?;
    // The lease is longer than the wait: what comes was given back.
    drop(receiver);
    let mut receiver = ctx.open(&queue).await?;
    got.extend(drain(&mut receiver, 19).await?);
    expect_same(&got, &bodies(20), "before and after the drop")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_delivery_may_be_dropped_outside_the_runtime(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = filled(&ctx, 2).await?;
    let mut receiver = ctx.open(&queue).await?;
    let (one, two) = (next(&mut receiver).await?, next(&mut receiver).await?);
    let thread = std::thread::spawn(move || {
        drop(one);
        two.retry()
    });
    let answered = within("the thread", tokio::task::spawn_blocking(move || thread.join())).await?;
    ensure!(
        matches!(answered, Ok(Ok(Answered::Accepted))),
        "answers from a thread outside the runtime came to {answered:?}"
    );
    let mut got = Vec::new();
    for _ in 0..2 {
        let again = next_of(&mut receiver, "what was answered on a thread").await?;
        ensure!(again.attempt() == 2, "it came with attempt {}", again.attempt());
        got.push(again.text().unwrap_or_default().to_owned());
        again.ack();
    }
    expect_same(&got, &bodies(2), "what came again")
}

async fn a_closed_client_closes_what_was_opened_from_it_and_no_more(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let client = ctx.another().await?;
    let sender = within("a sender", async { client.sender(&queue).await }).await??;
    let mut receiver = open(ctx.receiver_of(&client, &queue)).await?;
    within("a send", sender.send(message(0))).await??;
    drain(&mut receiver, 1).await?;
    let report = within("the close", client.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    let closed = &[ErrorKind::Closed];
    expect_error(within("a send", sender.send(message(1))).await?, closed, "a send")?;
    let end = within("the end", receiver.next()).await?;
    ensure!(end.is_none(), "{end:?} was received after the close");
    expect_error(within("an open", async { client.sender(&queue).await }).await?.map(drop), closed, "a sender")?;
    expect_error(within("an open", async { client.receiver(&queue).await }).await?.map(drop), closed, "a receiver")?;
    expect_error(within("a ping", client.ping()).await?, closed, "a ping")?;
    // Another client of the same broker does not notice.
    within("a send", ctx.sender(&queue).await?.send(message(2))).await??;
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m2".to_owned()], "another client")
}

async fn a_client_closed_sends_what_was_submitted(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let client = ctx.another().await?;
    let sender = within("a sender", async { client.sender(&queue).await }).await??;
    let mut verdicts = Vec::new();
    for i in 0..50 {
        verdicts.push(within("room in the window", sender.submit(message(i))).await??);
    }
    let report = within("the close", client.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    for verdict in within("the verdicts", futures::future::join_all(verdicts)).await? {
        verdict?;
    }
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 50).await?, &bodies(50), "what was submitted before the close")
}

/// Open files and sockets, threads, and tasks of this process; none where the system does not tell.
fn in_use() -> [usize; 3] {
    let count = |path| std::fs::read_dir(path).map_or(0, Iterator::count);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    [count("/proc/self/fd"), count("/proc/self/task"), tasks]
}

async fn opening_and_closing_leaks_nothing(ctx: Ctx) -> CaseResult {
    const TIMES: usize = 20;
    // Fewer than one in two rounds: pools and caches of a client may keep some.
    const SLACK: usize = 8;
    let queue = ctx.queue()?;
    let round = async |n: usize| -> CaseResult {
        let client = within("a connection", ctx.harness.connect()).await??;
        let sender = within("a sender", async { client.sender(&queue).await }).await??;
        within("a send", sender.send(message(n))).await??;
        let mut receiver = open(ctx.receiver_of(&client, &queue)).await?;
        drain(&mut receiver, 1).await?;
        // Half are closed, half of the handles are just dropped.
        if n.is_multiple_of(2) {
            within("the close", receiver.close(CLOSE)).await?;
        }
        drop((receiver, sender));
        within("the close", client.close(CLOSE)).await?;
        Ok(())
    };
    for n in 0..3 {
        round(n).await?;
    }
    // What ends in the background may still be on its way out.
    let mut before = in_use();
    let settle = async {
        let mut calm = 0;
        while calm < 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = in_use();
            calm = if now.iter().zip(&before).all(|(n, b)| n >= b) { calm + 1 } else { 0 };
            before = now;
        }
    };
    within("a settled count", settle).await?;
    for n in 0..TIMES {
        round(n).await?;
    }
    let mut after = in_use();
    let settled = within_time(WAIT, "everything to be let go", async {
        while after.iter().zip(&before).any(|(a, b)| *a > b + SLACK) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = in_use();
        }
    });
    let settled = settled.await;
    ensure!(settled.is_ok(), "after {TIMES} rounds [files, threads, tasks] grew from {before:?} to {after:?}");
    Ok(())
}

//! D. Every message is answered on its own, in any order, and an answer does what it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::case::{
    BACKOFF, CLOSE, CaseResult, Ctx, LEASE, QUIET, WAIT, bodies, body, broken, cases, drain, ensure, expect_same, hold,
    message, next, next_of, only_a_marker_arrives, open, quiet, within, within_time,
};
use crate::capability::DeliveryCount;
use crate::delivery::{Answered, Extended};
use crate::event::EventKind;
use crate::receiver::ReceiverBuilder;

cases! { "d_answer":
    an_acknowledged_message_never_comes_back;
    a_batch_is_acknowledged_at_once;
    a_retry_comes_again_counted_and_after_the_backoff;
    a_retry_waits_for_its_delay_while_others_go_on
        ["delayed_retry", |p| p.receiver.delayed_retry, else a_delay_is_answered_by_unsupported];
    a_retry_over_the_longest_delay_is_told_and_not_clamped;
    what_is_dropped_comes_back_counted_and_after_the_backoff;
    what_a_panicking_handler_held_comes_back;
    a_released_message_comes_back_and_is_no_failure;
    failures_are_counted_across_receivers
        ["delivery_count", |p| p.receiver.delivery_count != DeliveryCount::None, else failures_are_not_counted];
    a_ticket_answers_as_its_delivery_would;
    an_answer_after_the_lease_moves_nothing
        ["max_lease", |p| p.receiver.max_lease.is_some(), else what_is_held_stays_while_connected];
    an_answer_after_the_close_moves_nothing;
    exactly_the_unanswered_come_again_after_a_restart;
    acks_out_of_order_survive_a_crash;
    with_one_failure_in_ten_everything_is_done_in_the_end;
}

/// A receiver whose lost leases end soon.
fn short(ctx: &Ctx, queue: &crate::Address) -> ReceiverBuilder {
    ctx.receiver(queue).lease(LEASE)
}

/// How long a message that was not answered may stay away.
const AWAY: Duration = Duration::from_secs(3);

async fn sent(ctx: &Ctx, count: usize) -> CaseResult<(crate::Address, crate::Sender)> {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..count {
        within("a send", sender.send(message(i))).await??;
    }
    Ok((queue, sender))
}

async fn an_acknowledged_message_never_comes_back(ctx: Ctx) -> CaseResult {
    let (queue, sender) = sent(&ctx, 6).await?;
    let mut receiver = open(short(&ctx, &queue)).await?;
    let mut got = Vec::new();
    for (i, delivery) in hold(&mut receiver, 6).await?.into_iter().enumerate() {
        got.push(body(&delivery));
        ensure!(delivery.attempt() == 1, "{} came with attempt {}", body(&delivery), delivery.attempt());
        let answered = match i {
            5 => within("a confirmed ack", delivery.ack_confirmed()).await??,
            _ => delivery.ack(),
        };
        ensure!(answered == Answered::Accepted, "an ack came to {answered:?}");
    }
    expect_same(&got, &bodies(6), "first deliveries")?;
    let report = within("the close", receiver.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    let mut receiver = open(short(&ctx, &queue)).await?;
    only_a_marker_arrives(&sender, &mut receiver).await?;
    quiet(&mut receiver, AWAY).await
}

async fn a_batch_is_acknowledged_at_once(ctx: Ctx) -> CaseResult {
    let (queue, sender) = sent(&ctx, 20).await?;
    let mut receiver = open(short(&ctx, &queue)).await?;
    let mut got = Vec::new();
    while got.len() < 20 {
        let batch = within("a batch", receiver.receive_batch(20)).await??;
        got.extend(batch.iter().map(|m| body(&m)));
        let answered = batch.ack();
        ensure!(answered == Answered::Accepted, "an ack of a batch came to {answered:?}");
    }
    within("the flush", receiver.flush()).await??;
    expect_same(&got, &bodies(20), "the batches")?;
    within("the close", receiver.close(CLOSE)).await?;
    let mut receiver = open(short(&ctx, &queue)).await?;
    only_a_marker_arrives(&sender, &mut receiver).await?;
    quiet(&mut receiver, AWAY).await
}

async fn a_retry_comes_again_counted_and_after_the_backoff(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 1).await?;
    let mut receiver = ctx.open(&queue).await?;
    let mut retried: Option<Instant> = None;
    for attempt in 1..=3 {
        let delivery = next_of(&mut receiver, &format!("attempt {attempt}")).await?;
        // Measured at the arrival: a wait that ends with the backoff would race it.
        let early = retried.is_some_and(|since| since.elapsed() < BACKOFF);
        ensure!(!early, "attempt {attempt} came before the backoff was over");
        ensure!(delivery.attempt() == attempt, "attempt {attempt} came as {}", delivery.attempt());
        ensure!(body(&delivery) == "m0", "{:?} came", body(&delivery));
        ensure!(delivery.get_key().is_some_and(|k| k == "k0"), "the key became {:?}", delivery.get_key());
        ensure!(delivery.headers().is_empty(), "headers appeared: {:?}", delivery.headers());
        if attempt == 3 {
            delivery.ack();
            continue;
        }
        let started = Instant::now();
        let answered = delivery.retry();
        ensure!(answered == Answered::Accepted, "a retry came to {answered:?}");
        retried = Some(started);
    }
    quiet(&mut receiver, QUIET).await
}

async fn a_retry_waits_for_its_delay_while_others_go_on(ctx: Ctx) -> CaseResult {
    let delay = Duration::from_secs(5).min(ctx.probe.receiver.max_retry_delay);
    let (queue, sender) = sent(&ctx, 1).await?;
    let mut receiver = ctx.open(&queue).await?;
    let first = next(&mut receiver).await?;
    let started = Instant::now();
    let answered = first.retry_after(delay);
    ensure!(answered == Answered::Accepted, "a retry came to {answered:?}");
    for i in 1..=10 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut others = drain(&mut receiver, 10).await?;
    others.push("m0".into());
    expect_same(&others, &bodies(11), &format!("beside a retry in {delay:?}, after {:?}", started.elapsed()))?;
    let again = next_of(&mut receiver, "the retry").await?;
    let took = started.elapsed();
    ensure!(took >= delay, "a retry in {delay:?} came after {took:?}");
    ensure!(body(&again) == "m0" && again.attempt() == 2, "{} came, attempt {}", body(&again), again.attempt());
    again.ack();
    quiet(&mut receiver, QUIET).await
}

/// The message comes again after the default backoff, and the answer says that the delay was not taken.
async fn not_taken(ctx: &Ctx, delay: Duration) -> CaseResult {
    let (queue, _sender) = sent(ctx, 1).await?;
    let mut receiver = ctx.open(&queue).await?;
    let answered = next(&mut receiver).await?.retry_after(delay);
    ensure!(answered == Answered::Unsupported, "a retry in {delay:?} came to {answered:?}");
    let again = next_of(&mut receiver, "the retry after the default backoff").await?;
    ensure!(again.attempt() == 2, "it came with attempt {}", again.attempt());
    again.ack();
    quiet(&mut receiver, QUIET).await
}

async fn a_delay_is_answered_by_unsupported(ctx: Ctx) -> CaseResult {
    not_taken(&ctx, Duration::from_secs(5)).await
}

async fn a_retry_over_the_longest_delay_is_told_and_not_clamped(ctx: Ctx) -> CaseResult {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let longest = ctx.probe.receiver.max_retry_delay;
    if longest < YEAR * 100 {
        return not_taken(&ctx, longest + Duration::from_secs(1)).await;
    }
    let (queue, _sender) = sent(&ctx, 1).await?;
    let mut receiver = ctx.open(&queue).await?;
    let answered = next(&mut receiver).await?.retry_after(YEAR);
    ensure!(answered == Answered::Accepted, "a retry in a year came to {answered:?}");
    quiet(&mut receiver, QUIET).await
}

async fn what_is_dropped_comes_back_counted_and_after_the_backoff(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 1).await?;
    let mut events = ctx.client.events();
    let mut receiver = ctx.open(&queue).await?;
    let held = next(&mut receiver).await?;
    let started = Instant::now();
    drop(held);
    let again = next_of(&mut receiver, "what was dropped").await?;
    ensure!(started.elapsed() >= BACKOFF, "it came before the backoff was over");
    ensure!(again.attempt() == 2, "it came with attempt {}", again.attempt());
    again.ack();
    let told = async {
        while let Some(event) = events.next().await {
            if event.kind == EventKind::Dropped {
                return true;
            }
        }
        false
    };
    ensure!(within("the event of a dropped delivery", told).await?, "no event told of the dropped delivery");
    quiet(&mut receiver, QUIET).await
}

async fn what_a_panicking_handler_held_comes_back(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 1).await?;
    let mut receiver = ctx.open(&queue).await?;
    let held = next(&mut receiver).await?;
    let handler = tokio::spawn(async move {
        let _held = held;
        // Unwinds as a panic does, without the noise on the terminal.
        std::panic::resume_unwind(Box::new("a handler that panics"));
    });
    ensure!(within("the panic", handler).await?.is_err(), "the handler did not panic");
    let again = next_of(&mut receiver, "what the handler held").await?;
    ensure!(again.attempt() == 2, "it came with attempt {}", again.attempt());
    again.ack();
    quiet(&mut receiver, QUIET).await
}

async fn a_released_message_comes_back_and_is_no_failure(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 1).await?;
    let mut receiver = open(ctx.receiver(&queue).max_deliveries(3)).await?;
    for time in 1..=4 {
        let delivery = next_of(&mut receiver, &format!("delivery {time}")).await?;
        let counted = match ctx.probe.receiver.delivery_count {
            DeliveryCount::None | DeliveryCount::Answers => 1..=1,
            DeliveryCount::Losses => 1..=time,
            DeliveryCount::Receives => time..=time,
        };
        let attempt = delivery.attempt();
        ensure!(counted.contains(&attempt), "after {} releases the attempt is {attempt}", time - 1);
        let answered = delivery.release();
        ensure!(answered == Answered::Accepted, "a release came to {answered:?}");
    }
    // Three answered failures would have been the end; four releases are not.
    next_of(&mut receiver, "the delivery after four releases").await?.ack();
    quiet(&mut receiver, QUIET).await
}

/// The attempt that a new receiver sees after one answered failure and a delivery that was not answered.
async fn attempt_after_reopening(ctx: &Ctx) -> CaseResult<u32> {
    let (queue, _sender) = sent(ctx, 1).await?;
    let mut receiver = open(short(ctx, &queue)).await?;
    next(&mut receiver).await?.retry();
    let again = next_of(&mut receiver, "the retry").await?;
    ensure!(again.attempt() == 2, "a retry came with attempt {}", again.attempt());
    within("the close", receiver.close(Duration::from_millis(100))).await?;
    drop(again);
    let mut receiver = ctx.open(&queue).await?;
    let again = next_of(&mut receiver, "the message in another receiver").await?;
    let attempt = again.attempt();
    again.ack();
    Ok(attempt)
}

async fn failures_are_counted_across_receivers(ctx: Ctx) -> CaseResult {
    let counted = match ctx.probe.receiver.delivery_count {
        DeliveryCount::Answers => 2..=2,
        // A poll that is under way when its receiver closes may fetch the message once more, and give it back.
        DeliveryCount::Receives => 2..=4,
        _ => 2..=3,
    };
    let attempt = attempt_after_reopening(&ctx).await?;
    ensure!(counted.contains(&attempt), "after a failure, a new receiver sees attempt {attempt}");
    Ok(())
}

async fn failures_are_not_counted(ctx: Ctx) -> CaseResult {
    let attempt = attempt_after_reopening(&ctx).await?;
    ensure!(attempt == 1, "failures are counted (attempt {attempt}), and delivery_count declares None");
    Ok(())
}

async fn a_ticket_answers_as_its_delivery_would(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 2).await?;
    let mut receiver = ctx.open(&queue).await?;
    let mut tickets = Vec::new();
    for delivery in hold(&mut receiver, 2).await? {
        let (message, ticket) = delivery.split();
        tickets.push((body(&message), ticket));
    }
    tickets.sort_by(|a, b| a.0.cmp(&b.0));
    let mut tickets = tickets.into_iter().map(|(_, ticket)| ticket);
    ensure!(tickets.next().map(|t| t.retry()) == Some(Answered::Accepted), "a ticket's retry was not accepted");
    ensure!(tickets.next().map(|t| t.ack()) == Some(Answered::Accepted), "a ticket's ack was not accepted");
    let again = next(&mut receiver).await?;
    ensure!(body(&again) == "m0" && again.attempt() == 2, "{} came, attempt {}", body(&again), again.attempt());
    again.ack();
    quiet(&mut receiver, QUIET).await
}

async fn an_answer_after_the_lease_moves_nothing(ctx: Ctx) -> CaseResult {
    let (queue, sender) = sent(&ctx, 1).await?;
    // Not renewed: the handler is over its time before the first renewal.
    let mut first = open(short(&ctx, &queue).max_handler_time(LEASE / 2)).await?;
    let held = next(&mut first).await?;
    ensure!(held.lease().is_some(), "max_lease is finite, and the delivery has no lease");
    first.pause();
    let mut second = open(ctx.receiver_of(&ctx.another().await?, &queue)).await?;
    let again = next_of(&mut second, "the message after its lease").await?;
    within("lost() to resolve", held.lost()).await?;
    let answered = held.ack();
    ensure!(answered == Answered::LeaseLost, "an answer after the lease came to {answered:?}");
    // The late ack took nothing away: the second delivery can still be retried.
    let answered = again.retry();
    ensure!(answered == Answered::Accepted, "the present holder's answer came to {answered:?}");
    next_of(&mut second, "what the late ack must not have removed").await?.ack();
    only_a_marker_arrives(&sender, &mut second).await
}

async fn what_is_held_stays_while_connected(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 1).await?;
    let mut receiver = open(short(&ctx, &queue).max_handler_time(LEASE / 2)).await?;
    let held = next(&mut receiver).await?;
    ensure!(held.lease().is_none(), "max_lease is not declared, and the delivery has a lease");
    let extended = within("an extension", held.extend(LEASE)).await??;
    ensure!(matches!(extended, Extended::WhileConnected), "an extension came to {extended:?}");
    quiet(&mut receiver, LEASE * 2).await?;
    let answered = held.ack();
    ensure!(answered == Answered::Accepted, "an ack after {:?} came to {answered:?}", LEASE * 2);
    quiet(&mut receiver, QUIET).await
}

async fn an_answer_after_the_close_moves_nothing(ctx: Ctx) -> CaseResult {
    let (queue, sender) = sent(&ctx, 1).await?;
    let mut first = open(short(&ctx, &queue)).await?;
    let held = next(&mut first).await?;
    let report = within("the close", first.close(Duration::from_millis(100))).await?;
    ensure!(report.unanswered == 1, "one message is unanswered, and the close says {report:?}");
    let mut second = ctx.open(&queue).await?;
    let again = next_of(&mut second, "what was not answered before the close").await?;
    let answered = held.ack();
    ensure!(answered == Answered::LeaseLost, "an answer after the close came to {answered:?}");
    again.retry();
    next_of(&mut second, "what the late ack must not have removed").await?.ack();
    only_a_marker_arrives(&sender, &mut second).await
}

async fn exactly_the_unanswered_come_again_after_a_restart(ctx: Ctx) -> CaseResult {
    let (queue, _sender) = sent(&ctx, 5).await?;
    let mut receiver = open(short(&ctx, &queue)).await?;
    let mut held: BTreeMap<_, _> = hold(&mut receiver, 5).await?.into_iter().map(|d| (body(&d), d)).collect();
    for done in ["m3", "m0", "m1"] {
        match held.remove(done) {
            Some(delivery) => delivery.ack(),
            None => return Err(broken(format!("{done} did not arrive"))),
        };
    }
    let report = within("the close", receiver.close(Duration::from_millis(100))).await?;
    ensure!(report.unanswered == 2, "two messages are unanswered, and the close says {report:?}");
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 2).await?, &["m2".into(), "m4".into()], "after the restart")?;
    drop(held);
    quiet(&mut receiver, AWAY).await
}

async fn acks_out_of_order_survive_a_crash(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 30;
    let (queue, _sender) = sent(&ctx, COUNT).await?;
    let client = ctx.another().await?;
    let mut receiver = open(ctx.receiver_of(&client, &queue).lease(LEASE)).await?;
    let mut held = hold(&mut receiver, COUNT).await?;
    let mut rng = ctx.rng();
    rng.shuffle(&mut held);
    let left = held.split_off(COUNT / 2);
    for delivery in held {
        delivery.ack();
    }
    // What was answered is with the broker; then everything is let go at once.
    within("the flush", receiver.flush()).await??;
    let mut expected: Vec<_> = left.iter().map(|d| body(d)).collect();
    drop(receiver);
    within("the close", client.close(Duration::from_millis(100))).await?;
    drop(left);
    let mut receiver = ctx.open(&queue).await?;
    expected.sort();
    expect_same(&drain(&mut receiver, COUNT - COUNT / 2).await?, &expected, "after the crash")?;
    quiet(&mut receiver, AWAY).await
}

async fn with_one_failure_in_ten_everything_is_done_in_the_end(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 200;
    let (queue, sender) = sent(&ctx, COUNT).await?;
    let mut receiver = open(ctx.receiver(&queue).max_deliveries(100).prefetch(40)).await?;
    let done: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut rng = ctx.rng();
    let mut handlers = tokio::task::JoinSet::new();
    let work = async {
        while done.lock().len() < COUNT {
            tokio::select! {
                delivery = receiver.receive() => {
                    let delivery = delivery?;
                    let (fate, done) = (rng.u8(..30), done.clone());
                    handlers.spawn(async move {
                        tokio::task::yield_now().await;
                        match fate {
                            0 => drop(delivery),
                            1 => {
                                delivery.retry();
                            }
                            2 => {
                                delivery.retry_after(BACKOFF);
                            }
                            _ => {
                                let name = body(&delivery);
                                if delivery.ack() == Answered::Accepted {
                                    done.lock().push(name);
                                }
                            }
                        }
                    });
                }
                Some(_) = handlers.join_next() => {}
            }
        }
        Ok::<_, crate::Error>(())
    };
    within_time(WAIT * 3, "200 messages, one in ten failing", work).await??;
    let done = done.lock().clone();
    expect_same(&done, &bodies(COUNT), "what was done")?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

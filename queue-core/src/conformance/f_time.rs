//! F. Delays, times to live, priorities and leases, where they are declared.

use std::time::Duration;

use tokio::time::Instant;

use super::case::{
    CLOSE, CaseResult, Ctx, LEASE, QUIET, body, cases, drain, ensure, expect_error, expect_same, hold, message, next,
    next_of, only_a_marker_arrives, open, quiet, refuses_to_send, within,
};
use crate::address::Address;
use crate::delivery::{Answered, Extended};
use crate::error::{ErrorKind, Outcome};

cases! { "f_time":
    a_delayed_message_is_never_early_and_holds_up_nobody
        ["delayed_send", |p| p.sender.delayed_send, else delays_are_refused];
    a_delay_over_the_longest_is_refused_and_not_clamped
        ["delayed_send", |p| p.sender.delayed_send, else delays_are_refused];
    a_message_expires_after_its_time_to_live ["ttl", |p| p.sender.ttl, else times_to_live_are_refused];
    a_time_to_live_over_the_longest_is_refused_and_not_clamped
        ["ttl", |p| p.sender.ttl, else times_to_live_are_refused];
    a_higher_priority_goes_first ["priority", |p| p.sender.priority, else priorities_are_refused];
    a_priority_survives_a_retry ["priority", |p| p.sender.priority, else priorities_are_refused];
    a_handler_of_three_leases_sees_one_delivery
        ["max_lease", |p| p.receiver.max_lease.is_some(), else there_is_no_lease];
    a_lease_can_be_extended_by_hand
        ["max_lease", |p| p.receiver.max_lease.is_some(), else there_is_no_lease];
    renewal_ends_with_the_longest_time_of_a_handler
        ["max_lease", |p| p.receiver.max_lease.is_some(), else there_is_no_lease];
}

/// What a message over a limit may be refused with.
const OVER: &[ErrorKind] = &[ErrorKind::TooLarge, ErrorKind::Unsupported, ErrorKind::InvalidInput];

/// Limits above this are as good as none.
const ENDLESS: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

async fn delays_are_refused(ctx: Ctx) -> CaseResult {
    refuses_to_send(&ctx, message(1).delay(Duration::from_secs(1)), "a delayed message").await
}

async fn times_to_live_are_refused(ctx: Ctx) -> CaseResult {
    refuses_to_send(&ctx, message(1).ttl(Duration::from_secs(60)), "a message with a time to live").await
}

async fn priorities_are_refused(ctx: Ctx) -> CaseResult {
    refuses_to_send(&ctx, message(1).priority(1), "a message with a priority").await
}

async fn a_delayed_message_is_never_early_and_holds_up_nobody(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let delays = [Duration::from_secs(4), Duration::from_secs(2)];
    let started = Instant::now();
    for (i, delay) in delays.iter().enumerate() {
        within("a send", sender.send(message(i).delay(*delay))).await??;
    }
    within("a send", sender.send(message(9))).await??;
    within("a send", sender.send(message(8).delay(Duration::ZERO))).await??;
    let at_once = drain(&mut receiver, 2).await?;
    expect_same(&at_once, &["m8".into(), "m9".into()], "what came beside the delayed ones")?;
    for (i, delay) in [(1, delays[1]), (0, delays[0])] {
        let delivery = next_of(&mut receiver, &format!("the message with a delay of {delay:?}")).await?;
        let took = started.elapsed();
        ensure!(body(&delivery) == format!("m{i}"), "{} came where m{i} was due", body(&delivery));
        ensure!(took >= delay, "a message with a delay of {delay:?} came after {took:?}");
        delivery.ack();
    }
    quiet(&mut receiver, QUIET).await
}

async fn a_delay_over_the_longest_is_refused_and_not_clamped(ctx: Ctx) -> CaseResult {
    let longest = ctx.probe.sender.max_delay;
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    if longest < ENDLESS {
        let sent = within("the error", sender.send(message(1).delay(longest + Duration::from_secs(1)))).await?;
        let error = expect_error(sent, OVER, "a delay over the longest")?;
        ensure!(error.outcome() == Outcome::NotSent, "the outcome is {:?}", error.outcome());
    } else {
        within("a send", sender.send(message(1).delay(ENDLESS))).await??;
    }
    only_a_marker_arrives(&sender, &mut receiver).await
}

/// Makes the queue, and leaves it alone: a receiver that is only dropped goes a little later, and gives back what it
/// was sent meanwhile, which some brokers then hand out before everything else.
async fn made(ctx: &Ctx, queue: &Address) -> CaseResult {
    let mut receiver = ctx.open(queue).await?;
    let report = within("the close", receiver.close(CLOSE)).await?;
    ensure!(report.is_clean(), "the close left {report:?}");
    Ok(())
}

async fn a_message_expires_after_its_time_to_live(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    made(&ctx, &queue).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(1).ttl(Duration::from_millis(500)))).await??;
    within("a send", sender.send(message(2).ttl(Duration::from_secs(600)))).await??;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m2".to_owned()], "after the time to live of m1")?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn a_time_to_live_over_the_longest_is_refused_and_not_clamped(ctx: Ctx) -> CaseResult {
    let longest = ctx.probe.sender.max_ttl;
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    if longest < ENDLESS {
        let sent = within("the error", sender.send(message(1).ttl(longest + Duration::from_secs(1)))).await?;
        expect_error(sent, OVER, "a time to live over the longest")?;
    } else {
        within("a send", sender.send(message(1).ttl(ENDLESS))).await??;
        expect_same(&drain(&mut receiver, 1).await?, &["m1".to_owned()], "a long time to live")?;
    }
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn a_higher_priority_goes_first(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    made(&ctx, &queue).await?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..6 {
        let low = message(i);
        within("a send", sender.send(if i % 2 == 0 { low } else { low.priority(0) })).await??;
    }
    for i in 6..10 {
        within("a send", sender.send(message(i).priority(9))).await??;
    }
    let mut receiver = open(ctx.receiver(&queue).prefetch(1)).await?;
    let first = drain(&mut receiver, 4).await?;
    expect_same(&first, &["m6".into(), "m7".into(), "m8".into(), "m9".into()], "what came first")?;
    drain(&mut receiver, 6).await?;
    quiet(&mut receiver, QUIET).await
}

async fn a_priority_survives_a_retry(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = open(ctx.receiver(&queue).prefetch(1)).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0).priority(9))).await??;
    next(&mut receiver).await?.retry();
    let again = next_of(&mut receiver, "the retry").await?;
    ensure!(again.attempt() == 2, "it came with attempt {}", again.attempt());
    ensure!(again.get_priority() == Some(9), "its priority became {:?}", again.get_priority());
    again.ack();
    Ok(())
}

async fn a_handler_of_three_leases_sees_one_delivery(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut worker = open(ctx.receiver(&queue).lease(LEASE)).await?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..3 {
        within("a send", sender.send(message(i))).await??;
    }
    // Two are with a handler, one waits in a buffer: the lease of each is renewed.
    let held = hold(&mut worker, 2).await?;
    let mut rival = open(ctx.receiver_of(&ctx.another().await?, &queue)).await?;
    let started = Instant::now();
    let mut seen: Vec<_> = held.iter().map(|d| body(d)).collect();
    while started.elapsed() < LEASE * 3 {
        match tokio::time::timeout(LEASE * 3 - started.elapsed(), rival.receive()).await {
            Err(_) => break,
            Ok(delivery) => {
                let delivery = delivery?;
                // The third may be this one's first delivery, where the worker had not fetched it.
                ensure!(!seen.contains(&body(&delivery)), "{} was given to another meanwhile", body(&delivery));
                seen.push(body(&delivery));
                delivery.ack();
            }
        }
    }
    for delivery in held {
        let answered = delivery.ack();
        ensure!(answered == Answered::Accepted, "an ack after three leases came to {answered:?}");
    }
    if seen.len() < 3 {
        let rest = next_of(&mut worker, "what waited in the buffer").await?;
        ensure!(rest.attempt() == 1, "what waited in the buffer has attempt {}", rest.attempt());
        let answered = rest.ack();
        ensure!(answered == Answered::Accepted, "what waited in the buffer came to {answered:?}");
    }
    within("the flush", worker.flush()).await??;
    quiet(&mut rival, LEASE + QUIET).await
}

async fn a_lease_can_be_extended_by_hand(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut worker = open(ctx.receiver(&queue).lease(LEASE).max_handler_time(LEASE / 2)).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    let held = next(&mut worker).await?;
    let longer = LEASE * 3;
    let asked = Instant::now();
    let extended = within("an extension", held.extend(longer)).await??;
    match extended {
        Extended::Until(until) => ensure!(until >= asked + longer - QUIET, "extended for {:?}", until - asked),
        other => ensure!(false, "an extension came to {other:?}"),
    }
    let mut rival = open(ctx.receiver_of(&ctx.another().await?, &queue)).await?;
    quiet(&mut rival, LEASE * 2).await?;
    let answered = held.ack();
    ensure!(answered == Answered::Accepted, "an ack within the extension came to {answered:?}");
    quiet(&mut rival, QUIET).await
}

async fn renewal_ends_with_the_longest_time_of_a_handler(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut worker = open(ctx.receiver(&queue).lease(LEASE).max_handler_time(LEASE * 2)).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    let started = Instant::now();
    let held = next(&mut worker).await?;
    worker.pause();
    let mut rival = open(ctx.receiver_of(&ctx.another().await?, &queue)).await?;
    let again = next_of(&mut rival, "the message that its handler forgot").await?;
    let took = started.elapsed();
    ensure!(took >= LEASE * 2, "it came to another after {took:?}, within the longest time of a handler");
    within("lost() to resolve", held.lost()).await?;
    let answered = again.ack();
    ensure!(answered == Answered::Accepted, "the rival's ack came to {answered:?}");
    let answered = held.ack();
    ensure!(answered == Answered::LeaseLost, "the late ack came to {answered:?}");
    Ok(())
}

async fn there_is_no_lease(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = open(ctx.receiver(&queue).lease(LEASE)).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    let held = next(&mut receiver).await?;
    ensure!(held.lease().is_none(), "there is a lease, and max_lease declares none");
    let extended = within("an extension", held.extend(LEASE)).await??;
    ensure!(matches!(extended, Extended::WhileConnected), "an extension came to {extended:?}");
    held.ack();
    Ok(())
}

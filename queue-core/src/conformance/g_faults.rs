//! G. Real faults: the broker is killed, restarted, frozen, short of memory, and loses connections and queues.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::case::{
    CaseResult, Ctx, Failure, QUIET, WAIT, bodies, body, broken, cases, drain, ensure, expect_error, expect_same, hold,
    message, next_of, open, quiet, within, within_time,
};
use super::harness::Fault;
use super::load::Load;
use crate::capability::{DeliveryCount, RetryVia};
use crate::delivery::Answered;
use crate::error::{Error, ErrorKind};
use crate::event::{EventKind, EventStream};
use crate::message::Message;

cases! { "g_faults":
    a_broker_killed_mid_stream_loses_nothing_confirmed;
    a_broker_restarted_twice_mid_stream_loses_nothing_confirmed;
    lost_connections_mid_stream_lose_nothing_confirmed;
    a_frozen_broker_is_an_error_in_time_and_loses_nothing_confirmed;
    a_broker_that_takes_no_messages_is_an_error_in_time_and_goes_on;
    a_queue_deleted_under_its_receiver_is_made_again_or_told;
    a_failing_message_is_dead_after_its_attempts_whatever_is_lost_between;
    a_crash_brings_back_the_unanswered_and_nothing_else;
}

/// The longest that a send may take in these cases.
const DEADLINE: Duration = Duration::from_secs(3);

/// Leaves the case out where the harness cannot do this.
fn caused(fault: Result<Fault, Error>, cannot: &'static str) -> CaseResult {
    match fault? {
        Fault::Done => Ok(()),
        Fault::Cannot => Err(Failure::Cannot(cannot)),
    }
}

/// How long a broker is frozen or a link cut.
pub(super) fn length(ctx: &Ctx) -> Duration {
    Duration::from_secs(u64::try_from(ctx.harness.faults()).unwrap_or(u64::MAX).clamp(5, 20))
}

/// Kills the broker and starts it again.
async fn crash(ctx: &Ctx) -> CaseResult {
    caused(ctx.harness.kill().await, "the harness cannot kill the broker")?;
    caused(ctx.harness.start().await, "the harness cannot start the broker")
}

async fn disconnect(ctx: &Ctx) -> CaseResult {
    caused(ctx.harness.disconnect().await, "the harness cannot cut connections")
}

/// Waits for an event.
async fn told(events: &mut EventStream, kind: EventKind) -> CaseResult {
    let heard = async {
        while let Some(event) = events.next().await {
            if event.kind == kind {
                return true;
            }
        }
        false
    };
    ensure!(within(format!("the event {kind:?}"), heard).await?, "the events ended before {kind:?}");
    Ok(())
}

async fn a_broker_killed_mid_stream_loses_nothing_confirmed(ctx: Ctx) -> CaseResult {
    let load = Load::start(&ctx).await?;
    let times = ctx.harness.faults();
    for _ in 0..times {
        load.flows().await?;
        crash(&ctx).await?;
    }
    load.finish(&ctx, "killed", times).await
}

async fn a_broker_restarted_twice_mid_stream_loses_nothing_confirmed(ctx: Ctx) -> CaseResult {
    let load = Load::start(&ctx).await?;
    for _ in 0..2 {
        load.flows().await?;
        caused(ctx.harness.restart().await, "the harness cannot restart the broker")?;
    }
    load.finish(&ctx, "restarted", 2).await
}

async fn lost_connections_mid_stream_lose_nothing_confirmed(ctx: Ctx) -> CaseResult {
    let load = Load::start(&ctx).await?;
    let times = ctx.harness.faults();
    for _ in 0..times {
        load.flows().await?;
        disconnect(&ctx).await?;
    }
    load.finish(&ctx, "disconnected", times).await
}

async fn a_frozen_broker_is_an_error_in_time_and_loses_nothing_confirmed(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = within("a sender", async { ctx.client.sender(&queue).deadline(DEADLINE).await }).await??;
    let load = Load::start(&ctx).await?;
    caused(ctx.harness.freeze(true).await, "the harness cannot freeze the broker")?;
    let frozen = Instant::now();
    let refused = async {
        let (sent, pinged) = tokio::join!(sender.send(message(0)), within("a ping", ctx.client.ping()));
        let took = frozen.elapsed();
        let late = &[ErrorKind::Timeout, ErrorKind::Connection];
        expect_error(sent, late, "a send to a frozen broker")?;
        expect_error(pinged?, late, "a ping of a frozen broker")?;
        ensure!(took < DEADLINE + WAIT, "send and ping took {took:?}");
        sleep(length(&ctx).saturating_sub(frozen.elapsed())).await;
        Ok(())
    };
    let refused = within_time(length(&ctx) + WAIT * 2, "errors of a frozen broker", refused).await;
    ctx.harness.freeze(false).await?;
    refused??;
    load.finish(&ctx, "frozen", 1).await
}

async fn a_broker_that_takes_no_messages_is_an_error_in_time_and_goes_on(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = within("a sender", async { ctx.client.sender(&queue).deadline(DEADLINE).await }).await??;
    for i in 0..20 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = open(ctx.receiver_of(&ctx.another().await?, &queue)).await?;
    let load = Load::start(&ctx).await?;
    let mut events = ctx.client.events();
    caused(ctx.harness.block(true).await, "the harness cannot have the broker take no messages")?;
    let blocked = async {
        for i in 20..22 {
            let started = Instant::now();
            let sent = sender.send(message(i)).await;
            let took = started.elapsed();
            expect_error(sent, &[ErrorKind::Throttled, ErrorKind::Timeout], "a send to a broker that takes none")?;
            ensure!(took < DEADLINE * 2, "a send with a deadline of {DEADLINE:?} took {took:?}");
        }
        told(&mut events, EventKind::Blocked).await?;
        let health = ctx.client.health();
        ensure!(!health.is_up(), "the broker takes no messages, and health is {health:?}");
        // Receivers go on, and their acks.
        expect_same(&drain(&mut receiver, 20).await?, &bodies(20), "received meanwhile")?;
        within("the flush", receiver.flush()).await??;
        Ok(())
    };
    let blocked = within_time(WAIT * 3, "what a blocked broker does", blocked).await;
    ctx.harness.block(false).await?;
    blocked??;
    told(&mut events, EventKind::Unblocked).await?;
    let up = async {
        while !ctx.client.health().is_up() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within("health to be up again", up).await?;
    within("a send", sender.send(Message::new("last"))).await??;
    // Those that failed may have been taken all the same, and then come once.
    let mut seen = Vec::new();
    while seen.last().is_none_or(|name| name != "last") {
        let delivery = next_of(&mut receiver, "the last message").await?;
        seen.push(body(&delivery));
        delivery.ack();
    }
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    ensure!(once.len() == seen.len(), "after the alarm came {seen:?}");
    load.finish(&ctx, "blocked", 1).await
}

async fn a_queue_deleted_under_its_receiver_is_made_again_or_told(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = ctx.open(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    drain(&mut receiver, 1).await?;
    within("the delete", ctx.another().await?.delete(&queue)).await??;
    let refusals = [ErrorKind::NotFound, ErrorKind::Unroutable, ErrorKind::Connection, ErrorKind::Timeout];
    let mut confirmed = Vec::new();
    let mut got = Vec::new();
    let started = Instant::now();
    let ended = loop {
        ensure!(started.elapsed() < WAIT, "the receiver hears neither of an end nor of {confirmed:?}");
        let n = confirmed.len();
        match within("a send", sender.send(message(n))).await? {
            Ok(_) => confirmed.push(format!("m{n}")),
            refused => drop(expect_error(refused, &refusals, "a send to a deleted queue")?),
        }
        match tokio::time::timeout(Duration::from_millis(500), receiver.next()).await {
            Err(_) => {}
            Ok(None) => return Err(broken("the receiver ended and did not say why".to_owned())),
            Ok(Some(Ok(delivery))) => {
                got.push(body(&delivery));
                delivery.ack();
                break false;
            }
            Ok(Some(Err(error))) => {
                ensure!(error.kind() == ErrorKind::NotFound, "the receiver ended with {error:?}");
                break true;
            }
        }
    };
    if ended {
        // Opened again it makes the queue, and what was confirmed before is there.
        receiver = ctx.open(&queue).await?;
    }
    within("a send", ctx.sender(&queue).await?.send(Message::new("last"))).await??;
    confirmed.push("last".to_owned());
    got.extend(drain(&mut receiver, confirmed.len() - got.len()).await?);
    confirmed.sort();
    expect_same(&got, &confirmed, "after the queue was deleted")
}

async fn a_failing_message_is_dead_after_its_attempts_whatever_is_lost_between(ctx: Ctx) -> CaseResult {
    const MOST: u32 = 4;
    /// Longer than it takes to cut connections, mostly.
    const AWAY: Duration = Duration::from_secs(6);
    if !ctx.probe.receiver.dead_letter || ctx.probe.receiver.delivery_count == DeliveryCount::None {
        return Err(Failure::Cannot("there are no dead letters, or no attempts that outlive a connection"));
    }
    // What waits for its retry is with the broker, and not lost with the connection.
    let kept = ctx.probe.receiver.retry_via == RetryVia::Copy && ctx.probe.sender.delayed_send;
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    let mut dead = open(ctx.receiver(&queue.dead_letter()).discard_dead_letters()).await?;
    let mut receiver = open(ctx.receiver(&queue).max_deliveries(MOST)).await?;
    let (mut last, mut answered, mut losses) = (0, 0, 0);
    while last < MOST {
        let delivery = next_of(&mut receiver, &format!("the message after attempt {last}")).await?;
        let attempt = delivery.attempt();
        ensure!(
            attempt > last && attempt <= last + 1 + losses,
            "attempt {attempt} came after {last} and {losses} losses"
        );
        last = attempt;
        let accepted = delivery.retry_after(AWAY.min(ctx.probe.receiver.max_retry_delay));
        ensure!(accepted == Answered::Accepted, "attempt {attempt} was answered, which came to {accepted:?}");
        answered += 1;
        within("the flush", receiver.flush()).await??;
        let flushed = Instant::now();
        disconnect(&ctx).await?;
        losses = u32::from(!kept || flushed.elapsed() >= AWAY);
    }
    ensure!(answered <= MOST, "{answered} failures were answered, of {MOST}");
    let letter = next_of(&mut dead, "the dead letter").await?;
    ensure!(body(letter.message()) == "m0", "{:?} is a dead letter", body(letter.message()));
    letter.ack();
    quiet(&mut dead, QUIET).await?;
    quiet(&mut receiver, QUIET).await
}

async fn a_crash_brings_back_the_unanswered_and_nothing_else(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 40;
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..COUNT {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = ctx.open(&queue).await?;
    let mut held = hold(&mut receiver, COUNT).await?;
    ctx.rng().shuffle(&mut held);
    let left = held.split_off(COUNT / 2);
    for delivery in held {
        delivery.ack();
    }
    within("the flush", receiver.flush()).await??;
    crash(&ctx).await?;
    let mut expected: Vec<_> = left.iter().map(|delivery| body(delivery.message())).collect();
    expected.sort();
    let again = drain(&mut receiver, left.len()).await?;
    expect_same(&again, &expected, "after the crash")?;
    // Late answers, after the message has come again, move nothing.
    for delivery in left {
        let answered = delivery.ack();
        ensure!(answered == Answered::LeaseLost, "an ack of before the crash came to {answered:?}");
    }
    within("a send", sender.send(Message::new("marker"))).await??;
    let marker = next_of(&mut receiver, "the marker").await?;
    ensure!(body(&marker) == "marker", "{:?} came again, and was acknowledged", body(&marker));
    marker.ack();
    quiet(&mut receiver, QUIET).await
}

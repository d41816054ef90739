//! D. What cannot be done goes to the dead letters, with everything one needs to know about it.

use std::time::{Duration, SystemTime};

use super::case::{
    CLOSE, CaseResult, Ctx, Failure, QUIET, body, cases, drain, ensure, expect_same, hold, message, next, next_of,
    only_a_marker_arrives, open, quiet, refuses_to_open, within,
};
use super::harness::Fault;
use crate::address::Address;
use crate::dead_letter;
use crate::delivery::Answered;
use crate::headers::HeaderValue;
use crate::message::Message;
use crate::receiver::Receiver;

cases! { "d_dead_letter":
    a_rejected_message_reaches_the_dead_letters_once
        ["dead_letter", |p| p.receiver.dead_letter, else dead_letters_are_refused];
    a_dead_letter_tells_reason_cause_attempts_and_origin
        ["dead_letter", |p| p.receiver.dead_letter, else dead_letters_are_refused];
    the_last_failure_makes_a_dead_letter
        ["dead_letter", |p| p.receiver.dead_letter, else dead_letters_are_refused];
    dead_letters_go_where_they_are_told_to
        ["dead_letter", |p| p.receiver.dead_letter, else dead_letters_are_refused];
    dead_letters_of_a_group_are_its_own
        ["dead_letter", |p| p.receiver.dead_letter && p.broker.topics, else dead_letters_of_a_group_are_refused];
    rejected_messages_beside_done_ones_are_exactly_the_dead_letters
        ["dead_letter", |p| p.receiver.dead_letter, else dead_letters_are_refused];
    discarded_dead_letters_are_gone;
    an_undecodable_message_never_loops;
}

async fn dead_letters_are_refused(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    refuses_to_open(ctx.client.receiver(&queue), "a receiver with dead letters").await
}

async fn dead_letters_of_a_group_are_refused(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    refuses_to_open(ctx.client.receiver(&topic).group("billing"), "a group with dead letters").await
}

/// Opens a receiver of dead letters, whose own failures go nowhere.
async fn graveyard(ctx: &Ctx, queue: &Address) -> CaseResult<Receiver> {
    open(ctx.receiver(queue).discard_dead_letters()).await
}

#[derive(Debug)]
struct Reason {
    cause: Option<std::io::Error>,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the order has no customer")
    }
}

impl std::error::Error for Reason {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|e| e as _)
    }
}

async fn a_rejected_message_reaches_the_dead_letters_once(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let sent = Message::new(vec![0, 255, 7]).id("id-1").key("k").header("tenant", "acme").content_type("x/y");
    within("a send", sender.send(sent.clone())).await??;
    let answered = next(&mut receiver).await?.reject("no");
    ensure!(answered == Answered::Accepted, "a reject came to {answered:?}");
    let mut dead = graveyard(&ctx, &queue.dead_letter()).await?;
    let letter = next_of(&mut dead, "the dead letter").await?;
    ensure!(letter.payload() == sent.payload(), "the body became {} bytes", letter.payload().len());
    ensure!(letter.get_id() == sent.get_id(), "the id became {:?}", letter.get_id());
    ensure!(letter.get_key() == sent.get_key(), "the key became {:?}", letter.get_key());
    ensure!(letter.get_content_type() == sent.get_content_type(), "the content type: {:?}", letter.get_content_type());
    let tenant = letter.headers().get("tenant");
    ensure!(tenant.and_then(HeaderValue::as_str) == Some("acme"), "the header became {tenant:?}");
    ensure!(letter.attempt() == 1, "the dead letter arrived with attempt {}", letter.attempt());
    letter.ack();
    quiet(&mut dead, QUIET).await?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

fn text(message: &Message, name: &str) -> String {
    message.headers().get(name).and_then(HeaderValue::as_str).unwrap_or("(absent)").to_owned()
}

async fn a_dead_letter_tells_reason_cause_attempts_and_origin(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let before = SystemTime::now();
    within("a send", sender.send(message(0))).await??;
    next(&mut receiver).await?.retry();
    let again = next_of(&mut receiver, "the retry").await?;
    again.reject(Reason { cause: Some(std::io::Error::other("row 7 is empty")) });
    let mut dead = graveyard(&ctx, &queue.dead_letter()).await?;
    let letter = next_of(&mut dead, "the dead letter").await?;
    let reason = text(&letter, dead_letter::REASON);
    ensure!(reason == "the order has no customer", "the reason is {reason:?}");
    let cause = text(&letter, dead_letter::CHAIN);
    ensure!(cause.contains("row 7 is empty"), "the cause is {cause:?}");
    let attempts = letter.headers().get(dead_letter::ATTEMPTS).and_then(HeaderValue::as_int);
    ensure!(attempts == Some(2), "the attempts are {attempts:?}, not 2");
    let origin = text(&letter, dead_letter::ORIGIN);
    ensure!(origin == queue.to_string(), "the origin is {origin:?}, not {queue}");
    let at = match letter.headers().get(dead_letter::AT) {
        Some(HeaderValue::Timestamp(at)) => Some(*at),
        _ => None,
    };
    let after = SystemTime::now() + Duration::from_secs(1);
    if ctx.probe.sender.typed_headers {
        ensure!(at.is_some_and(|at| at >= before && at <= after), "the time of death is {at:?}");
    }
    letter.ack();

    within("a send", sender.send(message(1))).await??;
    next(&mut receiver).await?.reject(Reason { cause: None });
    let letter = next_of(&mut dead, "the second dead letter").await?;
    ensure!(letter.headers().get(dead_letter::CHAIN).is_none(), "a cause appeared");
    letter.ack();
    Ok(())
}

async fn the_last_failure_makes_a_dead_letter(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = open(ctx.receiver(&queue).max_deliveries(3)).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    for attempt in 1..=3 {
        let delivery = next_of(&mut receiver, &format!("attempt {attempt} of 3")).await?;
        ensure!(delivery.attempt() == attempt, "attempt {attempt} came as {}", delivery.attempt());
        // Answered or dropped: both are failures.
        if attempt != 2 {
            delivery.retry();
        }
    }
    let mut dead = graveyard(&ctx, &queue.dead_letter()).await?;
    let letter = next_of(&mut dead, "the dead letter after three failures").await?;
    let attempts = letter.headers().get(dead_letter::ATTEMPTS).and_then(HeaderValue::as_int);
    ensure!(body(&letter) == "m0" && attempts == Some(3), "{} came, attempts {attempts:?}", body(&letter));
    letter.ack();
    quiet(&mut dead, QUIET).await?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn dead_letters_go_where_they_are_told_to(ctx: Ctx) -> CaseResult {
    let (queue, elsewhere) = (ctx.queue()?, ctx.queue()?);
    let mut receiver = open(ctx.receiver(&queue).dead_letter(elsewhere.name())).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    next(&mut receiver).await?.reject("no");
    let mut dead = graveyard(&ctx, &elsewhere).await?;
    expect_same(&drain(&mut dead, 1).await?, &["m0".to_owned()], "the dead letters")?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn dead_letters_of_a_group_are_its_own(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    let grave = ctx.dead_letter_of(&topic, "one")?;
    ctx.dead_letter_of(&topic, "two")?;
    let mut one = open(ctx.receiver(&topic).group("one")).await?;
    let mut two = open(ctx.receiver(&topic).group("two")).await?;
    let sender = ctx.sender(&topic).await?;
    within("a send", sender.send(message(0))).await??;
    next(&mut one).await?.reject("no");
    // A retry is the business of its group alone.
    next(&mut two).await?.retry();
    let again = next_of(&mut two, "the retry").await?;
    ensure!(again.attempt() == 2, "a retry came with attempt {}", again.attempt());
    again.ack();
    let mut dead = graveyard(&ctx, &grave).await?;
    expect_same(&drain(&mut dead, 1).await?, &["m0".to_owned()], "the dead letters of one group")?;
    quiet(&mut one, QUIET).await?;
    quiet(&mut two, QUIET).await
}

async fn rejected_messages_beside_done_ones_are_exactly_the_dead_letters(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..5 {
        within("a send", sender.send(message(i))).await??;
    }
    for delivery in hold(&mut receiver, 5).await? {
        match body(&delivery).as_str() {
            "m2" | "m4" => delivery.reject("no"),
            _ => delivery.ack(),
        };
    }
    let report = within("the close", receiver.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    let mut dead = graveyard(&ctx, &queue.dead_letter()).await?;
    expect_same(&drain(&mut dead, 2).await?, &["m2".into(), "m4".into()], "the dead letters")?;
    quiet(&mut dead, QUIET).await?;
    let mut receiver = ctx.open(&queue).await?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn discarded_dead_letters_are_gone(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = open(ctx.receiver(&queue).discard_dead_letters().max_deliveries(2)).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    next(&mut receiver).await?.retry();
    next_of(&mut receiver, "the retry").await?.retry();
    within("a send", sender.send(message(1))).await??;
    next_of(&mut receiver, "the message to reject").await?.reject("no");
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn an_undecodable_message_never_loops(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    if ctx.harness.inject_undecodable(&queue).await? == Fault::Cannot {
        return Err(Failure::Cannot("the harness cannot make an undecodable message"));
    }
    only_a_marker_arrives(&sender, &mut receiver).await?;
    if ctx.probe.receiver.dead_letter {
        let mut dead = graveyard(&ctx, &queue.dead_letter()).await?;
        next_of(&mut dead, "the undecodable message as a dead letter").await?.ack();
        quiet(&mut dead, QUIET).await?;
    }
    Ok(())
}

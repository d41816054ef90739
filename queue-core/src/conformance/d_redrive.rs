//! D. What went to the dead letters comes back when it is told to, to where it came from.

use super::case::{
    CaseResult, Ctx, Failure, QUIET, body, cases, drain, ensure, expect_error, expect_same, message, next, next_of,
    only_a_marker_arrives, open, quiet, within,
};
use super::harness::Fault;
use crate::address::Address;
use crate::error::ErrorKind;
use crate::headers::{HeaderValue, RESERVED_PREFIX};
use crate::message::Message;
use crate::receiver::Receiver;
use crate::redrive::{RedriveBuilder, Redriven};
use crate::sender::Sender;

cases! { "d_redrive":
    a_dead_letter_that_is_put_back_is_processed_as_new
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
    a_filter_leaves_the_others_for_another_time
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
    no_more_than_the_limit_are_put_back
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
    a_dead_letter_of_a_group_comes_back_to_it_alone
        ["dead_letter", |p| p.receiver.dead_letter && p.broker.topics, else redriving_a_group_is_refused];
    dead_letters_of_another_queue_stay
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
    what_dies_again_at_once_does_not_keep_a_pass_going
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
    an_undecodable_dead_letter_stays_and_is_told
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
    without_an_address_of_dead_letters_nothing_is_put_back
        ["dead_letter", |p| p.receiver.dead_letter, else redriving_is_refused];
}

async fn redriving_is_refused(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    refused(ctx.client.redrive(&queue), &[ErrorKind::Unsupported], "putting dead letters back").await
}

async fn redriving_a_group_is_refused(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    let group = ctx.client.redrive(&topic).group("one");
    refused(group, &[ErrorKind::Unsupported], "putting dead letters of a group back").await
}

async fn refused(redrive: RedriveBuilder, kinds: &[ErrorKind], what: &str) -> CaseResult {
    let done = within(format!("{what} to be refused"), async { redrive.await }).await?;
    expect_error(done.map(drop), kinds, what).map(drop)
}

async fn run(redrive: RedriveBuilder) -> CaseResult<Redriven> {
    let redriven = within("dead letters to be put back", async { redrive.await }).await??;
    ensure!(redriven.stopped.is_none(), "it stopped: {redriven:?}");
    Ok(redriven)
}

/// Fails unless so many were moved, and so many not chosen.
#[track_caller]
fn expect(redriven: &Redriven, moved: u64, kept: u64) -> CaseResult {
    ensure!((redriven.moved, redriven.kept) == (moved, kept), "{moved} to be put back, {kept} to stay: {redriven:?}");
    ensure!(redriven.failed.is_empty() && redriven.others == 0, "{redriven:?}");
    Ok(())
}

/// Sends messages 0 to `n` and rejects each; returns when the dead letters are there.
async fn bury(sender: &Sender, receiver: &mut Receiver, n: usize) -> CaseResult {
    for i in 0..n {
        within("a send", sender.send(message(i))).await??;
        next(receiver).await?.reject("no");
    }
    Ok(within("dead letters to be confirmed", receiver.flush()).await??)
}

async fn a_dead_letter_that_is_put_back_is_processed_as_new(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = open(ctx.receiver(&queue).max_deliveries(2)).await?;
    let sender = ctx.sender(&queue).await?;
    let sent = Message::new(vec![0, 255, 7]).id("id-1").key("k").header("tenant", "acme").content_type("x/y");
    within("a send", sender.send(sent.clone())).await??;
    next(&mut receiver).await?.reject("no");
    // It dies by its last failure as well, and each time it is back within a moment.
    for round in 1..=2 {
        within("the dead letter to be confirmed", receiver.flush()).await??;
        expect(&run(ctx.client.redrive(&queue)).await?, 1, 0)?;
        for attempt in 1..=2 {
            let back = next_of(&mut receiver, &format!("attempt {attempt} of what was put back")).await?;
            ensure!(back.attempt() == attempt, "attempt {attempt} in round {round} came as {}", back.attempt());
            ensure!(back.payload() == sent.payload(), "the body became {} bytes", back.payload().len());
            ensure!(back.get_id() == sent.get_id(), "the id became {:?}", back.get_id());
            ensure!(back.get_key() == sent.get_key(), "the key became {:?}", back.get_key());
            ensure!(back.get_content_type() == sent.get_content_type(), "the type: {:?}", back.get_content_type());
            let tenant = back.headers().get("tenant");
            ensure!(tenant.and_then(HeaderValue::as_str) == Some("acme"), "the header became {tenant:?}");
            let own = back.headers().iter().find(|(name, _)| name.starts_with(RESERVED_PREFIX));
            ensure!(own.is_none(), "a header of the library's own stayed: {own:?}");
            back.retry();
        }
    }
    within("the dead letter to be confirmed", receiver.flush()).await??;
    expect(&run(ctx.client.redrive(&queue)).await?, 1, 0)?;
    next_of(&mut receiver, "what was put back").await?.ack();
    within("the ack to be confirmed", receiver.flush()).await??;
    expect(&run(ctx.client.redrive(&queue).idle(QUIET * 2)).await?, 0, 0)?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn a_filter_leaves_the_others_for_another_time(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    bury(&sender, &mut receiver, 5).await?;
    let chosen = |message: &Message| matches!(message.text(), Some("m1" | "m3"));
    expect(&run(ctx.client.redrive(&queue).filter(chosen)).await?, 2, 3)?;
    expect_same(&drain(&mut receiver, 2).await?, &["m1".into(), "m3".into()], "the chosen")?;
    quiet(&mut receiver, QUIET).await?;
    // Those that stayed are looked at again, how often they may have been before.
    for _ in 0..2 {
        expect(&run(ctx.client.redrive(&queue).filter(chosen)).await?, 0, 3)?;
    }
    expect(&run(ctx.client.redrive(&queue)).await?, 3, 0)?;
    expect_same(&drain(&mut receiver, 3).await?, &["m0".into(), "m2".into(), "m4".into()], "the others")?;
    quiet(&mut receiver, QUIET).await
}

async fn no_more_than_the_limit_are_put_back(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    bury(&sender, &mut receiver, 5).await?;
    expect(&run(ctx.client.redrive(&queue).limit(2)).await?, 2, 0)?;
    let mut all = drain(&mut receiver, 2).await?;
    quiet(&mut receiver, QUIET).await?;
    expect(&run(ctx.client.redrive(&queue)).await?, 3, 0)?;
    all.extend(drain(&mut receiver, 3).await?);
    expect_same(&all, &super::case::bodies(5), "what was put back")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_dead_letter_of_a_group_comes_back_to_it_alone(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    ctx.dead_letter_of(&topic, "one")?;
    ctx.dead_letter_of(&topic, "two")?;
    let mut one = open(ctx.receiver(&topic).group("one")).await?;
    let mut two = open(ctx.receiver(&topic).group("two")).await?;
    let mut anybody = match ctx.probe.broker.anonymous_subscribers {
        true => Some(open(ctx.receiver(&topic)).await?),
        false => None,
    };
    let sender = ctx.sender(&topic).await?;
    within("a send", sender.send(message(0))).await??;
    next(&mut two).await?.ack();
    if let Some(anybody) = &mut anybody {
        next(anybody).await?.ack();
    }
    next(&mut one).await?.reject("no");
    within("the dead letter to be confirmed", one.flush()).await??;
    let nothing = run(ctx.client.redrive(&topic).group("two").idle(QUIET)).await?;
    expect(&nothing, 0, 0)?;
    expect(&run(ctx.client.redrive(&topic).group("one")).await?, 1, 0)?;
    let back = next_of(&mut one, "what was put back").await?;
    ensure!(body(&back) == "m0" && back.attempt() == 1, "{:?} came, attempt {}", body(&back), back.attempt());
    ensure!(back.headers().is_empty(), "headers appeared: {:?}", back.headers());
    back.ack();
    // Whatever would come to the others stands before the marker.
    only_a_marker_arrives(&sender, &mut two).await?;
    if let Some(anybody) = &mut anybody {
        expect_same(&drain(anybody, 1).await?, &["marker".into()], "what came to a subscriber")?;
    }
    expect_same(&drain(&mut one, 1).await?, &["marker".into()], "what came behind")?;
    quiet(&mut one, QUIET).await
}

async fn dead_letters_of_another_queue_stay(ctx: Ctx) -> CaseResult {
    let (left, right, shared) = (ctx.queue()?, ctx.queue()?, ctx.queue()?);
    let mut receivers = Vec::new();
    for (queue, text) in [(&left, "left"), (&right, "right")] {
        let mut receiver = open(ctx.receiver(queue).dead_letter(shared.name())).await?;
        within("a send", ctx.sender(queue).await?.send(Message::new(text).key(text))).await??;
        next(&mut receiver).await?.reject("no");
        within("the dead letter to be confirmed", receiver.flush()).await??;
        receivers.push(receiver);
    }
    for (receiver, text, others) in receivers.iter_mut().zip([("left", 1), ("right", 0)]).map(|(r, (t, o))| (r, t, o)) {
        let queue = receiver.source().address.clone();
        let redriven = run(ctx.client.redrive(&queue).from(shared.name())).await?;
        ensure!((redriven.moved, redriven.others) == (1, others), "{redriven:?}");
        expect_same(&drain(receiver, 1).await?, &[text.to_owned()], "what was put back")?;
    }
    for receiver in &mut receivers {
        quiet(receiver, QUIET).await?;
    }
    Ok(())
}

async fn what_dies_again_at_once_does_not_keep_a_pass_going(ctx: Ctx) -> CaseResult {
    const LETTERS: u64 = 5;
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    bury(&sender, &mut receiver, 5).await?;
    let killer = tokio::spawn(async move {
        while let Ok(delivery) = receiver.receive().await {
            delivery.reject("again");
        }
    });
    let redriven = run(ctx.client.redrive(&queue)).await;
    killer.abort();
    let redriven = redriven?;
    ensure!(redriven.moved == LETTERS, "{redriven:?}");
    Ok(())
}

async fn an_undecodable_dead_letter_stays_and_is_told(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    if ctx.harness.inject_undecodable(&queue.dead_letter()).await? == Fault::Cannot {
        return Err(Failure::Cannot("the harness cannot make an undecodable message"));
    }
    bury(&sender, &mut receiver, 1).await?;
    for moved in [1, 0] {
        let redriven = run(ctx.client.redrive(&queue).idle(QUIET * 2)).await?;
        ensure!(redriven.moved == moved && redriven.failed.len() == 1, "{redriven:?}");
        ensure!(redriven.failed.iter().all(|e| e.kind() == ErrorKind::Codec), "{redriven:?}");
    }
    expect_same(&drain(&mut receiver, 1).await?, &["m0".into()], "what was put back")
}

async fn without_an_address_of_dead_letters_nothing_is_put_back(ctx: Ctx) -> CaseResult {
    let (queue, topic) = (ctx.queue()?, ctx.topic()?);
    let discards = ctx.client.redrive(&queue).from("discard");
    refused(discards, &[ErrorKind::InvalidInput], "dead letters that are discarded").await?;
    let circle = ctx.client.redrive(&queue).from(queue.name());
    refused(circle, &[ErrorKind::InvalidConfig], "dead letters that are the queue itself").await?;
    let grouped = ctx.client.redrive(&queue).group("one");
    refused(grouped, &[ErrorKind::InvalidInput], "a group of a queue").await?;
    let kinds = if ctx.probe.broker.topics { [ErrorKind::InvalidInput] } else { [ErrorKind::Unsupported] };
    refused(ctx.client.redrive(&topic), &kinds, "a topic without a group").await?;
    let missing: Address = queue.dead_letter();
    refused(ctx.client.redrive(&queue), &[ErrorKind::NotFound], &format!("{missing}, which is missing")).await?;
    Ok(())
}

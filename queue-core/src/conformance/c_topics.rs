//! C. Topics: every group gets everything, and the past can be read again.

use std::time::{Duration, SystemTime};

use super::c_receive::Crowd;
use super::case::{
    CLOSE, CaseResult, Ctx, QUIET, bodies, body, broken, cases, drain, ensure, expect_error, expect_same, hold,
    message, open, quiet, refuses_to_open, within,
};
use crate::address::{Address, Start};
use crate::error::ErrorKind;
use crate::receiver::ReceiverBuilder;
use crate::sender::Sender;

cases! { "c_topics":
    two_groups_both_get_everything ["topics", |p| p.broker.topics, else topics_are_refused];
    receivers_of_one_group_share ["topics", |p| p.broker.topics, else topics_are_refused];
    a_group_keeps_what_comes_while_nobody_reads ["topics", |p| p.broker.topics, else topics_are_refused];
    a_new_group_gets_what_came_before_it
        ["group_backlog", |p| p.broker.topics && p.topic.group_backlog, else a_new_group_gets_only_the_new];
    an_anonymous_subscriber_gets_only_the_new
        ["anonymous_subscribers", |p| p.broker.anonymous_subscribers, else anonymous_subscribers_are_refused];
    anonymous_subscribers_each_get_everything
        ["anonymous_subscribers", |p| p.broker.anonymous_subscribers, else anonymous_subscribers_are_refused];
    a_replay_from_the_earliest_gets_everything_again
        ["replay", |p| p.replay, else replay_is_refused];
    a_replay_from_a_time_starts_there ["replay", |p| p.replay, else replay_is_refused];
    a_replay_from_an_offset_starts_there ["replay", |p| p.replay, else replay_is_refused];
    a_start_at_the_latest_skips_what_was_there ["replay", |p| p.replay, else replay_is_refused];
}

async fn topics_are_refused(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    refuses_to_open(ctx.receiver(&topic).group("billing"), "a group of a topic").await?;
    let sender = within("a topic to be refused", async { ctx.client.sender(&topic).await }).await?;
    expect_error(sender.map(drop), &[ErrorKind::Unsupported], "a sender to a topic").map(drop)
}

async fn two_groups_both_get_everything(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    ctx.dead_letter_of(&topic, "one")?;
    ctx.dead_letter_of(&topic, "two")?;
    let mut one = open(ctx.receiver(&topic).group("one")).await?;
    let mut two = open(ctx.receiver(&topic).group("two")).await?;
    let sender = ctx.sender(&topic).await?;
    for i in 0..20 {
        within("a send", sender.send(message(i))).await??;
    }
    expect_same(&drain(&mut one, 20).await?, &bodies(20), "the first group")?;
    expect_same(&drain(&mut two, 20).await?, &bodies(20), "the second group")?;
    quiet(&mut one, QUIET).await?;
    quiet(&mut two, QUIET / 2).await
}

async fn receivers_of_one_group_share(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    ctx.dead_letter_of(&topic, "billing")?;
    let sender = ctx.sender(&topic).await?;
    let mut receivers = Vec::new();
    for _ in 0..2 {
        receivers.push(open(ctx.receiver_of(&ctx.another().await?, &topic).group("billing").prefetch(4)).await?);
    }
    let crowd = Crowd::settled(&sender, receivers).await?;
    for i in 0..60 {
        within("a send", sender.send(message(i))).await??;
    }
    crowd.gets(60).await
}

async fn a_group_keeps_what_comes_while_nobody_reads(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    ctx.dead_letter_of(&topic, "billing")?;
    let sender = ctx.sender(&topic).await?;
    let mut receiver = open(ctx.receiver(&topic).group("billing")).await?;
    within("a send", sender.send(message(0))).await??;
    drain(&mut receiver, 1).await?;
    within("the close", receiver.close(CLOSE)).await?;
    drop(receiver);
    within("a send", sender.send(message(1))).await??;
    let mut receiver = open(ctx.receiver(&topic).group("billing")).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m1".to_owned()], "what came while nobody read")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_new_group_gets_what_came_before_it(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    ctx.dead_letter_of(&topic, "late")?;
    let sender = ctx.sender(&topic).await?;
    for i in 0..10 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut late = open(ctx.receiver(&topic).group("late")).await?;
    expect_same(&drain(&mut late, 10).await?, &bodies(10), "what a late group got")
}

async fn a_new_group_gets_only_the_new(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    if !ctx.probe.broker.topics {
        return refuses_to_open(ctx.receiver(&topic).group("late"), "a group of a topic").await;
    }
    ctx.dead_letter_of(&topic, "late")?;
    let sender = ctx.sender(&topic).await?;
    within("a send", sender.send(message(0))).await??;
    let mut late = open(ctx.receiver(&topic).group("late")).await?;
    within("a send", sender.send(message(1))).await??;
    let got = drain(&mut late, 1).await?;
    ensure!(got == ["m1"], "{got:?} came before the group: group_backlog works and is not declared");
    quiet(&mut late, QUIET).await
}

async fn an_anonymous_subscriber_gets_only_the_new(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    let sender = ctx.sender(&topic).await?;
    within("a send", sender.send(message(0))).await??;
    let mut subscriber = ctx.open(&topic).await?;
    for i in 1..11 {
        within("a send", sender.send(message(i))).await??;
    }
    expect_same(&drain(&mut subscriber, 10).await?, &bodies(11)[1..], "what came after the subscriber")?;
    quiet(&mut subscriber, QUIET).await
}

async fn anonymous_subscribers_each_get_everything(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    let sender = ctx.sender(&topic).await?;
    let mut one = ctx.open(&topic).await?;
    let mut two = ctx.open(&topic).await?;
    for i in 0..10 {
        within("a send", sender.send(message(i))).await??;
    }
    expect_same(&drain(&mut one, 10).await?, &bodies(10), "the first subscriber")?;
    expect_same(&drain(&mut two, 10).await?, &bodies(10), "the second subscriber")
}

async fn anonymous_subscribers_are_refused(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    refuses_to_open(ctx.receiver(&topic), "a topic without a group").await
}

async fn replay_is_refused(ctx: Ctx) -> CaseResult {
    let source = ctx.queue()?;
    for start in [Start::Earliest, Start::Latest, Start::Offset(0), Start::Time(SystemTime::UNIX_EPOCH)] {
        refuses_to_open(ctx.receiver(&source).start(start), &format!("{start:?}")).await?;
    }
    Ok(())
}

/// Where messages are kept to be read again: a topic for its groups, or a queue that is made for it.
fn log(ctx: &Ctx) -> CaseResult<Address> {
    if ctx.probe.topic.replay { ctx.topic() } else { ctx.queue() }
}

async fn writer(ctx: &Ctx, log: &Address) -> CaseResult<Sender> {
    if log.is_topic() {
        return ctx.sender(log).await;
    }
    let options = ctx.harness.replayable().iter();
    let sender = options.fold(ctx.client.sender(log), |sender, (name, value)| sender.native(*name, *value));
    Ok(within("a sender to open", async { sender.await }).await??)
}

fn reader(ctx: &Ctx, log: &Address, group: &str, start: Start) -> CaseResult<ReceiverBuilder> {
    let receiver = ctx.receiver(log).start(start);
    if !log.is_topic() {
        return Ok(receiver);
    }
    ctx.dead_letter_of(log, group)?;
    Ok(receiver.group(group))
}

/// Everything that a receiver of a new group gets from this start, until it is quiet.
async fn replayed(ctx: &Ctx, log: &Address, group: &str, start: Start, least: usize) -> CaseResult<Vec<String>> {
    let mut receiver = open(reader(ctx, log, group, start)?).await?;
    let mut got = drain(&mut receiver, least).await?;
    while let Ok(more) = tokio::time::timeout(QUIET, receiver.receive()).await {
        let more = more?;
        got.push(body(&more));
        more.ack();
    }
    within("the close", receiver.close(CLOSE)).await?;
    got.sort();
    Ok(got)
}

async fn a_replay_from_the_earliest_gets_everything_again(ctx: Ctx) -> CaseResult {
    let log = log(&ctx)?;
    let sender = writer(&ctx, &log).await?;
    for i in 0..10 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut starts = vec![Start::Earliest, Start::Earliest];
    if log.is_topic() {
        starts.insert(0, Start::Committed);
    } else {
        // Nobody keeps a position for it, so one has to be given; and it is only this queue that takes one.
        refuses_to_open(reader(&ctx, &log, "", Start::Committed)?, "a log without a start").await?;
        replay_is_refused(ctx.clone()).await?;
    }
    for start in starts {
        let got = replayed(&ctx, &log, "again", start, 10).await?;
        expect_same(&got, &bodies(10), &format!("from {start:?}"))?;
    }
    Ok(())
}

async fn a_replay_from_a_time_starts_there(ctx: Ctx) -> CaseResult {
    let log = log(&ctx)?;
    let sender = writer(&ctx, &log).await?;
    for i in 0..5 {
        within("a send", sender.send(message(i))).await??;
    }
    // The broker's clock may count in seconds, and it may not be ours to the millisecond.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let time = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for i in 5..10 {
        within("a send", sender.send(message(i))).await??;
    }
    let got = replayed(&ctx, &log, "since", Start::Time(time), 5).await?;
    expect_same(&got, &bodies(10)[5..], "from a time between")
}

async fn a_replay_from_an_offset_starts_there(ctx: Ctx) -> CaseResult {
    let log = log(&ctx)?;
    let sender = writer(&ctx, &log).await?;
    // One key, so one partition: what lies before the offset is left out.
    for i in 0..10 {
        within("a send", sender.send(message(i).key("one"))).await??;
    }
    let mut receiver = open(reader(&ctx, &log, "first", Start::Earliest)?).await?;
    let mut offset = None;
    for delivery in hold(&mut receiver, 10).await? {
        if body(&delivery) == "m6" {
            offset = delivery.position().offset;
        }
        delivery.ack();
    }
    let Some(offset) = offset else {
        return Err(broken("replay is declared, and a delivery has no offset".into()));
    };
    let expected: Vec<_> = (6..10).map(|i| format!("m{i}")).collect();
    expect_same(&replayed(&ctx, &log, "from", Start::Offset(offset), 4).await?, &expected, "from an offset")
}

async fn a_start_at_the_latest_skips_what_was_there(ctx: Ctx) -> CaseResult {
    let log = log(&ctx)?;
    let sender = writer(&ctx, &log).await?;
    within("a send", sender.send(message(0))).await??;
    let mut receiver = open(reader(&ctx, &log, "new", Start::Latest)?).await?;
    within("a send", sender.send(message(1))).await??;
    expect_same(&drain(&mut receiver, 1).await?, &["m1".to_owned()], "from the latest")?;
    quiet(&mut receiver, QUIET).await
}

//! H. What a client tells and does about its broker.

use std::time::Duration;

use futures::future::join;
use tokio::time::Instant;

use super::case::{
    CaseResult, Ctx, QUIET, WAIT, bodies, broken, cases, drain, ensure, expect_error, expect_same, hold, message,
    next_of, only_a_marker_arrives, quiet, within, within_time,
};
use crate::address::{Address, Source};
use crate::capability::Capabilities;
use crate::error::{Error, ErrorKind};
use crate::message::Message;
use crate::topology::{Entry, Topology};

cases! { "h_broker":
    a_connected_client_is_healthy;
    declaring_twice_changes_nothing;
    verifying_tells_what_is_missing_and_makes_nothing;
    what_is_deleted_is_gone_and_deleting_twice_is_fine;
    a_purge_removes_what_waits ["purge", |p| p.broker.purge, else purging_is_refused];
    stats_count_what_waits ["stats", |p| p.broker.stats, else stats_are_refused];
    a_request_gets_its_reply ["requests", |p| p.broker.requests, else there_are_no_requests];
    a_transaction_happens_whole_or_not_at_all
        ["transactions", |p| p.broker.transactions, else there_are_no_transactions];
    an_address_can_do_no_more_than_its_broker;
}

async fn a_connected_client_is_healthy(ctx: Ctx) -> CaseResult {
    within("a ping", ctx.client.ping()).await??;
    let queue = ctx.queue()?;
    let (sender, mut receiver) = (ctx.sender(&queue).await?, ctx.open(&queue).await?);
    only_a_marker_arrives(&sender, &mut receiver).await?;
    let health = ctx.client.health();
    ensure!(health.is_up(), "{health:?}");
    Ok(())
}

async fn declaring_twice_changes_nothing(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let topology = Topology::from_iter([Entry::new(queue.clone())]);
    within("a declaration", ctx.client.declare(&topology)).await??;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    within("a second declaration", ctx.another().await?.declare(&topology)).await??;
    within("a verification", ctx.client.verify(&topology)).await??;
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m0".to_owned()], "across a declaration")
}

async fn verifying_tells_what_is_missing_and_makes_nothing(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let topology = Topology::from_iter([Entry::new(queue)]);
    for time in ["first", "second"] {
        let verified = within(format!("the {time} verification"), ctx.client.verify(&topology)).await?;
        expect_error(verified, &[ErrorKind::NotFound], "verifying a missing queue")?;
    }
    Ok(())
}

async fn what_is_deleted_is_gone_and_deleting_twice_is_fine(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    drop(sender);
    let client = ctx.another().await?;
    within("a deletion", client.delete(&queue)).await??;
    let topology = Topology::from_iter([Entry::new(queue.clone())]);
    let gone = async {
        // Some brokers take a moment.
        while client.verify(&topology).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("the queue to be gone", gone).await?;
    let verified = within("a verification", client.verify(&topology)).await?;
    expect_error(verified, &[ErrorKind::NotFound], "verifying a deleted queue")?;
    within("a second deletion", client.delete(&queue)).await??;
    within("the deletion of what never was", client.delete(&ctx.queue()?)).await??;
    Ok(())
}

async fn a_purge_removes_what_waits(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..10 {
        within("a send", sender.send(message(i))).await??;
    }
    within("a purge", ctx.client.purge(&queue)).await??;
    let mut receiver = ctx.open(&queue).await?;
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn purging_is_refused(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    let purged = within("a purge", ctx.client.purge(&queue)).await?;
    expect_error(purged, &[ErrorKind::Unsupported], "a purge")?;
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m0".to_owned()], "after a refused purge")
}

async fn stats_count_what_waits(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..6 {
        within("a send", sender.send(message(i))).await??;
    }
    let source = Source::new(queue.clone());
    // Some brokers count with a delay.
    let until = async |what: &str, wanted: &(dyn Fn(&crate::Stats) -> bool + Sync)| {
        let mut last = crate::Stats::default();
        let reached = within_time(Duration::from_secs(30), what, async {
            loop {
                last = ctx.client.stats(&source).await?;
                if wanted(&last) {
                    return Ok::<_, crate::Error>(());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        match reached.await {
            Ok(reached) => reached?,
            Err(_) => return Err(broken(format!("waited for {what}; the last figures are {last:?}"))),
        }
        // The parts say the same as the whole.
        let parts = &last.partitions;
        ensure!(parts.is_sorted_by(|a, b| a.partition < b.partition), "not in order, or one twice: {parts:?}");
        let sum: Option<u64> = parts.iter().map(|p| p.lag).sum();
        ensure!(parts.is_empty() || sum == last.lag, "the lag of the partitions is {sum:?} in all: {last:?}");
        Ok(())
    };
    let waiting = |n: u64| move |s: &crate::Stats| s.ready.or(s.lag) == Some(n);
    until("six waiting messages", &waiting(6)).await?;
    let mut receiver = ctx.open(&queue).await?;
    let held = hold(&mut receiver, 6).await?;
    for delivery in held {
        delivery.ack();
    }
    within("the flush", receiver.flush()).await??;
    until("no waiting message", &waiting(0)).await?;
    quiet(&mut receiver, QUIET).await
}

async fn stats_are_refused(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    drop(ctx.sender(&queue).await?);
    let stats = within("stats", ctx.client.stats(&Source::new(queue))).await?;
    expect_error(stats, &[ErrorKind::Unsupported], "stats").map(drop)
}

async fn a_request_gets_its_reply(ctx: Ctx) -> CaseResult {
    let (queue, missing) = (ctx.queue()?, ctx.queue()?);
    let replier = ctx.another().await?;
    let sender = within("opening the sender", async { replier.sender(&queue).await }).await??;
    let mut receiver = ctx.open(&queue).await?;
    let broker = ctx.client.broker();
    let Some(requests) = broker.requests() else {
        return Err(broken("declared, and there are none".to_owned()));
    };
    let asking = requests.request(&queue, message(7), Instant::now() + WAIT);
    let replying = async {
        let request = next_of(&mut receiver, "the request").await?;
        let (to, correlation) = (request.get_reply_to(), request.get_correlation_id());
        let (Some(to), Some(correlation)) = (to, correlation) else {
            return Err(broken("a request says where and by what name its reply is awaited".to_owned()));
        };
        let reply = Message::new("reply").to(Address::queue(to)?).correlation_id(correlation.to_owned());
        within("the reply", sender.send(reply)).await??;
        request.ack();
        Ok(())
    };
    let (reply, replied) = within("a request", join(asking, replying)).await?;
    replied?;
    let reply = reply?;
    ensure!(reply.text() == Some("reply"), "the reply is {:?}", reply.text());
    let unroutable = requests.request(&missing, message(8), Instant::now() + WAIT);
    let unroutable = within("a request to no queue", unroutable).await?;
    expect_error(unroutable, &[ErrorKind::Unroutable], "a request to no queue").map(drop)
}

async fn there_are_no_requests(ctx: Ctx) -> CaseResult {
    ensure!(ctx.client.broker().requests().is_none(), "there are requests, and they are not declared");
    Ok(())
}

async fn a_transaction_happens_whole_or_not_at_all(ctx: Ctx) -> CaseResult {
    let (from, to) = (ctx.queue()?, ctx.queue()?);
    let sender = ctx.sender(&from).await?;
    within("sends", sender.send_batch((0..4).map(message))).await?.map_err(Error::from)?;
    let (mut source, mut target) = (ctx.open(&from).await?, ctx.open(&to).await?);
    let name = from.name();
    let transactions = within("opening transactions", async { ctx.client.transactions(name).await }).await??;
    for end in ["given up", "dropped", "committed"] {
        let held = hold(&mut source, 4).await?;
        ensure!(held.iter().all(|d| d.attempt() == 1), "what is given up counts as an attempt");
        let mut tx = within("a begin", transactions.begin()).await??;
        let copies: Vec<Message> = held.iter().map(|delivery| delivery.message().clone()).collect();
        within("sends in a transaction", tx.send_batch(&to, copies)).await??;
        for delivery in held {
            tx.ack(delivery)?;
        }
        if end != "committed" {
            // Open it is not seen, and over it is not either.
            quiet(&mut target, QUIET).await?;
        }
        match end {
            "given up" => within("an abort", tx.abort()).await??,
            "dropped" => drop(tx),
            _ => within("a commit", tx.commit()).await??,
        }
    }
    expect_same(&drain(&mut target, 4).await?, &bodies(4), "from one transaction of three")?;
    quiet(&mut target, QUIET).await?;
    // Whoever opens the name shuts out who had it.
    let other = ctx.another().await?;
    let next = within("opening them again", async { other.transactions(name).await }).await??;
    let shut_out = async {
        let mut tx = transactions.begin().await?;
        tx.send(&to, message(9)).await?;
        tx.commit().await
    };
    expect_error(within("who was shut out", shut_out).await?, &[ErrorKind::Conflict], "who was shut out")?;
    let tx = within("a begin", next.begin()).await??;
    within("a commit", tx.commit()).await??;
    quiet(&mut target, QUIET).await?;
    quiet(&mut source, QUIET).await
}

async fn there_are_no_transactions(ctx: Ctx) -> CaseResult {
    ensure!(ctx.client.broker().transactions().is_none(), "there are transactions, and they are not declared");
    let opened = within("opening transactions", async { ctx.client.transactions("conformance").await }).await?;
    expect_error(opened, &[ErrorKind::Unsupported], "opening transactions").map(drop)
}

async fn an_address_can_do_no_more_than_its_broker(ctx: Ctx) -> CaseResult {
    let most = &ctx.probe.broker;
    for (what, own) in
        [("a sender", &ctx.probe.sender), ("a receiver", &ctx.probe.receiver), ("a group", &ctx.probe.topic)]
    {
        let more = more_than(own, most);
        ensure!(more.is_empty(), "{what} declares more than its broker: {}", more.join(", "));
        let figures = [
            ("delayed_send without max_delay", own.delayed_send && own.max_delay.is_zero()),
            ("max_delay without delayed_send", !own.delayed_send && !own.max_delay.is_zero()),
            ("ttl without max_ttl", own.ttl && own.max_ttl.is_zero()),
            ("max_ttl without ttl", !own.ttl && !own.max_ttl.is_zero()),
            ("delayed_retry without max_retry_delay", own.delayed_retry && own.max_retry_delay.is_zero()),
            ("max_batch of nothing", own.max_batch == 0),
            ("max_batch_bytes below max_message_bytes", own.max_batch_bytes < own.max_message_bytes),
        ];
        for (contradiction, present) in figures {
            ensure!(!present, "{what} declares {contradiction}");
        }
    }
    Ok(())
}

fn more_than(own: &Capabilities, most: &Capabilities) -> Vec<&'static str> {
    [
        ("max_message_bytes", own.max_message_bytes > most.max_message_bytes),
        ("max_batch", own.max_batch > most.max_batch),
        ("max_delay", own.max_delay > most.max_delay),
        ("max_ttl", own.max_ttl > most.max_ttl),
        ("max_headers", own.max_headers > most.max_headers),
        ("max_retry_delay", own.max_retry_delay > most.max_retry_delay),
        ("topics", own.topics && !most.topics),
        ("group_backlog", own.group_backlog && !most.group_backlog),
        ("anonymous_subscribers", own.anonymous_subscribers && !most.anonymous_subscribers),
        ("delayed_send", own.delayed_send && !most.delayed_send),
        ("delayed_retry", own.delayed_retry && !most.delayed_retry),
        ("ttl", own.ttl && !most.ttl),
        ("priority", own.priority && !most.priority),
        ("dead_letter", own.dead_letter && !most.dead_letter),
        ("tombstones", own.tombstones && !most.tombstones),
        ("typed_headers", own.typed_headers && !most.typed_headers),
        ("replay", own.replay && !most.replay),
        ("requests", own.requests && !most.requests),
    ]
    .into_iter()
    .filter_map(|(name, more)| more.then_some(name))
    .collect()
}

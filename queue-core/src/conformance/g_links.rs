//! G, second part. The link between client and broker is cut in each direction, and slow.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::case::{CaseResult, Ctx, Failure, broken, cases, drain, ensure, expect_same, open, within, within_time};
use super::g_faults::length;
use super::link::{Flow, Link, Towards};
use super::load::Load;
use crate::client::Client;
use crate::event::EventKind;

cases! { "g_links":
    a_link_cut_towards_the_broker_loses_nothing_confirmed;
    a_link_cut_towards_the_client_loses_nothing_confirmed;
    a_link_cut_in_both_directions_loses_nothing_confirmed;
    a_slow_link_slows_and_breaks_nothing;
}

/// A link of the case's own to the broker.
async fn link(ctx: &Ctx) -> CaseResult<Link> {
    let upstream = ctx.harness.upstream().ok_or(Failure::Cannot("the harness cannot put a link between"))?;
    Link::to(upstream).await.map_err(|error| broken(format!("a port for the link: {error}")))
}

/// A client that reaches the broker through the link.
async fn through(ctx: &Ctx, link: &Link) -> CaseResult<Client> {
    let (url, upstream) = (ctx.harness.url().unwrap_or_default(), ctx.harness.upstream());
    let direct = upstream.map(|address| address.to_string()).unwrap_or_default();
    ensure!(url.contains(&direct), "the URL of the broker does not hold {direct}");
    let url = url.replace(&direct, &link.address().to_string());
    let client = within("a connection through the link", ctx.harness.connect_to(&url)).await??;
    ctx.made.clients.lock().push(client.clone());
    Ok(client)
}

async fn cut(ctx: Ctx, directions: &[Towards], what: &str) -> CaseResult {
    let link = link(&ctx).await?;
    let load = Load::between(&ctx, through(&ctx, &link).await?, through(&ctx, &link).await?).await?;
    link.set(directions, Flow::Held);
    sleep(length(&ctx)).await;
    link.set(directions, Flow::Open);
    load.finish(&ctx, what, 1).await
}

async fn a_link_cut_towards_the_broker_loses_nothing_confirmed(ctx: Ctx) -> CaseResult {
    cut(ctx, &[Towards::Broker], "cut off towards the broker").await
}

async fn a_link_cut_towards_the_client_loses_nothing_confirmed(ctx: Ctx) -> CaseResult {
    cut(ctx, &[Towards::Client], "cut off towards the client").await
}

async fn a_link_cut_in_both_directions_loses_nothing_confirmed(ctx: Ctx) -> CaseResult {
    cut(ctx, &[Towards::Broker, Towards::Client], "cut off in both directions").await
}

async fn a_slow_link_slows_and_breaks_nothing(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 300;
    const BYTES: usize = 1024;
    const RATE: u32 = 64 * 1024;
    /// What the broker and the client put around the messages can only make it slower.
    const LEAST: Duration = Duration::from_secs(4);
    let link = link(&ctx).await?;
    let (from, to) = (through(&ctx, &link).await?, through(&ctx, &link).await?);
    let queue = ctx.queue()?;
    let sender = within("a sender", async { from.sender(&queue).await }).await??;
    let mut receiver = open(ctx.receiver_of(&to, &queue)).await?;
    let mut events = [from.events(), to.events()];
    link.set(&[Towards::Broker, Towards::Client], Flow::Slow(RATE));
    let started = Instant::now();
    let names: Vec<_> = (0..COUNT).map(|i| format!("{i:0>BYTES$}")).collect();
    let sent = within_time(Duration::from_secs(60), "a slow batch", sender.send_batch(names.clone())).await?;
    sent.map_err(|error| broken(format!("a batch over a slow link: {error:?}")))?;
    let took = started.elapsed();
    ensure!(took >= LEAST, "{COUNT} KiB took {took:?}: the link is not slow");
    expect_same(&drain(&mut receiver, COUNT).await?, &names, "over a slow link")?;
    let mut lost = 0;
    for events in &mut events {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, events.next()).await {
            lost += usize::from(event.kind == EventKind::Disconnected);
        }
    }
    ensure!(lost == 0, "{lost} connections were lost because their link was slow");
    Ok(())
}

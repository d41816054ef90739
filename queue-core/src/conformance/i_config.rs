//! I. Configuration is strict, says what it wants, and tells no secret.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::time::Duration;

use super::case::{
    CLOSE, CaseResult, Ctx, QUIET, cases, ensure, expect_error, hold, message, open, quiet, refuses_to_open, within,
};
use crate::address::Address;
use crate::bindings::Bindings;
use crate::client::Client;
use crate::config::Endpoint;
use crate::error::{Error, ErrorKind};
use crate::receiver::ReceiverBuilder;

cases! { "i_config":
    url_endpoint_file_and_builder_give_the_same_behaviour;
    the_nearer_option_wins;
    an_unknown_option_is_refused_with_the_nearest_name;
    a_value_that_does_not_fit_is_refused_with_its_option;
    an_unknown_scheme_is_refused_with_the_nearest_name;
    no_secret_shows_in_what_is_printed;
    a_name_is_a_queue_or_a_topic ["topics", |p| p.broker.topics, else a_topic_is_refused];
    names_that_are_reserved_are_refused;
}

/// The URL of the harness with another option.
fn with_option(ctx: &Ctx, option: &str) -> String {
    let url = ctx.harness.url().unwrap_or_default();
    let join = if url.contains('?') { '&' } else { '?' };
    format!("{url}{join}{option}")
}

async fn connect(ctx: &Ctx, url: &str) -> CaseResult<Client> {
    let client = within("a connection", Client::connect_with(url, ctx.harness.drivers())).await??;
    ctx.made.clients.lock().push(client.clone());
    Ok(client)
}

/// Fails unless the receiver holds at most `most` unanswered messages.
async fn holds_at_most(ctx: &Ctx, queue: &Address, receiver: ReceiverBuilder, most: usize) -> CaseResult {
    let sender = ctx.sender(queue).await?;
    for i in 0..most + 3 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = open(receiver).await?;
    let held = hold(&mut receiver, most).await?;
    quiet(&mut receiver, QUIET).await?;
    for delivery in held {
        delivery.ack();
    }
    within("the close", receiver.close(CLOSE)).await?;
    Ok(())
}

async fn url_endpoint_file_and_builder_give_the_same_behaviour(ctx: Ctx) -> CaseResult {
    let url = with_option(&ctx, "prefetch=3");
    let queue = ctx.queue()?;
    let client = connect(&ctx, &url).await?;
    holds_at_most(&ctx, &queue, client.receiver(&queue), 3).await?;

    let queue = ctx.queue()?;
    let mut endpoint: Endpoint = ctx.harness.url().unwrap_or_default().parse()?;
    endpoint.options.insert("prefetch".into(), "3".into());
    let connected = Client::connect_endpoint(endpoint, ctx.harness.drivers());
    let client = within("a connection", connected).await??;
    ctx.made.clients.lock().push(client.clone());
    holds_at_most(&ctx, &queue, client.receiver(&queue), 3).await?;

    let queue = ctx.queue()?;
    let file = format!(
        "[brokers.main]\nurl = {:?}\n[senders.out]\nto = \"{queue}\"\n[receivers.in]\nbroker = \"main\"\nfrom = \
         \"{queue}\"\nprefetch = 3\n",
        ctx.harness.url().unwrap_or_default()
    );
    let connections = within("the connections", Bindings::parse(&file)?.connect_with(ctx.harness.drivers())).await??;
    ctx.made.clients.lock().extend(connections.client("main").cloned());
    let sender = within("a sender", async { connections.sender("out").await }).await??;
    ensure!(sender.address() == &queue, "the sender of the file sends to {:?}", sender.address());
    holds_at_most(&ctx, &queue, connections.receiver("in"), 3).await?;
    let unknown = within("an unknown name", async { connections.receiver("inn").await }).await?;
    expect_error(unknown.map(drop), &[ErrorKind::InvalidConfig], "a receiver that is not in the file")?;

    let queue = ctx.queue()?;
    let client = connect(&ctx, &ctx.harness.url().unwrap_or_default()).await?;
    holds_at_most(&ctx, &queue, client.receiver(&queue).prefetch(3), 3).await
}

async fn the_nearer_option_wins(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let client = connect(&ctx, &with_option(&ctx, "prefetch=7")).await?;
    holds_at_most(&ctx, &queue, client.receiver(&queue).prefetch(2), 2).await
}

async fn an_unknown_option_is_refused_with_the_nearest_name(ctx: Ctx) -> CaseResult {
    let mut options = vec![("prefech", "prefetch"), ("max_delivery", "max_deliveries"), ("dedline", "deadline")];
    let scheme = ctx.harness.url().unwrap_or_default();
    let scheme = scheme.split("://").next().unwrap_or_default();
    let own = ctx.harness.drivers().iter().find(|d| d.schemes.contains(&scheme)).map(|d| (d.options)());
    let own: Vec<(String, &str)> = own.unwrap_or_default().iter().map(|name| (format!("{name}x"), *name)).collect();
    options.extend(own.iter().map(|(wrong, right)| (wrong.as_str(), *right)));
    for (wrong, right) in options {
        let url = with_option(&ctx, &format!("{wrong}=3"));
        let connected = within("the refusal", Client::connect_with(&url, ctx.harness.drivers())).await?;
        let error = expect_error(connected.map(drop), &[ErrorKind::InvalidConfig], &format!("the option {wrong}"))?;
        ensure!(error.to_string().contains(wrong), "the error does not name {wrong}: {error}");
        let near = error.context("did_you_mean");
        ensure!(near == Some(right), "for {wrong} the error suggests {near:?}, not {right}");
    }
    let url = ctx.harness.url().unwrap_or_default();
    let file = format!("[brokers.main]\nurl = {url:?}\n\n[receivers.in]\nfrom = \"x\"\nprefech = 3\n");
    let error = expect_error(Bindings::parse(&file).map(drop), &[ErrorKind::InvalidConfig], "prefech in a file")?;
    ensure!(error.context("did_you_mean") == Some("prefetch"), "the error suggests nothing: {error}");
    ensure!(error.context("line") == Some("6"), "the error does not name line 6: {error}");
    Ok(())
}

async fn a_value_that_does_not_fit_is_refused_with_its_option(ctx: Ctx) -> CaseResult {
    for (option, value) in [("prefetch", "many"), ("lease", "soon"), ("declare", "maybe"), ("window", "-1")] {
        let url = with_option(&ctx, &format!("{option}={value}"));
        let connected = within("the refusal", Client::connect_with(&url, ctx.harness.drivers())).await?;
        let error = expect_error(connected.map(drop), &[ErrorKind::InvalidConfig], &format!("{option}={value}"))?;
        ensure!(error.to_string().contains(option), "the error does not name {option}: {error}");
    }
    let queue = ctx.queue()?;
    for wrong in [
        ctx.receiver(&queue).prefetch(0),
        ctx.receiver(&queue).max_deliveries(0),
        ctx.receiver(&queue).lease(Duration::ZERO),
        ctx.receiver(&queue).backoff(Duration::from_secs(2), Duration::from_secs(1)),
    ] {
        let shown = format!("{wrong:?}");
        let opened = within("the refusal", async { wrong.await }).await?;
        expect_error(opened.map(drop), &[ErrorKind::InvalidConfig, ErrorKind::InvalidInput], &shown)?;
    }
    Ok(())
}

async fn an_unknown_scheme_is_refused_with_the_nearest_name(ctx: Ctx) -> CaseResult {
    let url = ctx.harness.url().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or((&url, ""));
    let wrong = format!("{scheme}x://{rest}");
    let connected = within("the refusal", Client::connect_with(&wrong, ctx.harness.drivers())).await?;
    let error = expect_error(connected.map(drop), &[ErrorKind::InvalidConfig], "an unknown scheme")?;
    let near = error.context("did_you_mean");
    ensure!(near.is_some(), "the error suggests nothing: {error}");
    Ok(())
}

/// A password that no broker has.
const SECRET: &str = "conformance-hunter2";

fn all_of(error: &Error) -> String {
    let mut shown = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        shown.push_str(&format!(" {error} {error:?}"));
        cause = error.source();
    }
    shown
}

fn tells_nothing(what: &str, shown: &str) -> CaseResult {
    ensure!(!shown.contains(SECRET), "{what} shows a secret");
    Ok(())
}

async fn no_secret_shows_in_what_is_printed(ctx: Ctx) -> CaseResult {
    fn shown(thing: &impl Debug) -> String {
        format!("{thing:?} {thing:#?}")
    }
    let url = ctx.harness.url().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or((&url, ""));
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let hosts = rest[..at].rsplit('@').next().unwrap_or_default();
    let secret = format!("{scheme}://conformance:{SECRET}@{hosts}{}", &rest[at..]);
    let endpoint: Endpoint = secret.parse()?;
    ensure!(endpoint.password.as_ref().is_some_and(|p| p.expose() == SECRET), "the password is not understood");
    tells_nothing("an endpoint", &format!("{endpoint} {}", shown(&endpoint)))?;
    let file = format!("[brokers.main]\nurl = {secret:?}\n[receivers.in]\nfrom = \"x\"\n");
    let bindings = Bindings::parse(&file)?;
    tells_nothing("the bindings of a file", &shown(&bindings))?;
    for broken in [
        file.replace("from", "form"),
        file.replace("[receivers.in]", "[receivers.in"),
        file.replace("://", ":/"),
        file.replace("\"x\"", "7.."),
        file.replace("url", "urll"),
    ] {
        if let Err(error) = Bindings::parse(&broken) {
            tells_nothing("the error of a wrong file", &all_of(&error))?;
        }
    }
    for wrong in [format!("{secret}{}no_such_option=1", if secret.contains('?') { '&' } else { '?' }), secret] {
        // Where nobody asks for a password this connects; elsewhere it is refused, one way or another.
        let connected = within("a connection", Client::connect_with(&wrong, ctx.harness.drivers())).await?;
        match connected {
            Err(error) => tells_nothing("the error of a wrong URL", &all_of(&error))?,
            Ok(client) => {
                ctx.made.clients.lock().push(client.clone());
                let queue = ctx.queue()?;
                let all = format!(
                    "{} {} {} {}",
                    shown(&client),
                    shown(client.broker()),
                    shown(&client.sender(&queue)),
                    shown(&client.receiver(&queue))
                );
                tells_nothing("a client", &all)?;
                if let Err(error) = within("a sender", async { client.sender(&queue).await }).await? {
                    tells_nothing("the error of an open", &all_of(&error))?;
                }
                tells_nothing("the health", &shown(&client.health()))?;
            }
        }
    }
    Ok(())
}

async fn a_topic_is_refused(ctx: Ctx) -> CaseResult {
    let topic = ctx.topic()?;
    refuses_to_open(ctx.receiver(&topic).group("g"), "a topic").await
}

async fn a_name_is_a_queue_or_a_topic(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    drop(ctx.sender(&queue).await?);
    let topic = Address::topic(queue.name())?;
    let opened = within("the refusal", async { ctx.client.sender(&topic).await }).await?;
    expect_error(opened.map(drop), &[ErrorKind::Conflict], "a queue used as a topic")?;
    let opened = within("the refusal", async { ctx.client.receiver(&topic).group("g").await }).await?;
    expect_error(opened.map(drop), &[ErrorKind::Conflict], "a queue used as a topic").map(drop)
}

async fn names_that_are_reserved_are_refused(ctx: Ctx) -> CaseResult {
    for name in ["", "a--b", "a b", "a\nb", "topic:", &"x".repeat(300)] {
        let opened = within("the refusal", async { ctx.client.sender(name).await }).await?;
        expect_error(opened.map(drop), &[ErrorKind::InvalidInput], &format!("a sender to {name:?}"))?;
        let opened = within("the refusal", async { ctx.client.receiver(name).await }).await?;
        expect_error(opened.map(drop), &[ErrorKind::InvalidInput], &format!("a receiver of {name:?}"))?;
    }
    let queue = ctx.queue()?;
    let opened = within("the refusal", async { ctx.client.receiver(&queue).group("g").await }).await?;
    expect_error(opened.map(drop), &[ErrorKind::InvalidInput], "a group of a queue").map(drop)
}

//! J. What an observer needs arrives with the message.

use super::case::{CaseResult, Ctx, cases, ensure, message, next, next_of, open, within};
use crate::headers::HeaderValue;
use crate::message::Message;

cases! { "j_observation":
    trace_context_survives_a_send_a_retry_and_a_dead_letter;
}

/// The headers of W3C trace context, and baggage.
const CONTEXT: [(&str, &str); 3] = [
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("tracestate", "vendor=t61rcWkgMzE,other=00f067aa0ba902b7"),
    ("baggage", "tenant=acme%20inc,region=eu"),
];

fn has_context(message: &Message, of: &str) -> CaseResult {
    for (name, value) in CONTEXT {
        let found: Vec<_> = message.headers().get_all(name).collect();
        ensure!(found == [&HeaderValue::Str(value.into())], "{of}: `{name}` became {found:?}");
    }
    Ok(())
}

async fn trace_context_survives_a_send_a_retry_and_a_dead_letter(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let sent = CONTEXT.into_iter().fold(message(1), |message, (name, value)| message.header(name, value));
    within("a send", sender.send(sent)).await??;
    let first = next(&mut receiver).await?;
    has_context(&first, "the first delivery")?;
    first.retry();
    let again = next_of(&mut receiver, "the retry").await?;
    has_context(&again, "the retry")?;
    if !ctx.probe.receiver.dead_letter {
        again.ack();
        return Ok(());
    }
    again.reject("no");
    let mut dead = open(ctx.receiver(&queue.dead_letter()).discard_dead_letters()).await?;
    let letter = next_of(&mut dead, "the dead letter").await?;
    has_context(&letter, "the dead letter")?;
    letter.ack();
    Ok(())
}

//! C. Who receives what, how much, and how fast.

use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::case::{
    BACKOFF, CLOSE, CaseResult, Ctx, Failure, QUIET, WAIT, bodies, body, broken, cases, drain, ensure, expect_error,
    expect_same, hold, message, next, next_of, open, quiet, within, within_time,
};
use crate::delivery::Answered;
use crate::error::ErrorKind;
use crate::message::Message;
use crate::receiver::Receiver;
use crate::sender::Sender;

cases! { "c_receive":
    competing_receivers_share_and_nothing_comes_twice;
    never_more_than_prefetch_are_unanswered;
    what_is_over_the_prefetch_of_one_receiver_goes_to_another;
    a_message_over_the_prefetched_bytes_still_passes;
    half_of_the_held_answered_lets_the_flow_resume;
    a_batch_holds_at_most_what_was_asked_for;
    a_batch_waits_at_most_as_long_as_asked_for;
    one_bad_message_in_a_batch_fails_alone;
    a_paused_receiver_gets_nothing_until_it_resumes;
    a_receiver_is_a_stream_that_ends_with_its_close;
    a_stopped_receiver_gives_nothing_and_takes_answers;
}

/// Receivers that compete, each in a task of its own that works a little on every message.
pub(super) struct Crowd {
    workers: JoinSet<()>,
    found: mpsc::Receiver<(usize, String)>,
}

impl Crowd {
    /// Sets the receivers to work, and sends until each of them got something: a group is settled when everybody has
    /// a share.
    pub(super) async fn settled(sender: &Sender, receivers: Vec<Receiver>) -> CaseResult<Self> {
        const WORK: Duration = Duration::from_millis(5);
        let (tell, found) = mpsc::channel(16);
        let mut workers = JoinSet::new();
        let mut idle: Vec<usize> = (0..receivers.len()).collect();
        for (index, mut receiver) in receivers.into_iter().enumerate() {
            let tell = tell.clone();
            workers.spawn(async move {
                while let Some(Ok(delivery)) = receiver.next().await {
                    tokio::time::sleep(WORK).await;
                    let got = body(&delivery);
                    delivery.ack();
                    if tell.send((index, got)).await.is_err() {
                        break;
                    }
                }
            });
        }
        let mut crowd = Self { workers, found };
        let settle = async {
            let mut number = 0;
            while !idle.is_empty() {
                for _ in 0..24 {
                    number += 1;
                    sender.send(Message::new("warm-up").key(format!("k{number}"))).await?;
                }
                while let Ok(Some((index, _))) =
                    tokio::time::timeout(Duration::from_millis(300), crowd.found.recv()).await
                {
                    idle.retain(|i| *i != index);
                }
            }
            Ok::<_, crate::Error>(())
        };
        within_time(WAIT * 2, "every receiver to get a share", settle).await??;
        Ok(crowd)
    }

    /// Fails unless exactly the messages 0 to `count` come, once each.
    pub(super) async fn gets(mut self, count: usize) -> CaseResult {
        let mut got = Vec::new();
        while got.len() < count {
            let found = within(format!("message {} of {count}", got.len() + 1), self.found.recv()).await?;
            got.extend(found.map(|(_, body)| body).filter(|b| b != "warm-up"));
        }
        if let Ok(more) = tokio::time::timeout(QUIET, self.found.recv()).await {
            return Err(broken(format!("{more:?} came on top")));
        }
        expect_same(&got, &bodies(count), "what the receivers got together")?;
        self.workers.shutdown().await;
        Ok(())
    }
}

async fn competing_receivers_share_and_nothing_comes_twice(ctx: Ctx) -> CaseResult {
    const COUNT: usize = 300;
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receivers = Vec::new();
    for _ in 0..3 {
        receivers.push(open(ctx.receiver_of(&ctx.another().await?, &queue).prefetch(4)).await?);
    }
    let crowd = Crowd::settled(&sender, receivers).await?;
    if let Err(error) = within("the batch", sender.send_batch((0..COUNT).map(message))).await? {
        return Err(broken(format!("the batch failed: {error:?}")));
    }
    crowd.gets(COUNT).await
}

async fn never_more_than_prefetch_are_unanswered(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..12 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut first = open(ctx.receiver(&queue).prefetch(5)).await?;
    let mut held = hold(&mut first, 5).await?;
    quiet(&mut first, QUIET).await?;
    let mut got = Vec::new();
    while let Some(delivery) = held.pop() {
        got.push(body(&delivery));
        delivery.ack();
        if got.len() <= 7 {
            held.push(next_of(&mut first, "one more after an answer").await?);
        }
        ensure!(held.len() <= 5, "{} are held", held.len());
    }
    expect_same(&got, &bodies(12), "all together")
}

async fn what_is_over_the_prefetch_of_one_receiver_goes_to_another(ctx: Ctx) -> CaseResult {
    if ctx.probe.receiver.replay {
        return Err(Failure::Cannot("a log gives what is left of a partition to nobody else"));
    }
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut first = open(ctx.receiver(&queue).prefetch(5)).await?;
    for i in 0..12 {
        within("a send", sender.send(message(i))).await??;
    }
    let held = hold(&mut first, 5).await?;
    // The first holds five and has not fetched a sixth.
    let mut second = open(ctx.receiver_of(&ctx.another().await?, &queue)).await?;
    let mut got = drain(&mut second, 7).await?;
    for delivery in held {
        got.push(body(&delivery));
        delivery.ack();
    }
    expect_same(&got, &bodies(12), "both together")?;
    quiet(&mut second, QUIET).await
}

async fn a_message_over_the_prefetched_bytes_still_passes(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = open(ctx.receiver(&queue).prefetch_bytes(1000)).await?;
    for i in 0..5 {
        within("a send", sender.send(message(i).header("pad", "x".repeat(5000)))).await??;
    }
    expect_same(&drain(&mut receiver, 5).await?, &bodies(5), "messages larger than what may be prefetched")?;
    quiet(&mut receiver, QUIET).await
}

async fn half_of_the_held_answered_lets_the_flow_resume(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..30 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = open(ctx.receiver(&queue).prefetch(10)).await?;
    let mut held = hold(&mut receiver, 10).await?;
    let mut got: Vec<String> = Vec::new();
    // The newer half: the older ones stay.
    for delivery in held.drain(5..) {
        got.push(body(&delivery));
        delivery.ack();
    }
    for _ in 0..20 {
        let delivery = next_of(&mut receiver, "the flow beside five held ones").await?;
        got.push(body(&delivery));
        delivery.ack();
    }
    for delivery in held {
        got.push(body(&delivery));
        delivery.ack();
    }
    expect_same(&got, &bodies(30), "all together")
}

async fn a_batch_holds_at_most_what_was_asked_for(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..25 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = ctx.open(&queue).await?;
    let mut got = Vec::new();
    while got.len() < 25 {
        let batch = within("a batch", receiver.receive_batch(4)).await??;
        ensure!((1..=4).contains(&batch.len()), "a batch of at most 4 holds {}", batch.len());
        got.extend(batch.iter().map(|m| body(&m)));
        batch.ack();
    }
    expect_same(&got, &bodies(25), "all batches")?;
    quiet(&mut receiver, QUIET).await
}

async fn a_batch_waits_at_most_as_long_as_asked_for(ctx: Ctx) -> CaseResult {
    const TIME: Duration = Duration::from_millis(500);
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let started = Instant::now();
    let batch = within("an empty batch", receiver.receive_batch_within(10, TIME)).await??;
    ensure!(batch.is_empty(), "{} messages came from nowhere", batch.len());
    ensure!(started.elapsed() >= TIME, "an empty batch came after {:?}", started.elapsed());
    ensure!(started.elapsed() < TIME + WAIT / 2, "an empty batch took {:?}", started.elapsed());
    let sender = ctx.sender(&queue).await?;
    for i in 0..3 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut got = Vec::new();
    while got.len() < 3 {
        let batch = within("a batch", receiver.receive_batch_within(10, TIME)).await??;
        got.extend(batch.iter().map(|m| body(&m)));
        batch.ack();
        ensure!(started.elapsed() < WAIT, "only {got:?} came");
    }
    expect_same(&got, &bodies(3), "the batches")
}

async fn one_bad_message_in_a_batch_fails_alone(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..6 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = ctx.open(&queue).await?;
    let (mut seen, mut again) = (Vec::new(), 0);
    while again == 0 || seen.len() < 6 {
        for delivery in within("a batch", receiver.receive_batch(10)).await?? {
            match (body(&delivery).as_str(), delivery.attempt()) {
                ("m3", 1) => {
                    seen.push(body(&delivery));
                    delivery.retry();
                }
                ("m3", 2) => {
                    again += 1;
                    delivery.ack();
                }
                (_, 1) => {
                    seen.push(body(&delivery));
                    delivery.ack();
                }
                (other, attempt) => return Err(broken(format!("{other} came with attempt {attempt}"))),
            }
        }
    }
    expect_same(&seen, &bodies(6), "first attempts")?;
    quiet(&mut receiver, QUIET + BACKOFF * 2).await
}

async fn a_paused_receiver_gets_nothing_until_it_resumes(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = ctx.open(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    drain(&mut receiver, 1).await?;
    receiver.pause();
    within("a send", sender.send(message(1))).await??;
    quiet(&mut receiver, QUIET).await?;
    receiver.resume();
    expect_same(&drain(&mut receiver, 1).await?, &["m1".to_owned()], "after the pause")?;
    // What was given back by a pause is not lost, and another receiver may take it.
    for i in 2..22 {
        within("a send", sender.send(message(i))).await??;
    }
    let first = next(&mut receiver).await?;
    receiver.pause();
    let held = body(&first);
    first.ack();
    receiver.resume();
    let mut got = drain(&mut receiver, 19).await?;
    got.push(held);
    let expected: Vec<_> = (2..22).map(|i| format!("m{i}")).collect();
    expect_same(&got, &expected, "across a pause")
}

async fn a_receiver_is_a_stream_that_ends_with_its_close(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    for i in 0..5 {
        within("a send", sender.send(message(i))).await??;
    }
    let mut receiver = ctx.open(&queue).await?;
    let control = receiver.control();
    let mut got = Vec::new();
    for _ in 0..5 {
        match within("the stream", StreamExt::next(&mut receiver)).await? {
            Some(delivery) => {
                let delivery = delivery?;
                got.push(body(&delivery));
                delivery.ack();
            }
            None => return Err(broken("the stream ended while open".into())),
        }
    }
    expect_same(&got, &bodies(5), "the stream")?;
    within("the close", control.close(CLOSE)).await?;
    let end = within("the end of the stream", StreamExt::next(&mut receiver)).await?;
    ensure!(end.is_none(), "{end:?} came after the close");
    let received = within("an answer after the end", receiver.receive()).await?;
    expect_error(received, &[ErrorKind::Closed], "a receive after the close").map(drop)
}

async fn a_stopped_receiver_gives_nothing_and_takes_answers(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(0))).await??;
    let mut receiver = ctx.open(&queue).await?;
    let held = next(&mut receiver).await?;
    within("the stop", receiver.stop()).await?;
    within("a send", sender.send(message(1))).await??;
    let end = within("the end", receiver.next()).await?;
    ensure!(end.is_none(), "{end:?} came after the stop");
    let answered = within("a confirmed answer", held.ack_confirmed()).await??;
    ensure!(answered == Answered::Accepted, "after a stop the answer came to {answered:?}");
    let report = within("the close", receiver.close(CLOSE)).await?;
    ensure!(report.is_clean(), "{report:?}");
    let mut receiver = ctx.open(&queue).await?;
    expect_same(&drain(&mut receiver, 1).await?, &["m1".to_owned()], "after the stop")?;
    quiet(&mut receiver, QUIET).await
}

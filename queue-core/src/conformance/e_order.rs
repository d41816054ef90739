//! E. Order, where it is declared.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::case::{
    BACKOFF, CaseResult, Ctx, WAIT, body, broken, cases, ensure, message, next, next_of, open, quiet, refuses_to_open,
    within, within_time,
};
use crate::capability::Ordering;
use crate::message::Message;
use crate::sender::Sender;

cases! { "e_order":
    messages_of_a_key_arrive_in_order
        ["ordering", |p| p.receiver.ordering != Ordering::None, else order_is_refused];
    all_messages_arrive_in_order
        ["ordering = full", |p| p.receiver.ordering == Ordering::Full, else full_order_is_not_promised];
    a_key_is_with_one_worker_at_a_time
        ["ordering", |p| p.receiver.ordering != Ordering::None, else order_is_refused];
    order_survives_a_retry_while_other_keys_go_on
        ["ordering", |p| p.receiver.ordering != Ordering::None, else order_is_refused];
}

const KEYS: usize = 5;
const EACH: usize = 20;

async fn order_is_refused(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    refuses_to_open(ctx.receiver(&queue).ordering(Ordering::PerKey), "a receiver in order of keys").await
}

async fn full_order_is_not_promised(ctx: Ctx) -> CaseResult {
    // Whether messages come in order by chance proves nothing; that a receiver can't ask for it does.
    let queue = ctx.queue()?;
    refuses_to_open(ctx.receiver(&queue).ordering(Ordering::Full), "a receiver in full order").await
}

/// Sends `EACH` messages for each of `KEYS` keys in turns, one batch.
async fn send_in_turns(sender: &Sender) -> CaseResult {
    let batch = (0..EACH).flat_map(|n| (0..KEYS).map(move |k| Message::new(format!("{n}")).key(format!("key-{k}"))));
    match within("the batch", sender.send_batch(batch)).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(broken(format!("the batch failed: {error:?}"))),
    }
}

/// The key as text, and the number of the message in it.
fn place(message: &Message) -> CaseResult<(String, usize)> {
    let key = message.get_key().map(|k| String::from_utf8_lossy(k).into_owned());
    match (key, body(message).parse()) {
        (Some(key), Ok(number)) => Ok((key, number)),
        _ => Err(broken(format!("{:?} has no place in any order", body(message)))),
    }
}

async fn messages_of_a_key_arrive_in_order(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = open(ctx.receiver(&queue).ordering(Ordering::PerKey)).await?;
    send_in_turns(&sender).await?;
    let mut reached: HashMap<String, usize> = HashMap::new();
    for _ in 0..KEYS * EACH {
        let delivery = next(&mut receiver).await?;
        let (key, number) = place(&delivery)?;
        let expected = reached.entry(key.clone()).or_default();
        ensure!(number == *expected, "message {number} of {key} came where {expected} was due");
        *expected += 1;
        delivery.ack();
    }
    Ok(())
}

async fn all_messages_arrive_in_order(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = ctx.open(&queue).await?;
    for i in 0..20 {
        within("a send", sender.send(message(i))).await??;
    }
    if let Err(error) = within("the batch", sender.send_batch((20..200).map(message))).await? {
        return Err(broken(format!("the batch failed: {error:?}")));
    }
    for i in 0..200 {
        let delivery = next(&mut receiver).await?;
        ensure!(body(&delivery) == format!("m{i}"), "{} came where m{i} was due", body(&delivery));
        delivery.ack();
    }
    Ok(())
}

async fn a_key_is_with_one_worker_at_a_time(ctx: Ctx) -> CaseResult {
    #[derive(Default)]
    struct Seen {
        working: HashMap<String, bool>,
        done: BTreeMap<String, Vec<usize>>,
        overlap: Option<String>,
    }
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = open(ctx.receiver(&queue).ordering(Ordering::PerKey)).await?;
    send_in_turns(&sender).await?;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let mut workers = tokio::task::JoinSet::new();
    let mut rng = ctx.rng();
    let work = async {
        for _ in 0..KEYS * EACH {
            let delivery = receiver.receive().await?;
            let (seen, pause) = (seen.clone(), Duration::from_millis(rng.u64(..20)));
            workers.spawn(async move {
                let Ok((key, number)) = place(&delivery) else { return };
                if seen.lock().working.insert(key.clone(), true) == Some(true) {
                    seen.lock().overlap = Some(key.clone());
                }
                tokio::time::sleep(pause).await;
                let mut seen = seen.lock();
                seen.working.insert(key.clone(), false);
                seen.done.entry(key).or_default().push(number);
                drop(seen);
                delivery.ack();
            });
        }
        while workers.join_next().await.is_some() {}
        Ok::<_, crate::Error>(())
    };
    within_time(WAIT * 2, "all workers", work).await??;
    let seen = seen.lock();
    ensure!(seen.overlap.is_none(), "two workers had a message of {:?}", seen.overlap);
    ensure!(seen.done.len() == KEYS, "{} keys were seen", seen.done.len());
    for (key, numbers) in &seen.done {
        ensure!(numbers.iter().copied().eq(0..EACH), "{key} was worked on in the order {numbers:?}");
    }
    Ok(())
}

async fn order_survives_a_retry_while_other_keys_go_on(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    let mut receiver = open(ctx.receiver(&queue).ordering(Ordering::PerKey)).await?;
    send_in_turns(&sender).await?;
    let mut reached: HashMap<String, usize> = HashMap::new();
    // The key whose sixth message comes first: the other keys have most of theirs to come, in whatever order a
    // partitioned log hands them out.
    let mut failed: Option<String> = None;
    let (mut others_meanwhile, mut total, mut waiting) = (0, 0, false);
    while total < KEYS * EACH {
        let delivery = next_of(&mut receiver, &format!("message {} of {}", total + 1, KEYS * EACH)).await?;
        let (key, number) = place(&delivery)?;
        let expected = reached.entry(key.clone()).or_default();
        ensure!(number == *expected, "message {number} of {key} came where {expected} was due");
        if number == 5 && failed.is_none() {
            (failed, waiting) = (Some(key), true);
            delivery.retry_after(BACKOFF * 5);
            continue;
        }
        if failed.as_ref() == Some(&key) {
            let attempt = if number == 5 { 2 } else { 1 };
            ensure!(
                delivery.attempt() == attempt,
                "message {number} of {key} came with attempt {}",
                delivery.attempt()
            );
            waiting &= number != 5;
        } else if waiting {
            others_meanwhile += 1;
        }
        *expected += 1;
        total += 1;
        delivery.ack();
    }
    ensure!(failed.is_some(), "no sixth message ever came");
    ensure!(others_meanwhile > EACH, "only {others_meanwhile} messages of other keys came during the retry of one");
    quiet(&mut receiver, BACKOFF).await
}

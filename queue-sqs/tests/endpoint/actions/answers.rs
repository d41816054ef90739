//! Deleting, and changing visibility.

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::account::Account;
use super::super::batch::{self, Numbered};
use super::super::faults::Dice;
use super::super::refusal::Refusal;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    receipt_handle: String,
    visibility_timeout: Option<i64>,
}

impl Answer {
    fn seconds(&self) -> Result<i64, Refusal> {
        self.visibility_timeout.ok_or_else(|| Refusal::missing("VisibilityTimeout"))
    }
}

pub fn delete(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let (queue, dice) = state.queue(request)?;
    let answer: Answer = super::read(request)?;
    // A single request words it as a parameter, a batch by a code of its own.
    queue.delete(&answer.receipt_handle, account.now(), dice).map_err(|refusal| as_parameter(refusal, &answer))?;
    Ok(json!({}))
}

pub fn delete_batch(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let (queue, dice) = state.queue(request)?;
    each(request, dice, |answer, dice| queue.delete(&answer.receipt_handle, account.now(), dice))
}

pub fn change(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let (queue, dice) = state.queue(request)?;
    let answer: Answer = super::read(request)?;
    let outcome = queue.change(&answer.receipt_handle, answer.seconds()?, account.now(), dice);
    outcome.map_err(|refusal| as_parameter(refusal, &answer))?;
    Ok(json!({}))
}

pub fn change_batch(account: &Account, request: &Value) -> Result<Value, Refusal> {
    let mut state = account.state();
    let (queue, dice) = state.queue(request)?;
    each(request, dice, |answer, dice| {
        answer.seconds().and_then(|s| queue.change(&answer.receipt_handle, s, account.now(), dice))
    })
}

/// Takes each answer of a batch, unless it is one to fail.
fn each(
    request: &Value,
    dice: &mut Dice,
    mut take: impl FnMut(&Answer, &mut Dice) -> Result<(), Refusal>,
) -> Result<Value, Refusal> {
    let answers: Vec<Numbered<Answer>> = batch::entries(request)?;
    let verdicts = answers.into_iter().map(|Numbered { id, entry }| {
        let verdict = if dice.fails_entry() { Err(Refusal::failed()) } else { take(&entry, dice) };
        (id, verdict.map(|()| json!({})))
    });
    Ok(batch::verdicts(verdicts.collect()))
}

fn as_parameter(refusal: Refusal, answer: &Answer) -> Refusal {
    if refusal.message.contains("expired") {
        return Refusal::invalid("ReceiptHandle", &answer.receipt_handle, "The receipt handle has expired.");
    }
    refusal
}

//! Answers on their way: deletes and changes of visibility, in batches of ten, each with its own outcome.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry as Change, DeleteMessageBatchRequestEntry as Delete,
};
use parking_lot::Mutex;
use queue_core::{AckToken, Error, ErrorKind, EventKind, Outcome, Result};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::consumer::Shared;
use crate::convert::whole_seconds;
use crate::dispatch::MAX_ENTRIES;
use crate::error::{self, Words};

/// Most requests with answers at a time.
const MAX_REQUESTS: usize = 8;
/// The pause before an answer is tried again: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What is to become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// It does not come again.
    Delete,
    /// It comes again after this time.
    Return(Duration),
    /// It stays for this time.
    Extend(Duration),
}

/// One answer on its way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    token: AckToken,
    receipt: String,
    verb: Verb,
    /// Until when it makes sense.
    ends: Instant,
    report: Option<Place>,
    number: u64,
    /// When it goes at the latest.
    due: Instant,
    tries: u32,
    /// A try of it ended without telling whether the broker took it.
    unsure: bool,
}

impl Outgoing {
    /// The error of an answer whose lease ended before it was taken, as far as is known.
    fn lost(&self) -> Error {
        let outcome = if self.unsure { Outcome::Unknown } else { Outcome::NotSent };
        Error::new(ErrorKind::LeaseLost, "the lease ended before the broker took the answer")
            .with_operation(if self.verb == Verb::Delete { "ack" } else { "settle" })
            .with_outcome(outcome)
    }
}

/// Where the outcome of an answer is reported.
#[derive(Debug)]
pub(crate) struct Place {
    report: Arc<Report>,
    index: usize,
    told: bool,
}

/// The outcomes of the answers of one call.
#[derive(Debug)]
pub(crate) struct Report {
    refused: Mutex<Refused>,
    sender: Option<oneshot::Sender<Refused>>,
}

/// Index and error of each answer that was refused.
type Refused = Vec<(usize, Error)>;

impl Report {
    pub(crate) fn new() -> (Arc<Self>, oneshot::Receiver<Refused>) {
        let (sender, receiver) = oneshot::channel();
        (Arc::new(Self { refused: Mutex::default(), sender: Some(sender) }), receiver)
    }

    pub(crate) fn place(self: &Arc<Self>, index: usize) -> Place {
        Place { report: self.clone(), index, told: false }
    }

    pub(crate) fn refuse(&self, index: usize, error: Error) {
        self.refused.lock().push((index, error));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            // Nobody may be waiting any more.
            let _ = sender.send(std::mem::take(self.refused.get_mut()));
        }
    }
}

impl Place {
    /// Refuses an answer that never went out.
    pub(crate) fn refuse(self, error: Error) {
        self.tell(Err(error));
    }

    fn tell(mut self, outcome: Result<()>) {
        self.told = true;
        if let Err(error) = outcome {
            self.report.refuse(self.index, error);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.told {
            self.report.refuse(self.index, Error::closed("receiver").with_outcome(Outcome::Unknown));
        }
    }
}

/// The answers of one receiver that the broker has not confirmed.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    deletes: VecDeque<Outgoing>,
    changes: VecDeque<Outgoing>,
    later: Vec<Outgoing>,
    /// Messages with a change under way: the next one waits, so that they arrive in order.
    busy: HashSet<AckToken>,
    open: BTreeSet<u64>,
    next: u64,
    /// Answers below this number go at once.
    urgent: u64,
    refused: Option<Error>,
    /// Set while the task waits for answers: until when, where it looks again by itself.
    asleep: Option<Option<Instant>>,
}

impl Outbox {
    pub(crate) fn push(
        &mut self,
        token: AckToken,
        receipt: String,
        verb: Verb,
        ends: Instant,
        due: Instant,
        report: Option<Place>,
    ) {
        let number = self.next;
        self.next += 1;
        self.open.insert(number);
        let answer = Outgoing { token, receipt, verb, ends, report, number, due, tries: 0, unsure: false };
        match verb {
            Verb::Delete => self.deletes.push_back(answer),
            Verb::Return(_) | Verb::Extend(_) => self.changes.push_back(answer),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Sends everything so far without delay; the number below which all is so far.
    pub(crate) fn hurry(&mut self) -> u64 {
        self.urgent = self.next;
        self.next
    }

    /// Whether every answer below this number has its outcome.
    pub(crate) fn is_settled(&self, below: u64) -> bool {
        self.open.first().is_none_or(|first| *first >= below)
    }

    /// The first answer that was refused since this was last asked.
    pub(crate) fn take_refused(&mut self) -> Option<Error> {
        self.refused.take()
    }

    /// Whether the task is to be woken for what there is now: to wake it costs as much as an answer.
    pub(crate) fn wakes(&mut self) -> bool {
        let Some(until) = self.asleep else { return false };
        let mut queues =
            [&self.deletes, &self.changes].into_iter().filter_map(|queue| Some((queue.len(), queue.front()?)));
        let wakes = queues.any(|(count, first)| count >= MAX_ENTRIES || until.is_none_or(|until| first.due < until));
        if wakes {
            self.asleep = None;
        }
        wakes
    }

    /// A batch that is ready to go; else when to look again, unless woken.
    fn cut(&mut self) -> Result<Vec<Outgoing>, Option<Instant>> {
        self.asleep = None;
        let now = Instant::now();
        let (ready, later) = std::mem::take(&mut self.later).into_iter().partition(|a| a.due <= now);
        self.later = later;
        for answer in Vec::into_iter(ready) {
            match answer.verb {
                Verb::Delete => self.deletes.push_front(answer),
                _ => self.changes.push_front(answer),
            }
        }
        let urgent = self.urgent;
        let is_due = |queue: &VecDeque<Outgoing>| {
            queue.len() >= MAX_ENTRIES || queue.front().is_some_and(|a| a.due <= now || a.number < urgent)
        };
        if is_due(&self.deletes) {
            let count = self.deletes.len().min(MAX_ENTRIES);
            return Ok(self.deletes.drain(..count).collect());
        }
        if is_due(&self.changes) {
            let mut batch = Vec::new();
            let mut rest = VecDeque::new();
            for answer in std::mem::take(&mut self.changes) {
                if batch.len() < MAX_ENTRIES && self.busy.insert(answer.token) {
                    batch.push(answer);
                } else {
                    rest.push_back(answer);
                }
            }
            self.changes = rest;
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
        // What is due and still here waits for an answer under way, which wakes the task.
        let fronts = self.deletes.front().into_iter().chain(self.changes.front()).map(|a| a.due);
        let next = fronts.filter(|due| *due > now).chain(self.later.iter().map(|a| a.due)).min();
        self.asleep = Some(next);
        Err(next)
    }
}

/// Sends the answers of one receiver until it is closed and all are settled.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut requests = JoinSet::new();
    loop {
        let mut next = None;
        while requests.len() < MAX_REQUESTS {
            let batch = shared.state.lock().outbox.cut();
            match batch {
                Ok(batch) => drop(requests.spawn(send(shared.clone(), batch))),
                Err(due) => {
                    next = due;
                    break;
                }
            }
        }
        if requests.is_empty() && shared.answers_are_over() {
            return;
        }
        tokio::select! {
            () = shared.answers.notified() => {}
            Some(_) = requests.join_next() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// What came of a request: the failed entries by their index, and whether the rest succeeded by name.
#[derive(Default)]
struct Outcomes {
    succeeded: Vec<String>,
    failed: Vec<BatchResultErrorEntry>,
}

async fn send(shared: Arc<Shared>, batch: Vec<Outgoing>) {
    let started = Instant::now();
    let (batch, over) = shared.state.lock().part(batch, started);
    let (operation, result) = match batch.first().map(|a| a.verb) {
        None => ("settle", Ok(Outcomes::default())),
        Some(Verb::Delete) => ("ack", delete(&shared, &batch).await),
        Some(_) => ("settle", change(&shared, &batch).await),
    };
    let mut outcomes: Vec<Option<Result<()>>> = Vec::new();
    match result {
        Ok(answer) => {
            outcomes.resize_with(batch.len(), || None);
            let mut set = |id: &str, outcome| {
                if let Some(slot) = id.parse::<usize>().ok().and_then(|i| outcomes.get_mut(i)) {
                    *slot = Some(outcome);
                }
            };
            answer.succeeded.iter().for_each(|id| set(id, Ok(())));
            answer.failed.iter().for_each(|entry| set(&entry.id, Err(error::from_entry(operation, entry))));
        }
        Err(error) => outcomes.resize_with(batch.len(), || Some(Err(error.clone()))),
    }
    let ended = Instant::now();
    let mut events = Vec::new();
    {
        let mut state = shared.state.lock();
        for (answer, outcome) in batch.into_iter().zip(outcomes) {
            let outcome = outcome.unwrap_or_else(|| Err(error::unmentioned(operation)));
            events.extend(state.settled(answer, outcome, started, ended));
        }
        for (answer, outcome) in over {
            events.extend(state.settled(answer, outcome, started, ended));
        }
        // A lease that turned out to be lost makes room.
        shared.wake(state);
    }
    // The task itself waits for this to end.
    shared.settled.notify_waiters();
    for error in events {
        shared.events.emit(EventKind::AnswerFailed, &shared.name, Some(error.with_context("address", &shared.name)));
    }
}

async fn delete(shared: &Shared, batch: &[Outgoing]) -> Result<Outcomes> {
    let mut request = shared.clients.once.delete_message_batch().queue_url(&*shared.url);
    for (index, answer) in batch.iter().enumerate() {
        let entry = Delete::builder().id(index.to_string()).receipt_handle(&answer.receipt).build();
        request = request.entries(entry.map_err(|_| incomplete())?);
    }
    let output = shared.link.note("ack", Words::Hidden, request.send().await)?;
    Ok(Outcomes { succeeded: output.successful.into_iter().map(|e| e.id).collect(), failed: output.failed })
}

async fn change(shared: &Shared, batch: &[Outgoing]) -> Result<Outcomes> {
    let mut request = shared.clients.once.change_message_visibility_batch().queue_url(&*shared.url);
    for (index, answer) in batch.iter().enumerate() {
        let time = match answer.verb {
            Verb::Delete => Duration::ZERO,
            Verb::Return(time) | Verb::Extend(time) => time,
        };
        let entry = Change::builder()
            .id(index.to_string())
            .receipt_handle(&answer.receipt)
            .visibility_timeout(whole_seconds(time))
            .build();
        request = request.entries(entry.map_err(|_| incomplete())?);
    }
    let output = shared.link.note("settle", Words::Hidden, request.send().await)?;
    Ok(Outcomes { succeeded: output.successful.into_iter().map(|e| e.id).collect(), failed: output.failed })
}

fn incomplete() -> Error {
    Error::new(ErrorKind::Internal, "an entry of a batch is incomplete")
}

impl crate::consumer::State {
    /// Parts answers that the broker is not asked about, which have an outcome already.
    fn part(&mut self, batch: Vec<Outgoing>, now: Instant) -> (Vec<Outgoing>, Vec<(Outgoing, Result<()>)>) {
        let (mut asked, mut over) = (Vec::with_capacity(batch.len()), Vec::new());
        for answer in batch {
            if answer.ends <= now {
                // Amazon tells success to a delete with an old receipt.
                let lost = Err(answer.lost());
                over.push((answer, lost));
            } else if matches!(answer.verb, Verb::Extend(_)) && self.leases.get(answer.token, now).is_none() {
                // The message was answered meanwhile, which an extension would undo.
                over.push((answer, Ok(())));
            } else {
                asked.push(answer);
            }
        }
        (asked, over)
    }

    /// Takes the outcome of an answer that came at `ended` to a request of `started`; the error is an event's.
    fn settled(
        &mut self,
        mut answer: Outgoing,
        outcome: Result<()>,
        started: Instant,
        ended: Instant,
    ) -> Option<Error> {
        self.outbox.busy.remove(&answer.token);
        let is_extension = matches!(answer.verb, Verb::Extend(_));
        let in_time = ended < answer.ends;
        let outcome = match outcome {
            // Amazon tells success to a delete with an old receipt, and when it took this one is not known.
            Ok(()) if answer.verb == Verb::Delete && !in_time => {
                answer.unsure = true;
                Err(answer.lost())
            }
            // The try before was taken after all: the receipt was good until then. That of an extension still is.
            Err(error) if error.kind() == ErrorKind::LeaseLost && answer.unsure && !is_extension && in_time => Ok(()),
            Err(error) if error.is_retryable() && self.closed.is_none_or(|end| ended < end) => {
                answer.unsure |= error.outcome() == Outcome::Unknown;
                let pause = PAUSE.0.saturating_mul(1 << answer.tries.min(16)).min(PAUSE.1);
                answer.tries += 1;
                // At the end of the lease at the latest: it is over then.
                answer.due = (ended + pause).min(answer.ends);
                self.outbox.later.push(answer);
                return None;
            }
            other => other,
        };
        self.outbox.open.remove(&answer.number);
        let mut event = None;
        match (&outcome, answer.verb) {
            (Ok(()), Verb::Extend(time)) => {
                if let Some(lease) = self.leases.get(answer.token, ended) {
                    lease.expires = (started + time).min(lease.last);
                    lease.extending = false;
                }
            }
            (Ok(()), _) => {}
            // An extension that came too late for a message that was answered meanwhile is nobody's loss.
            (Err(_), Verb::Extend(_)) if self.leases.get(answer.token, ended).is_none() => {}
            (Err(error), _) => {
                if is_extension && error.kind() == ErrorKind::LeaseLost {
                    // The message may be another receiver's: Amazon would tell success to an ack of it.
                    drop(self.leases.take(answer.token, ended));
                }
                self.outbox.refused.get_or_insert_with(|| error.clone());
                event = Some(error.clone());
            }
        }
        if let Some(place) = answer.report {
            place.tell(outcome);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_millis(5);

    fn push(outbox: &mut Outbox, verb: Verb, linger: Duration) {
        let now = Instant::now();
        let (token, ends) = (AckToken(outbox.next, 0), now + Duration::from_secs(30));
        outbox.push(token, "receipt".to_owned(), verb, ends, now + linger, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_is_woken_for_what_it_can_do_and_for_nothing_else() {
        let mut outbox = Outbox::default();
        push(&mut outbox, Verb::Delete, LINGER);
        assert!(!outbox.wakes(), "it is not asleep, and looks before it sleeps");
        assert_eq!(outbox.cut().unwrap_err(), Some(Instant::now() + LINGER));
        tokio::time::advance(LINGER / 2).await;
        for _ in 2..MAX_ENTRIES {
            push(&mut outbox, Verb::Delete, LINGER);
            assert!(!outbox.wakes(), "it looks again by itself before this one is due");
        }
        push(&mut outbox, Verb::Delete, LINGER);
        assert!(outbox.wakes(), "a request is full");
        assert!(!outbox.wakes(), "it was woken");
        assert_eq!(outbox.cut().unwrap().len(), MAX_ENTRIES);
        assert_eq!(outbox.cut().unwrap_err(), None);
        push(&mut outbox, Verb::Extend(LINGER), LINGER);
        assert!(outbox.wakes(), "it sleeps until it is woken");
        assert_eq!(outbox.cut().unwrap_err(), Some(Instant::now() + LINGER));
        push(&mut outbox, Verb::Delete, Duration::ZERO);
        assert!(outbox.wakes(), "this one is due before it looks again");
        assert_eq!(outbox.cut().unwrap().len(), 1);
    }
}

//! Receives, and tells the journal.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use super::client::Recorder;
use super::fault::{Action, Kind, broken, scripted};
use super::journal::Entry;
use super::record::{ReceivedRecord, RecordedAnswer};
use crate::address::{Address, Source};
use crate::broker::{CloseReport, ConsumerOptions};
use crate::capability::{Capabilities, RetryVia};
use crate::consumer::{AckReport, AckToken, Answer, Consumer, Received, Settled};
use crate::dead_letter;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::event::{EventKind, Events};
use crate::message::Message;
use crate::transaction::Participant;

/// First word of the tokens of repeated messages, which no broker knows.
const REPEATED: u64 = u64::MAX;

pub(super) struct TestConsumer {
    inner: Arc<dyn Consumer>,
    source: Source,
    recorder: Recorder,
    events: Events,
    runtime: Handle,
    state: Mutex<State>,
    /// Woken when the connection is lost.
    poller: Arc<AtomicWaker>,
}

#[derive(Default)]
struct State {
    /// What was handed over and is not answered.
    held: HashMap<AckToken, Held>,
    /// What arrives later.
    late: Vec<(Instant, Received)>,
    timer: Option<Pin<Box<Sleep>>>,
    repeated: u64,
    /// Losses of the connection that were followed.
    losses: u64,
    /// An answer that was refused, for the next flush.
    refused: Option<Error>,
    /// What ends the receiver, once it has what came before.
    failed: Option<Error>,
}

struct Held {
    message: Message,
    attempt: u32,
}

impl fmt::Debug for TestConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestConsumer").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl TestConsumer {
    pub(super) fn new(
        inner: Arc<dyn Consumer>,
        source: &Source,
        options: &ConsumerOptions,
        recorder: &Recorder,
    ) -> Self {
        Self {
            inner,
            source: source.clone(),
            events: options.events.clone(),
            runtime: Handle::current(),
            state: Mutex::new(State { losses: recorder.faults.losses(), ..State::default() }),
            poller: recorder.faults.poller(),
            recorder: recorder.clone(),
        }
    }

    /// After a lost connection nothing is held any more.
    fn follow(&self) {
        let losses = self.recorder.faults.losses();
        let lost = {
            let mut state = self.state.lock();
            if state.losses == losses {
                return;
            }
            state.losses = losses;
            let held: Vec<_> = state.held.drain().map(|(token, _)| token).collect();
            held.into_iter().chain(state.late.drain(..).map(|(_, item)| item.token)).collect::<Vec<_>>()
        };
        self.give_back(lost);
    }

    fn give_back(&self, tokens: impl IntoIterator<Item = AckToken>) {
        let known = tokens.into_iter().filter(|token| token.0 != REPEATED);
        let answers: Vec<_> = known.map(Answer::Release).collect();
        if !answers.is_empty()
            && let Some(pending) = self.inner.settle(answers).pending
        {
            self.runtime.spawn(async move { drop(pending.await) });
        }
    }

    fn give_back_late(&self) {
        let late: Vec<_> = self.state.lock().late.drain(..).map(|(_, item)| item.token).collect();
        self.give_back(late);
    }

    fn disconnect(&self, down: Duration) {
        self.recorder.faults.disconnect(down, &self.events, &self.runtime);
        self.follow();
    }

    fn hand_over(&self, item: Received, into: &mut Vec<Received>) {
        let mut message = match &item.message {
            Ok(message) => message.clone(),
            Err(undecodable) => Message::new(undecodable.raw.clone()),
        };
        // A copy that makes a retry says which attempt it is, as the receiver reads it.
        let (noted, _) = dead_letter::take_retry(&mut message);
        let attempt = match self.inner.capabilities().retry_via {
            RetryVia::InPlace => item.attempt.max(noted),
            _ => item.attempt.saturating_add(noted - 1),
        };
        self.state.lock().held.insert(item.token, Held { message: message.clone(), attempt });
        let record = ReceivedRecord { source: self.source.clone(), message, attempt };
        self.recorder.journal.add(Entry::Received(record));
        into.push(item);
    }

    /// The same message once more, with a token of its own.
    fn repeat(&self, item: &Received) -> Option<Received> {
        let token = {
            let mut state = self.state.lock();
            state.repeated += 1;
            AckToken(REPEATED, state.repeated)
        };
        let message = item.message.as_ref().ok()?.clone();
        Some(Received { message: Ok(message), token, attempt: item.attempt, lease: None, position: item.position })
    }

    /// Hands over what arrived, as far as nothing goes wrong.
    fn arrive(&self, got: Vec<Received>, into: &mut Vec<Received>) {
        let mut got = got.into_iter();
        while let Some(item) = got.next() {
            match self.recorder.faults.next(Kind::Receive, &self.source.address) {
                None => self.hand_over(item, into),
                Some(Action::Lose | Action::LoseVerdict) => {}
                Some(Action::Delay(delay)) => {
                    let at = crate::memory::far(Instant::now(), delay);
                    self.state.lock().late.push((at, item));
                }
                Some(Action::Duplicate) => {
                    let repeated = self.repeat(&item);
                    self.hand_over(item, into);
                    repeated.into_iter().for_each(|item| self.hand_over(item, into));
                }
                Some(Action::Fail(kind, outcome)) => {
                    self.give_back(std::iter::once(item).chain(got).map(|item| item.token));
                    self.state.lock().failed = Some(scripted(kind, "the receiver ended", outcome));
                    return;
                }
                Some(Action::Disconnect(down)) => {
                    self.give_back(std::iter::once(item).chain(got).map(|item| item.token));
                    self.disconnect(down);
                    return;
                }
            }
        }
    }

    /// Hands over what is due, and tells how many are still on their way.
    fn arrive_late(&self, into: &mut Vec<Received>) -> usize {
        let now = Instant::now();
        let (due, left) = {
            let mut state = self.state.lock();
            let due: Vec<_> = state.late.extract_if(.., |(at, _)| *at <= now).collect();
            (due, state.late.len())
        };
        due.into_iter().for_each(|(_, item)| self.hand_over(item, into));
        left
    }

    /// Wakes the poller at this time; whether it is there already.
    fn poll_until(&self, at: Instant, cx: &mut Context<'_>) -> bool {
        let mut state = self.state.lock();
        let timer = state.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    fn take_held(&self, token: AckToken) -> Option<Held> {
        self.state.lock().held.remove(&token)
    }

    fn acked(&self, held: Held) {
        self.recorder.journal.acked(&self.source, held.message, held.attempt);
    }

    /// What a fault makes of an acknowledgement, if it is one; `false` where the token is stale.
    fn ack_with(&self, token: AckToken, held: Held, action: Action) -> bool {
        match action {
            Action::Fail(kind, outcome) => {
                self.give_back([token]);
                if kind == ErrorKind::LeaseLost {
                    return false;
                }
                let error = scripted(kind, "the acknowledgement was refused", outcome);
                self.events.emit(EventKind::AnswerFailed, &self.source.to_string(), Some(error.clone()));
                self.state.lock().refused.get_or_insert(error);
            }
            Action::Disconnect(down) => {
                self.give_back([token]);
                self.disconnect(down);
                return false;
            }
            Action::Delay(delay) => {
                let inner = self.inner.clone();
                self.runtime.spawn(async move {
                    tokio::time::sleep(delay).await;
                    if token.0 != REPEATED {
                        inner.ack(&[token]);
                    }
                });
                self.acked(held);
            }
            Action::Lose | Action::LoseVerdict | Action::Duplicate => self.acked(held),
        }
        true
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Consumer for TestConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.inner.capabilities()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        let before = into.len();
        loop {
            self.poller.register(cx.waker());
            self.follow();
            if let Some(error) = self.state.lock().failed.take() {
                return Poll::Ready(Err(error));
            }
            if let Some(until) = self.recorder.faults.down_until() {
                if self.poll_until(until, cx) {
                    continue;
                }
                return Poll::Pending;
            }
            let late = self.arrive_late(into);
            if into.len() > before {
                return Poll::Ready(Ok(()));
            }
            let Some(room) = NonZeroUsize::new(max.get().saturating_sub(late)) else {
                if !self.poll_until_late(cx) {
                    return Poll::Pending;
                }
                continue;
            };
            let mut got = Vec::new();
            match self.inner.poll_receive(cx, room, &mut got) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if late > 0 && self.poll_until_late(cx) => continue,
                Poll::Pending => return Poll::Pending,
            }
            self.arrive(got, into);
            if into.len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        self.follow();
        let (mut forward, mut stale) = (Vec::new(), Vec::new());
        for (index, token) in tokens.iter().copied().enumerate() {
            let Some(held) = self.take_held(token) else {
                stale.push(index);
                continue;
            };
            match self.recorder.faults.next(Kind::Ack, &self.source.address) {
                Some(action) => {
                    if !self.ack_with(token, held, action) {
                        stale.push(index);
                    }
                }
                None if token.0 == REPEATED => self.acked(held),
                None => forward.push((index, token, held)),
            }
        }
        let known: Vec<_> = forward.iter().map(|(_, token, _)| *token).collect();
        let refused = if known.is_empty() { Vec::new() } else { self.inner.ack(&known).stale };
        for (place, (index, _, held)) in forward.into_iter().enumerate() {
            if refused.contains(&place) { stale.push(index) } else { self.acked(held) }
        }
        stale.sort_unstable();
        AckReport { stale }
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        self.follow();
        let (mut forward, mut places, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        for (index, answer) in answers.into_iter().enumerate() {
            let token = answer.token();
            if !self.state.lock().held.contains_key(&token) {
                stale.push(index);
            } else if token.0 != REPEATED {
                forward.push(answer);
                places.push(index);
            } else {
                self.settled(answer);
            }
        }
        let settled = match forward.is_empty() {
            true => Settled::default(),
            false => self.inner.settle(forward.clone()),
        };
        for (place, answer) in forward.into_iter().enumerate() {
            if settled.stale.contains(&place) {
                self.take_held(answer.token());
                stale.push(places[place]);
            } else {
                self.settled(answer);
            }
        }
        stale.sort_unstable();
        let told = move |refused: Vec<(usize, Error)>| {
            refused.into_iter().filter_map(|(place, error)| Some((*places.get(place)?, error))).collect()
        };
        Settled { stale, pending: settled.pending.map(|pending| pending.map(told).boxed()) }
    }

    fn holds(&self, token: AckToken) -> bool {
        self.follow();
        match self.state.lock().held.contains_key(&token) {
            true => token.0 == REPEATED || self.inner.holds(token),
            false => false,
        }
    }

    fn note_attempt(&self, token: AckToken, attempt: u32) {
        let failed = self.state.lock().held.get_mut(&token).map(|held| {
            let failed = std::mem::replace(&mut held.attempt, attempt);
            (held.message.clone(), failed)
        });
        if let Some((message, failed)) = failed {
            self.recorder.journal.answered(&self.source, message, failed, RecordedAnswer::Retried { delay: None });
        }
        if token.0 != REPEATED {
            self.inner.note_attempt(token, attempt);
        }
    }

    fn retry_tiers(&self) -> &[(Duration, Address)] {
        self.inner.retry_tiers()
    }

    fn participant(&self) -> Option<Participant> {
        self.inner.participant()
    }

    async fn flush(&self) -> Result<()> {
        let refused = self.state.lock().refused.take();
        let flushed = self.inner.flush().await;
        match (refused, self.recorder.faults.down_until()) {
            (Some(error), _) => Err(error),
            (None, Some(_)) => Err(broken(Outcome::Unknown)),
            (None, None) => flushed,
        }
    }

    fn set_paused(&self, paused: bool) {
        if paused {
            self.give_back_late();
        }
        self.inner.set_paused(paused);
    }

    async fn stop(&self) {
        self.give_back_late();
        self.inner.stop().await;
        self.poller.wake();
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.give_back_late();
        self.inner.close(deadline).await
    }
}

impl TestConsumer {
    /// Wakes the poller when the next late message arrives; whether one is there already.
    fn poll_until_late(&self, cx: &mut Context<'_>) -> bool {
        let first = self.state.lock().late.iter().map(|(at, _)| *at).min();
        first.is_some_and(|at| self.poll_until(at, cx))
    }

    /// Records an answer that was taken.
    fn settled(&self, answer: Answer) {
        let (token, answer) = match answer {
            // It stays.
            Answer::Extend(..) => return,
            Answer::Release(token) => (token, RecordedAnswer::Released),
            Answer::Retry(token, delay) => (token, RecordedAnswer::Retried { delay: Some(delay) }),
        };
        if let Some(held) = self.take_held(token) {
            self.recorder.journal.answered(&self.source, held.message, held.attempt, answer);
        }
    }
}

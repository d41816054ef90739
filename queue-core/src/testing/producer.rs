//! Sends, and tells the journal.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::client::Recorder;
use super::fault::{Action, Kind, broken, scripted};
use super::record::SentRecord;
use crate::address::Address;
use crate::broker::{CloseReport, ProducerOptions};
use crate::capability::Capabilities;
use crate::completion::Completion;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::event::Events;
use crate::message::Message;
use crate::producer::{Producer, Receipt};
use crate::wakes::together;

#[derive(Debug)]
pub(super) struct TestProducer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Producer>,
    to: Address,
    recorder: Recorder,
    events: Events,
    runtime: Handle,
    /// How many messages wait for their verdict.
    waiting: watch::Sender<usize>,
}

impl TestProducer {
    pub(super) fn new(inner: Arc<dyn Producer>, to: &Address, options: &ProducerOptions, recorder: &Recorder) -> Self {
        Self(Arc::new(Shared {
            inner,
            to: to.clone(),
            recorder: recorder.clone(),
            events: options.events.clone(),
            runtime: Handle::current(),
            waiting: watch::Sender::new(0),
        }))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Producer for TestProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.0.inner.capabilities()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        together(|| {
            for (message, done) in batch.into_iter().zip(done.split()) {
                Flight::new(&self.0, message, done).start();
            }
        });
    }

    fn send_one(&self, message: Message, done: Completion) {
        self.send(vec![message], done);
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut waiting = self.0.waiting.subscribe();
        let ended = timeout_at(deadline, waiting.wait_for(|waiting| *waiting == 0).map(drop)).await;
        let unconfirmed = if ended.is_err() { *self.0.waiting.borrow() } else { 0 };
        let mut report = self.0.inner.close(deadline).await;
        report.unconfirmed = report.unconfirmed.max(unconfirmed);
        report
    }
}

/// A message on its way.
struct Flight {
    shared: Arc<Shared>,
    address: Address,
    message: Message,
    done: Completion,
}

impl Flight {
    fn new(shared: &Arc<Shared>, message: Message, done: Completion) -> Self {
        let address = message.destination().unwrap_or(&shared.to).clone();
        Self { shared: shared.clone(), address, message, done }
    }

    fn start(self) {
        let faults = &self.shared.recorder.faults;
        if faults.down_until().is_some() {
            return self.end(false, Err(broken(Outcome::NotSent)));
        }
        match faults.next(Kind::Send, &self.address) {
            None => self.pass(false),
            Some(Action::Fail(kind, outcome)) => self.end(false, Err(scripted(kind, "the send failed", outcome))),
            Some(Action::Lose) => self.end(false, Err(broken(Outcome::Unknown))),
            Some(Action::LoseVerdict) => self.pass(true),
            Some(Action::Delay(delay)) => self.later(delay),
            Some(Action::Duplicate) => {
                // Its own verdict is nobody's.
                let (done, _verdict) = Completion::new(1);
                Self::new(&self.shared, self.message.clone(), done).pass(false);
                self.pass(false);
            }
            Some(Action::Disconnect(down)) => {
                faults.disconnect(down, &self.shared.events, &self.shared.runtime);
                self.end(false, Err(broken(Outcome::Unknown)));
            }
        }
    }

    fn later(self, delay: Duration) {
        self.spawn(async move |flight| {
            sleep(delay).await;
            match flight.done.is_over_for(0) {
                true => flight.end(false, Err(Error::new(ErrorKind::Timeout, "the sender gave up before"))),
                false => flight.pass(false),
            }
        });
    }

    /// Sends, and tells what comes of it.
    fn pass(self, lose_verdict: bool) {
        let (done, mut verdict) = Completion::new(1);
        self.shared.inner.send_one(self.message.clone(), done);
        let end = move |flight: Self, verdict: Result<Receipt>| match verdict {
            Ok(_) if lose_verdict => flight.end(true, Err(broken(Outcome::Unknown))),
            verdict => flight.end(verdict.is_ok(), verdict),
        };
        if (&mut verdict).now_or_never().is_some() {
            let verdict = verdict.0.verdict(0);
            return end(self, verdict);
        }
        self.spawn(async move |flight| {
            if let Some(deadline) = flight.done.deadline() {
                if timeout_at(deadline, &mut verdict).await.is_err() {
                    // Lets the broker know that nobody waits any more.
                    let late = Error::new(ErrorKind::Timeout, "the sender gave up").with_outcome(Outcome::Unknown);
                    verdict.0.expire(&late);
                }
            } else {
                let _ = (&mut verdict).await;
            }
            let verdict = verdict.0.verdict(0);
            end(flight, verdict);
        });
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(self, work: impl FnOnce(Self) -> F) {
        let shared = self.shared.clone();
        shared.waiting.send_modify(|waiting| *waiting += 1);
        let work = work(self);
        shared.runtime.clone().spawn(async move {
            work.await;
            shared.waiting.send_modify(|waiting| *waiting -= 1);
        });
    }

    /// Records before it tells, so that whoever was told finds the record.
    fn end(self, stored: bool, told: Result<Receipt>) {
        let Self { shared, address, message, done } = self;
        shared.recorder.journal.sent(SentRecord { address, message: message.clone(), stored, told: told.clone() });
        match told {
            Ok(receipt) => done.accept(0, receipt),
            Err(error) => done.fail(0, error, Some(message)),
        }
    }
}

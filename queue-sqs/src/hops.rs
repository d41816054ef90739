//! Delays that are longer than SQS knows. The message says when it is due, and whoever receives it before sends it on: a
//! copy with the next delay, confirmed before the original is deleted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use queue_core::{
    AckToken, Completion, Error, ErrorKind, EventKind, HealthState, Message, Producer, ProducerOptions, Result,
    dead_letter, wire,
};
use tokio::time::{Instant, sleep};

use crate::address::{Kind, Target};
use crate::answers::Verb;
use crate::broker::Core;
use crate::capabilities::{MAX_MESSAGE, MAX_RETRY_DELAY, of_queue};
use crate::consumer::Shared;
use crate::producer::SqsProducer;

/// The longest delay by hops.
pub(crate) const MAX_HOPPED: Duration = Duration::from_secs(365 * 24 * 3600);

/// The pause before another try: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// The message on its first hop, where its delay is longer than one.
pub(crate) fn first(message: &Message, hop: Duration) -> Option<Message> {
    let delay = message.get_delay().filter(|delay| *delay > hop)?;
    Some(wire::with_due(message.clone(), SystemTime::now() + delay).delay(hop))
}

/// When a message that arrived is due, if that is still to come; it says nothing of it any more. What Amazon moved to a queue
/// of dead letters waits for nothing there.
pub(crate) fn take_due(message: &mut Message) -> Option<SystemTime> {
    let is_dead = message.native_headers().get(dead_letter::ORIGIN).is_some();
    wire::take_due(message).filter(|due| !is_dead && *due > SystemTime::now())
}

impl Shared {
    /// Sends a message on that came before it is due.
    pub(crate) fn send_on(self: &Arc<Self>, token: AckToken, message: Message, due: SystemTime) {
        // Without a core the connection is over, and so are its leases.
        let Some(core) = self.core.upgrade() else { return };
        self.state.lock().hopping += 1;
        let (shared, copies) = (self.clone(), self.copies(&core));
        core.spawn(async move {
            let hopping = Hopping(&shared);
            shared.hop(&*copies, token, message, due).await;
            drop(hopping);
        });
    }

    /// Sends to the queue itself.
    fn copies(&self, core: &Arc<Core>) -> Arc<dyn Producer> {
        let can = of_queue(Some(self.fifo), MAX_MESSAGE, self.hop);
        let to = Target { name: self.name.clone(), kind: Kind { topic: false, fifo: self.fifo } };
        let open = || SqsProducer::open(core.clone(), to, can, MAX_MESSAGE, &ProducerOptions::default());
        self.copies.get_or_init(open).clone()
    }

    async fn hop(&self, copies: &dyn Producer, token: AckToken, message: Message, due: SystemTime) {
        let mut pause = PAUSE.0;
        // The time of the first sending stays.
        let message = match (message.get_timestamp(), message.sent_at()) {
            (None, Some(at)) => message.timestamp(at),
            _ => message,
        };
        let message = wire::with_due(message, due);
        while self.state.lock().leases.get(token, Instant::now()).is_some() {
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            let sent = send(copies, message.clone().delay(left.min(self.hop))).await;
            self.note_hop(sent.as_ref().err());
            let Err(error) = sent else { return self.answer(token, Verb::Delete) };
            let is_hopeless = matches!(
                error.kind(),
                ErrorKind::Unauthorized | ErrorKind::TooLarge | ErrorKind::InvalidInput | ErrorKind::Unsupported
            );
            self.events.emit(EventKind::AnswerFailed, &self.name, Some(error));
            if is_hopeless {
                // It cannot be sent from here: it stays away as long as a message can.
                return self.answer(token, Verb::Return(left.min(MAX_RETRY_DELAY)));
            }
            if self.state.lock().stopped {
                return self.answer(token, Verb::Return(Duration::ZERO));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn note_hop(&self, error: Option<&Error>) {
        let problem = error.map(|error| (HealthState::Degraded, format!("a long delay cannot go on: {error}")));
        self.events.set_problem(&format!("sqs {} hops", self.name), problem);
    }

    fn answer(&self, token: AckToken, verb: Verb) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Some(lease) = state.leases.take(token, now) {
            state.outbox.push(token, lease.receipt, verb, lease.expires, now + self.linger, None);
        }
        self.wake(state);
    }

    /// Waits until nothing is being sent on.
    pub(crate) async fn hopped(&self) {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.state.lock().hopping == 0 {
                return;
            }
            settled.await;
        }
    }
}

/// A message is being sent on as long as this lives.
struct Hopping<'a>(&'a Shared);

impl Drop for Hopping<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.hopping -= 1;
        let is_over = state.stopped && state.hopping == 0;
        drop(state);
        if is_over {
            // Nobody is here any more who could tell that it goes on.
            self.0.note_hop(None);
        }
        self.0.settled.notify_waiters();
        self.0.answers.notify_one();
    }
}

async fn send(copies: &dyn Producer, copy: Message) -> Result<()> {
    let (done, verdict) = Completion::new(1);
    copies.send(vec![copy], done);
    match verdict.await {
        Ok(_) => Ok(()),
        Err(failed) => failed.failures().into_iter().next().map_or(Ok(()), |(_, error)| Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_of_one_hop_says_nothing_and_a_longer_one_when_it_is_due() {
        let hop = Duration::from_secs(900);
        assert!(first(&Message::new("x").delay(hop), hop).is_none());
        let delay = Duration::from_secs(2000);
        let before = SystemTime::now();
        let mut sent = first(&Message::new("x").delay(delay), hop).unwrap();
        assert_eq!(sent.get_delay(), Some(hop));
        let due = take_due(&mut sent).unwrap();
        assert!((before + delay..=SystemTime::now() + delay).contains(&due));
        assert!(sent.headers().is_empty());
    }

    #[test]
    fn what_is_due_is_handed_out_without_the_librarys_header() {
        let mut arrived = wire::with_due(Message::new("x").header("n", 1), SystemTime::now());
        assert_eq!(take_due(&mut arrived), None);
        assert_eq!(arrived, Message::new("x").header("n", 1));
    }
}

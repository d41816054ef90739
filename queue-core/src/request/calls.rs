//! Requests that wait for their replies.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, Outcome, Result};
use crate::message::Message;

/// Finds whom a reply is for.
pub(super) struct Calls {
    /// Begins every correlation id; nobody else's does.
    prefix: String,
    next: AtomicU64,
    /// Makes ids that nobody guesses: where all clients read all replies, everybody knows what others look like.
    seal: RandomState,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    by_number: HashMap<u64, oneshot::Sender<Result<Message>>>,
    /// Why no more replies come.
    over: Option<Error>,
}

impl Calls {
    pub(super) fn new() -> Self {
        let prefix = format!("{:016x}{:016x}-", fastrand::u64(..), fastrand::u64(..));
        Self { prefix, next: AtomicU64::new(0), seal: RandomState::new(), waiting: Mutex::default() }
    }

    /// Begins to wait for a reply.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Call> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if let Some(over) = &waiting.over {
            return Err(over.clone());
        }
        waiting.by_number.insert(number, reply);
        drop(waiting);
        Ok(Call { calls: self.clone(), number, replied })
    }

    fn id(&self, number: u64) -> String {
        format!("{}{number}-{:016x}", self.prefix, self.seal.hash_one(number))
    }

    /// The number of one of our ids.
    fn number(&self, id: &str) -> Option<u64> {
        let number = id.strip_prefix(&*self.prefix)?.split_once('-')?.0.parse().ok()?;
        (self.id(number) == id).then_some(number)
    }

    /// Gives a reply to whom it is for, if anybody waits for it.
    pub(super) fn answer(&self, reply: Message) {
        let number = reply.get_correlation_id().and_then(|id| self.number(id));
        let call = number.and_then(|number: u64| self.waiting.lock().by_number.remove(&number));
        match call {
            Some(call) => drop(call.send(Ok(reply))),
            None => tracing::debug!("a reply that nobody waits for"),
        }
    }

    /// No more replies come: whoever waits, or begins to, is told why.
    pub(super) fn end(&self, why: &Error) {
        let mut waiting = self.waiting.lock();
        waiting.over.get_or_insert_with(|| why.clone());
        let lost = std::mem::take(&mut waiting.by_number);
        drop(waiting);
        lost.into_values().for_each(|call| drop(call.send(Err(why.clone()))));
    }

    pub(super) fn is_over(&self) -> bool {
        self.waiting.lock().over.is_some()
    }

    pub(super) fn count(&self) -> usize {
        self.waiting.lock().by_number.len()
    }
}

/// A request that waits for its reply; dropped, it is forgotten.
pub(super) struct Call {
    calls: Arc<Calls>,
    number: u64,
    replied: oneshot::Receiver<Result<Message>>,
}

impl Call {
    pub(super) fn correlation_id(&self) -> String {
        self.calls.id(self.number)
    }

    pub(super) async fn reply(&mut self) -> Result<Message> {
        (&mut self.replied).await.unwrap_or_else(|_| Err(Error::closed("client").with_outcome(Outcome::Unknown)))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.waiting.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn only_ones_own_reply_is_taken_and_what_is_dropped_is_forgotten() {
        let calls = Arc::new(Calls::new());
        let (mut one, two) = (calls.begin().unwrap(), calls.begin().unwrap());
        let foreign = Calls::new().prefix + "0";
        calls.answer(Message::new("nameless"));
        calls.answer(Message::new("foreign").correlation_id(foreign));
        calls.answer(Message::new("unknown").correlation_id(calls.id(7)));
        calls.answer(Message::new("guessed").correlation_id(format!("{}0-{:016x}", calls.prefix, 0)));
        assert!(one.replied.try_recv().is_err());
        calls.answer(Message::new("first").correlation_id(one.correlation_id()));
        calls.answer(Message::new("second").correlation_id(one.correlation_id()));
        assert_eq!(one.replied.try_recv().unwrap().unwrap().text(), Some("first"));
        drop(two);
        assert_eq!(calls.count(), 0);
    }

    #[test]
    fn behind_the_end_nobody_waits() {
        let calls = Arc::new(Calls::new());
        let mut before = calls.begin().unwrap();
        calls.end(&Error::new(ErrorKind::NotFound, "the queue is gone"));
        assert_eq!(before.replied.try_recv().unwrap().unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(calls.begin().err().unwrap().kind(), ErrorKind::NotFound);
        assert!(calls.is_over());
    }
}

//! Messages that are with librdkafka and wait for their verdict.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use queue_core::{Completion, Error, Message, Receipt};
use tokio::sync::Notify;

/// Half of the word that librdkafka carries with each message names the batch, the other half the message in it.
const INDEX_BITS: u32 = usize::BITS / 2;
/// Most messages of a batch.
pub(crate) const MAX_BATCH: usize = (1 << INDEX_BITS) - 1;

/// How many batches and single messages of one producer are in flight.
#[derive(Debug, Default)]
pub(crate) struct Share {
    flights: AtomicUsize,
    landed: Notify,
}

impl Share {
    fn land(&self) {
        if self.flights.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.landed.notify_waiters();
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn empty(&self) {
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            // Listens before it looks.
            landed.as_mut().enable();
            if self.flights.load(Ordering::Acquire) == 0 {
                return;
            }
            landed.await;
        }
    }
}

#[derive(Debug)]
struct Batch {
    /// `None` when the producer let go: nobody waits.
    done: Option<Arc<Completion>>,
    share: Arc<Share>,
    /// To be handed back when a message fails; each goes as soon as it is accepted. `None` while the batch is sent.
    messages: Option<Vec<Message>>,
    /// Verdicts that came while the batch was sent.
    early: Vec<(usize, Result<Receipt, Error>)>,
    open: usize,
}

/// A message that was sent alone.
#[derive(Debug)]
struct Single {
    /// `None` when the producer let go: nobody waits.
    done: Option<Completion>,
    share: Arc<Share>,
    message: Message,
}

#[derive(Debug)]
enum Flight {
    One(Single),
    Many(Batch),
}

#[derive(Debug, Default)]
struct Slots {
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Slots {
    fn add(&mut self, flight: Flight) -> usize {
        if let Some(id) = self.free.pop() {
            self.flights[id] = Some(flight);
            return id;
        }
        self.flights.push(Some(flight));
        self.flights.len() - 1
    }

    fn remove(&mut self, id: usize) -> Option<Flight> {
        self.free.push(id);
        self.flights[id].take()
    }

    fn batch(&mut self, id: usize) -> Option<&mut Batch> {
        match self.flights.get_mut(id)? {
            Some(Flight::Many(batch)) => Some(batch),
            _ => None,
        }
    }
}

/// Everything in flight of one native producer.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<Slots>);

/// A batch that is being sent.
#[derive(Debug)]
pub(crate) struct Departure(usize);

impl Departure {
    /// The word that names the message.
    pub(crate) fn word(&self, index: usize) -> usize {
        self.0 << INDEX_BITS | index
    }
}

impl Flights {
    /// Makes room for the verdicts of a batch of `count` messages, before the first is sent.
    pub(crate) fn depart(&self, count: usize, done: Completion, share: &Arc<Share>) -> Departure {
        share.flights.fetch_add(1, Ordering::AcqRel);
        let batch =
            Batch { done: Some(Arc::new(done)), share: share.clone(), messages: None, early: Vec::new(), open: count };
        Departure(self.0.lock().add(Flight::Many(batch)))
    }

    /// Makes room for the verdict of a single message, before it is sent; the word that names it.
    pub(crate) fn depart_alone(&self, message: Message, done: Completion, share: &Arc<Share>) -> usize {
        share.flights.fetch_add(1, Ordering::AcqRel);
        let single = Single { done: Some(done), share: share.clone(), message };
        Departure(self.0.lock().add(Flight::One(single))).word(0)
    }

    /// The batch was sent, but for those that failed at once.
    pub(crate) fn departed(&self, departure: &Departure, messages: Vec<Message>, failed: Vec<(usize, Error)>) {
        let mut early = {
            let mut slots = self.0.lock();
            let Some(batch) = slots.batch(departure.0) else { return };
            batch.messages = Some(messages);
            mem::take(&mut batch.early)
        };
        early.extend(failed.into_iter().map(|(index, error)| (index, Err(error))));
        for (index, verdict) in early {
            self.landed(departure.word(index), verdict);
        }
    }

    /// Takes the verdict of a message.
    pub(crate) fn landed(&self, word: usize, verdict: Result<Receipt, Error>) {
        let (id, index) = (word >> INDEX_BITS, word & MAX_BATCH);
        let mut slots = self.0.lock();
        let (done, message, over) = match slots.flights.get_mut(id) {
            Some(Some(Flight::One(_))) => {
                let single = slots.remove(id);
                // Without the lock: a verdict wakes whoever waits.
                drop(slots);
                if let Some(Flight::One(Single { done, share, message })) = single {
                    if let Some(done) = done {
                        give(&done, 0, verdict, Some(message));
                    }
                    share.land();
                }
                return;
            }
            Some(Some(Flight::Many(batch))) => {
                let Some(messages) = &mut batch.messages else {
                    batch.early.push((index, verdict));
                    return;
                };
                batch.open -= 1;
                (batch.done.clone(), messages.get_mut(index).map(mem::take), batch.open == 0)
            }
            _ => return,
        };
        let batch = if over { slots.remove(id) } else { None };
        drop(slots);
        if let Some(done) = done {
            give(&done, index, verdict, message);
        }
        if let Some(Flight::Many(batch)) = batch {
            batch.share.land();
        }
    }

    /// Lets go of what this producer has in flight: those messages are answered `Unknown`. How many there were.
    pub(crate) fn abandon(&self, share: &Arc<Share>) -> usize {
        let mut left = 0;
        let mut given_up = Vec::new();
        let mut alone = Vec::new();
        for flight in self.0.lock().flights.iter_mut().flatten() {
            match flight {
                Flight::Many(batch) if Arc::ptr_eq(&batch.share, share) => {
                    left += if batch.done.is_some() { batch.open } else { 0 };
                    given_up.extend(batch.done.take());
                }
                Flight::One(single) if Arc::ptr_eq(&single.share, share) => {
                    left += usize::from(single.done.is_some());
                    alone.extend(single.done.take());
                }
                _ => {}
            }
        }
        // Dropped without the lock, which answers whoever waits.
        drop((given_up, alone));
        left
    }
}

fn give(done: &Completion, index: usize, verdict: Result<Receipt, Error>, message: Option<Message>) {
    match verdict {
        Ok(receipt) => done.accept(index, receipt),
        Err(error) => done.fail(index, error, message),
    }
}

#[cfg(test)]
mod tests {
    use queue_core::{ErrorKind, Outcome};

    use super::*;

    fn batch(count: usize) -> Vec<Message> {
        (0..count).map(|i| Message::new(i.to_string())).collect()
    }

    #[tokio::test]
    async fn verdicts_land_in_any_order_and_before_the_batch_has_left() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let (done, verdict) = Completion::new(3);
        let departure = flights.depart(3, done, &share);
        flights.landed(departure.word(2), Ok(Receipt::at(1, 9)));
        let refused = Error::new(ErrorKind::TooLarge, "large");
        flights.departed(&departure, batch(3), vec![(1, refused)]);
        flights.landed(departure.word(0), Ok(Receipt::at(0, 4)));
        let error = verdict.await.unwrap_err();
        assert_eq!(
            error.failures().iter().map(|(i, e)| (*i, e.kind())).collect::<Vec<_>>(),
            [(1, ErrorKind::TooLarge)]
        );
        assert_eq!(error.receipts().get(2), Some(Receipt::at(1, 9)));
        share.empty().await;
    }

    #[tokio::test]
    async fn a_message_sent_alone_has_a_verdict_of_its_own() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let send = || {
            let (done, verdict) = Completion::new(1);
            (flights.depart_alone(Message::new("alone"), done, &share), verdict)
        };
        let ((taken, receipt), (refused, error), (left, unknown)) = (send(), send(), send());
        flights.landed(refused, Err(Error::new(ErrorKind::TooLarge, "large")));
        flights.landed(taken, Ok(Receipt::at(1, 9)));
        assert_eq!(receipt.await.unwrap().get(0), Some(Receipt::at(1, 9)));
        assert_eq!(error.await.unwrap_err().failures()[0].1.kind(), ErrorKind::TooLarge);
        assert_eq!(flights.abandon(&share), 1);
        assert_eq!(unknown.await.unwrap_err().failures()[0].1.outcome(), Outcome::Unknown);
        flights.landed(left, Ok(Receipt::accepted()));
        share.empty().await;
        // A late report for one of them is nobody's, and counts for nothing.
        flights.landed(taken, Ok(Receipt::accepted()));
        share.empty().await;
    }

    #[tokio::test]
    async fn what_is_left_at_the_end_is_unknown() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let (done, verdict) = Completion::new(2);
        let departure = flights.depart(2, done, &share);
        flights.departed(&departure, batch(2), vec![]);
        flights.landed(departure.word(0), Ok(Receipt::accepted()));
        assert_eq!(flights.abandon(&share), 1);
        let failures = verdict.await.unwrap_err().failures();
        assert_eq!((failures[0].0, failures[0].1.outcome()), (1, Outcome::Unknown));
        // The late report finds nobody and does no harm.
        flights.landed(departure.word(1), Ok(Receipt::accepted()));
        share.empty().await;
    }
}

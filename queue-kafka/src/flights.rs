//! Messages that are with librdkafka and wait for their verdict.

use std::mem;
use std::sync::Arc;

use queue_core::{Completion, Error, Message, Receipt};

use crate::sync::{AtomicBool, AtomicUsize, Mutex, Notify, Ordering};

/// Half of the word that librdkafka carries with each message names the batch, the other half the message in it.
const INDEX_BITS: u32 = usize::BITS / 2;
/// Most messages of a batch.
pub(crate) const MAX_BATCH: usize = (1 << INDEX_BITS) - 1;

/// Most single messages of a group; few in tests, so that they get to its end.
const GROUP: usize = if cfg!(test) { 3 } else { 64 };
/// In a word: it names a single message, in a group.
const ALONE: usize = 1 << (usize::BITS - 1);

/// What one producer has in flight: batches, and groups of single messages.
#[derive(Debug, Default)]
pub(crate) struct Share {
    flights: AtomicUsize,
    landed: Notify,
    /// The group that takes the next single message.
    next: Mutex<Option<Next>>,
    /// There are not many more messages to come: each has a group of its own.
    closing: AtomicBool,
}

#[derive(Debug)]
struct Next {
    group: Arc<Group>,
    id: usize,
    /// Of the native producer that the group belongs to.
    home: Arc<Mutex<Groups>>,
}

impl Next {
    /// Adds no more to the group, so that it ends with its last message.
    fn close(self) {
        let over = {
            let mut places = self.group.0.lock();
            places.closed = true;
            places.end()
        };
        free(&self.home, self.id, over);
    }
}

/// Takes back a group whose last message has landed.
fn free(home: &Mutex<Groups>, id: usize, share: Option<Arc<Share>>) {
    if let Some(share) = share {
        home.lock().free.push(id);
        share.land();
    }
}

impl Share {
    fn land(&self) {
        if self.flights.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.landed.notify_waiters();
        }
    }

    /// From now on each message has a group of its own, and nothing here is kept for more.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let next = self.next.lock().take();
        if let Some(next) = next {
            next.close();
        }
    }

    /// Waits until nothing is in flight, after a close.
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
    done: Completion,
    /// What librdkafka does not hand back as it was. A box, because most have none.
    message: Option<Box<Message>>,
}

#[derive(Debug)]
enum Place {
    Open(Single),
    /// The producer let go: nobody waits.
    Abandoned,
    Landed,
}

/// Single messages that were sent one after the other: close together in memory, which several threads write to.
#[derive(Debug, Default)]
struct Group(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    /// `None` while the group is free.
    share: Option<Arc<Share>>,
    singles: Vec<Place>,
    /// How many have landed.
    landed: usize,
    /// No more are added.
    closed: bool,
}

impl Places {
    /// Frees the group when its last message has landed.
    fn end(&mut self) -> Option<Arc<Share>> {
        if !self.closed || self.landed < self.singles.len() {
            return None;
        }
        self.singles.clear();
        (self.landed, self.closed) = (0, false);
        self.share.take()
    }
}

#[derive(Debug, Default)]
struct Batches {
    flights: Vec<Option<Batch>>,
    free: Vec<usize>,
}

impl Batches {
    fn add(&mut self, flight: Batch) -> usize {
        if let Some(id) = self.free.pop() {
            self.flights[id] = Some(flight);
            return id;
        }
        self.flights.push(Some(flight));
        self.flights.len() - 1
    }

    fn remove(&mut self, id: usize) -> Option<Batch> {
        self.free.push(id);
        self.flights[id].take()
    }

    fn get(&mut self, id: usize) -> Option<&mut Batch> {
        self.flights.get_mut(id)?.as_mut()
    }
}

#[derive(Debug, Default)]
struct Groups {
    all: Vec<Arc<Group>>,
    free: Vec<usize>,
}

/// Everything in flight of one native producer.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    batches: Mutex<Batches>,
    /// Never taken inside a group.
    groups: Arc<Mutex<Groups>>,
}

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
        Departure(self.batches.lock().add(batch))
    }

    /// Makes room for the verdict of a single message, before it is sent; the word that names it. A message is kept where
    /// librdkafka does not hand it back as it is.
    pub(crate) fn depart_alone(&self, message: Option<Box<Message>>, done: Completion, share: &Arc<Share>) -> usize {
        let mut next = share.next.lock();
        if let Some(other) = next.take_if(|next| !Arc::ptr_eq(&next.home, &self.groups)) {
            other.close();
        }
        let Next { group, id, .. } = next.get_or_insert_with(|| self.open_group(share));
        let mut places = group.0.lock();
        let word = ALONE | *id << INDEX_BITS | places.singles.len();
        places.singles.push(Place::Open(Single { done, message }));
        if places.singles.len() == GROUP || share.closing.load(Ordering::Acquire) {
            places.closed = true;
            drop(places);
            *next = None;
        }
        word
    }

    fn open_group(&self, share: &Arc<Share>) -> Next {
        share.flights.fetch_add(1, Ordering::AcqRel);
        let (id, group) = {
            let mut groups = self.groups.lock();
            let id = groups.free.pop().unwrap_or(groups.all.len());
            if id == groups.all.len() {
                groups.all.push(Arc::default());
            }
            (id, groups.all[id].clone())
        };
        let mut places = group.0.lock();
        places.share = Some(share.clone());
        places.singles.reserve_exact(GROUP);
        drop(places);
        Next { group, id, home: self.groups.clone() }
    }

    /// The batch was sent, but for those that failed at once.
    pub(crate) fn departed(&self, departure: &Departure, messages: Vec<Message>, failed: Vec<(usize, Error)>) {
        let mut early = {
            let mut batches = self.batches.lock();
            let Some(batch) = batches.get(departure.0) else { return };
            batch.messages = Some(messages);
            mem::take(&mut batch.early)
        };
        early.extend(failed.into_iter().map(|(index, error)| (index, Err(error))));
        for (index, verdict) in early {
            self.landed(departure.word(index), verdict, || None);
        }
    }

    /// Takes the verdict of a message. `message` is what librdkafka has of it, for one that was sent alone.
    pub(crate) fn landed(
        &self,
        word: usize,
        verdict: Result<Receipt, Error>,
        message: impl FnOnce() -> Option<Message>,
    ) {
        let (id, index) = ((word & !ALONE) >> INDEX_BITS, word & MAX_BATCH);
        if word & ALONE == 0 {
            return self.landed_in_batch(id, index, verdict);
        }
        let Some(group) = self.groups.lock().all.get(id).cloned() else { return };
        let (place, over) = {
            let mut places = group.0.lock();
            let Some(place) = places.singles.get_mut(index).filter(|place| !matches!(place, Place::Landed)) else {
                return;
            };
            let place = mem::replace(place, Place::Landed);
            places.landed += 1;
            (place, places.end())
        };
        // Without a lock: a verdict wakes whoever waits.
        if let Place::Open(Single { done, message: kept }) = place {
            let back = if verdict.is_err() { kept.map(|kept| *kept).or_else(message) } else { None };
            give(&done, 0, verdict, back);
        }
        free(&self.groups, id, over);
    }

    fn landed_in_batch(&self, id: usize, index: usize, verdict: Result<Receipt, Error>) {
        let mut batches = self.batches.lock();
        let Some(batch) = batches.get(id) else { return };
        let Some(messages) = &mut batch.messages else {
            batch.early.push((index, verdict));
            return;
        };
        batch.open -= 1;
        let (done, message, over) = (batch.done.clone(), messages.get_mut(index).map(mem::take), batch.open == 0);
        let batch = if over { batches.remove(id) } else { None };
        drop(batches);
        if let Some(done) = done {
            give(&done, index, verdict, message);
        }
        if let Some(batch) = batch {
            batch.share.land();
        }
    }

    /// Lets go of what this producer has in flight: those messages are answered `Unknown`. How many there were.
    pub(crate) fn abandon(&self, share: &Arc<Share>) -> usize {
        let mut left = 0;
        let mut given_up = Vec::new();
        let mut alone = Vec::new();
        for batch in self.batches.lock().flights.iter_mut().flatten().filter(|b| Arc::ptr_eq(&b.share, share)) {
            left += if batch.done.is_some() { batch.open } else { 0 };
            given_up.extend(batch.done.take());
        }
        let groups = self.groups.lock().all.clone();
        for group in groups {
            let mut places = group.0.lock();
            if places.share.as_ref().is_some_and(|s| Arc::ptr_eq(s, share)) {
                for place in &mut places.singles {
                    if matches!(place, Place::Open(_)) {
                        alone.push(mem::replace(place, Place::Abandoned));
                    }
                }
            }
        }
        left += alone.len();
        // Dropped without a lock, which answers whoever waits.
        drop((given_up, alone));
        left
    }
}

impl Drop for Flights {
    /// What has no verdict then gets none: it is answered `Unknown`.
    fn drop(&mut self) {
        let groups = mem::take(&mut self.groups.lock().all);
        for group in groups {
            let (singles, share) = {
                let mut places = group.0.lock();
                (mem::take(&mut places.singles), places.share.take())
            };
            // Without the lock, which answers whoever waits.
            drop(singles);
            if let Some(share) = share {
                share.land();
            }
        }
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
        flights.landed(departure.word(2), Ok(Receipt::at(1, 9)), || None);
        let refused = Error::new(ErrorKind::TooLarge, "large");
        flights.departed(&departure, batch(3), vec![(1, refused)]);
        flights.landed(departure.word(0), Ok(Receipt::at(0, 4)), || None);
        let error = verdict.await.unwrap_err();
        assert_eq!(
            error.failures().iter().map(|(i, e)| (*i, e.kind())).collect::<Vec<_>>(),
            [(1, ErrorKind::TooLarge)]
        );
        assert_eq!(error.receipts().get(2), Some(Receipt::at(1, 9)));
        share.close();
        share.empty().await;
    }

    #[tokio::test]
    async fn a_message_sent_alone_has_a_verdict_of_its_own() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let send = || {
            let (done, verdict) = Completion::new(1);
            (flights.depart_alone(None, done, &share), verdict)
        };
        let ((taken, receipt), (refused, error), (left, unknown)) = (send(), send(), send());
        flights.landed(refused, Err(Error::new(ErrorKind::TooLarge, "large")), || None);
        flights.landed(taken, Ok(Receipt::at(1, 9)), || None);
        assert_eq!(receipt.await.unwrap().get(0), Some(Receipt::at(1, 9)));
        assert_eq!(error.await.unwrap_err().failures()[0].1.kind(), ErrorKind::TooLarge);
        assert_eq!(flights.abandon(&share), 1);
        assert_eq!(unknown.await.unwrap_err().failures()[0].1.outcome(), Outcome::Unknown);
        flights.landed(left, Ok(Receipt::accepted()), || None);
        share.close();
        share.empty().await;
        // A late report for one of them is nobody's, and counts for nothing.
        flights.landed(taken, Ok(Receipt::accepted()), || None);
        share.close();
        share.empty().await;
    }

    #[tokio::test]
    async fn groups_follow_one_another_and_are_used_again() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        for round in 0..3 {
            let sent: Vec<_> = (0..2 * GROUP + 1)
                .map(|_| {
                    let (done, verdict) = Completion::new(1);
                    (flights.depart_alone(None, done, &share), verdict)
                })
                .collect();
            for (at, (word, verdict)) in sent.into_iter().enumerate().rev() {
                flights.landed(word, Ok(Receipt::at(0, at as u64)), || None);
                assert_eq!(verdict.await.unwrap().get(0), Some(Receipt::at(0, at as u64)), "round {round}");
            }
        }
        share.close();
        share.empty().await;
        // Two are full and one in the making, which begins where the last round ended.
        let groups = flights.groups.lock();
        assert!(groups.all.len() <= 4 && groups.all.len() == groups.free.len(), "{groups:?}");
    }

    #[tokio::test]
    async fn a_message_that_fails_comes_back() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let failed = || Err(Error::new(ErrorKind::Connection, "away"));
        let sent = |kept: Option<Message>, native: Option<Message>| {
            let (sender, back) = std::sync::mpsc::channel();
            let word = flights.depart_alone(kept.map(Box::new), Completion::new(1).0, &share);
            flights.landed(word, failed(), || {
                let _ = sender.send(());
                native
            });
            back.try_recv().is_ok()
        };
        assert!(sent(None, Some(Message::new("x"))), "librdkafka is asked for it");
        assert!(!sent(Some(Message::new("x").header("a", "b")), None), "it was kept");
    }

    #[tokio::test]
    async fn a_producer_goes_on_with_another_native_one() {
        let (old, new, share) = (Flights::default(), Flights::default(), Arc::new(Share::default()));
        let send = |flights: &Flights| {
            let (done, verdict) = Completion::new(1);
            (flights.depart_alone(None, done, &share), verdict)
        };
        let ((first, before), (second, after)) = (send(&old), send(&new));
        new.landed(second, Ok(Receipt::at(0, 2)), || None);
        assert_eq!(after.await.unwrap().get(0), Some(Receipt::at(0, 2)));
        old.landed(first, Ok(Receipt::at(0, 1)), || None);
        assert_eq!(before.await.unwrap().get(0), Some(Receipt::at(0, 1)));
        share.close();
        share.empty().await;
    }

    #[tokio::test]
    async fn what_is_left_at_the_end_is_unknown() {
        let (flights, share) = (Flights::default(), Arc::new(Share::default()));
        let (done, verdict) = Completion::new(2);
        let departure = flights.depart(2, done, &share);
        flights.departed(&departure, batch(2), vec![]);
        flights.landed(departure.word(0), Ok(Receipt::accepted()), || None);
        assert_eq!(flights.abandon(&share), 1);
        let failures = verdict.await.unwrap_err().failures();
        assert_eq!((failures[0].0, failures[0].1.outcome()), (1, Outcome::Unknown));
        // The late report finds nobody and does no harm.
        flights.landed(departure.word(1), Ok(Receipt::accepted()), || None);
        share.close();
        share.empty().await;
    }
}

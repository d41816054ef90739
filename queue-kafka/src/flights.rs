//! Messages that are with librdkafka and wait for their verdict.

use std::mem;
use std::sync::Arc;

use queue_core::{Completion, Error, Message, Receipt};

use crate::sync::{AtomicBool, AtomicUsize, Mutex, Notify, Ordering};

/// Half of the word that librdkafka carries with each message names the batch, the other half the message in it.
const INDEX_BITS: u32 = usize::BITS / 2;
/// What messages leave behind that were accepted.
#[derive(Default)]
struct Landed {
    kept: Vec<Message>,
    messages: Vec<Message>,
}

/// The single message that a word names, in a set of those of its group.
fn bit(word: usize) -> u64 {
    u32::try_from(word & MAX_BATCH).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
}

/// Verdicts by the index of the message in its batch or group.
fn indexed(run: &[(usize, Receipt)]) -> impl Iterator<Item = (usize, Receipt)> {
    run.iter().map(|(word, receipt)| (word & MAX_BATCH, receipt.clone()))
}

/// Most messages of a batch.
pub(crate) const MAX_BATCH: usize = (1 << INDEX_BITS) - 1;

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

/// Single messages whose verdicts their sender gives out together.
#[derive(Debug, Default)]
struct Group(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    /// `None` while the group is free.
    share: Option<Arc<Share>>,
    /// `None` when the producer let go: nobody waits.
    done: Option<Completion>,
    /// The messages, by their index in `done`, that librdkafka has not reported.
    open: u64,
    /// What librdkafka does not hand back as it was.
    kept: Vec<(usize, Message)>,
    /// No more are added.
    closed: bool,
}

/// Messages of a group that land.
#[derive(Default)]
struct Landing {
    done: Option<Completion>,
    kept: Vec<Message>,
    /// Whose group it was, when they are its last.
    over: Option<Arc<Share>>,
}

impl Places {
    /// Adds a message, if its verdict is given out with those of the others.
    fn join(&mut self, done: Completion, message: Option<Message>) -> Result<usize, (Completion, Option<Message>)> {
        let joined = match &mut self.done {
            Some(all) => all.join(done),
            None => Err(done),
        };
        match joined {
            Ok(index) => {
                self.take(index, message);
                Ok(index)
            }
            Err(done) => Err((done, message)),
        }
    }

    fn take(&mut self, index: usize, message: Option<Message>) {
        self.open |= 1 << index;
        self.kept.extend(message.map(|message| (index, message)));
    }

    /// Takes out the messages that land, each once.
    fn land(&mut self, indices: u64) -> Landing {
        let landing = indices & self.open;
        self.open &= !landing;
        let done = self.done.as_mut().map(|done| done.part(landing));
        let is_landing = |(index, _): &mut (usize, _)| landing >> *index & 1 == 1;
        let kept = self.kept.extract_if(.., is_landing).map(|(_, message)| message).collect();
        Landing { done, kept, over: self.end() }
    }

    /// Frees the group when its last message has landed.
    fn end(&mut self) -> Option<Arc<Share>> {
        if !self.closed || self.open != 0 {
            return None;
        }
        self.closed = false;
        self.done = None;
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
    pub(crate) fn depart_alone(&self, message: Option<Message>, done: Completion, share: &Arc<Share>) -> usize {
        let mut next = share.next.lock();
        if let Some(other) = next.take_if(|next| !Arc::ptr_eq(&next.home, &self.groups)) {
            other.close();
        }
        let word = |id: usize, index: usize| ALONE | id << INDEX_BITS | index;
        let done = match &*next {
            Some(Next { group, id, .. }) => match group.0.lock().join(done, message) {
                Ok(index) => return word(*id, index),
                Err(back) => back,
            },
            None => (done, message),
        };
        if let Some(full) = next.take() {
            full.close();
        }
        let (opened, index) = self.open_group(done, share);
        let word = word(opened.id, index);
        if share.closing.load(Ordering::Acquire) {
            opened.close();
        } else {
            *next = Some(opened);
        }
        word
    }

    /// A group that begins with this message, and the index of it.
    fn open_group(&self, (done, message): (Completion, Option<Message>), share: &Arc<Share>) -> (Next, usize) {
        share.flights.fetch_add(1, Ordering::AcqRel);
        let (id, group) = {
            let mut groups = self.groups.lock();
            let id = groups.free.pop().unwrap_or(groups.all.len());
            if id == groups.all.len() {
                groups.all.push(Arc::default());
            }
            (id, groups.all[id].clone())
        };
        let (done, index) = done.joinable();
        let mut places = group.0.lock();
        places.share = Some(share.clone());
        places.done = Some(done);
        places.take(index, message);
        drop(places);
        (Next { group, id, home: self.groups.clone() }, index)
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
        let Landing { done, kept, over } = group.0.lock().land(bit(word));
        // Without a lock: a verdict wakes whoever waits.
        if let Some(done) = done {
            let kept = kept.into_iter().next();
            let back = if verdict.is_err() { kept.or_else(message) } else { None };
            give(&done, index, verdict, back);
        }
        free(&self.groups, id, over);
    }

    /// Takes the verdicts of messages that were accepted, and leaves none: those of one batch or group that come one after
    /// the other are taken at a time.
    pub(crate) fn accepted(&self, verdicts: &mut Vec<(usize, Receipt)>) {
        // Dropped when all is told: a payload may belong to the application.
        let mut landed = Landed::default();
        for run in verdicts.chunk_by(|(word, _), (next, _)| word >> INDEX_BITS == next >> INDEX_BITS) {
            let word = run[0].0;
            let id = (word & !ALONE) >> INDEX_BITS;
            match word & ALONE {
                0 => self.accepted_in_batch(id, run, &mut landed.messages),
                _ => self.accepted_alone(id, run, &mut landed.kept),
            }
        }
        verdicts.clear();
    }

    fn accepted_alone(&self, id: usize, run: &[(usize, Receipt)], landed: &mut Vec<Message>) {
        let Some(group) = self.groups.lock().all.get(id).cloned() else { return };
        let landing = group.0.lock().land(run.iter().fold(0, |all, (word, _)| all | bit(*word)));
        // Without a lock: a verdict wakes whoever waits.
        if let Some(done) = landing.done {
            done.accept_each(indexed(run));
        }
        landed.extend(landing.kept);
        free(&self.groups, id, landing.over);
    }

    fn accepted_in_batch(&self, id: usize, run: &[(usize, Receipt)], landed: &mut Vec<Message>) {
        let mut batches = self.batches.lock();
        let Some(batch) = batches.get(id) else { return };
        let Some(messages) = &mut batch.messages else {
            batch.early.extend(indexed(run).map(|(index, receipt)| (index, Ok(receipt))));
            return;
        };
        landed.extend(run.iter().filter_map(|(word, _)| messages.get_mut(word & MAX_BATCH).map(mem::take)));
        batch.open -= run.len();
        let (done, over) = (batch.done.clone(), batch.open == 0);
        let batch = if over { batches.remove(id) } else { None };
        drop(batches);
        if let Some(done) = done {
            done.accept_each(indexed(run));
        }
        if let Some(batch) = batch {
            batch.share.land();
        }
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
        for batch in self.batches.lock().flights.iter_mut().flatten().filter(|b| Arc::ptr_eq(&b.share, share)) {
            left += if batch.done.is_some() { batch.open } else { 0 };
            given_up.extend(batch.done.take());
        }
        let groups = self.groups.lock().all.clone();
        let (mut alone, mut kept) = (Vec::new(), Vec::new());
        for group in groups {
            let mut places = group.0.lock();
            if places.share.as_ref().is_some_and(|s| Arc::ptr_eq(s, share)) {
                alone.extend(places.done.take());
                kept.append(&mut places.kept);
            }
        }
        left += alone.iter().map(Completion::len).sum::<usize>();
        // Dropped without a lock, which answers whoever waits.
        drop((given_up, alone, kept));
        left
    }
}

impl Drop for Flights {
    /// What has no verdict then gets none: it is answered `Unknown`.
    fn drop(&mut self) {
        let batches = mem::take(&mut self.batches.lock().flights);
        for Batch { done, share, .. } in batches.into_iter().flatten() {
            drop(done);
            share.land();
        }
        let groups = mem::take(&mut self.groups.lock().all);
        for group in groups {
            let Places { share, done, kept, .. } = mem::take(&mut *group.0.lock());
            // Without the lock, which answers whoever waits.
            drop((done, kept));
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
#[path = "flights/tests.rs"]
mod tests;

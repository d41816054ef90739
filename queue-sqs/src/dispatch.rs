//! Requests of a producer: cut from what was given, several at a time; where there is order, to FIFO queues and topics,
//! one message of a group at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use queue_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::error::SendError;
use tokio::task::{Id, JoinError, JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::address::{Kind, Target};
use crate::convert::{self, Encoded};
use crate::door::{self, Verdicts};
use crate::error;
use crate::hops;
use crate::lanes::{Group, Lanes};
use crate::producer::{Item, Shared, Told};

/// The most entries of one request.
pub(crate) const MAX_ENTRIES: usize = 10;
/// The longest that a short request for a FIFO queue waits for one under way: an answer takes less, unless it is lost.
const HOLD: Duration = Duration::from_millis(100);
/// Accepted messages that are told at a time.
const MAX_GATHERED: usize = 8 * MAX_ENTRIES;
/// How long the first of them waits at most: less than a request takes.
const GATHERS: Duration = Duration::from_millis(2);
/// The pause before another try: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// One message, ready to go.
struct Ready {
    item: Item,
    encoded: Encoded,
}

/// One request, ready to go.
struct Request {
    to: Target,
    /// With their message groups on FIFO queues.
    items: Vec<(Option<Group>, Item)>,
    /// The same, as the SDK takes them for a queue.
    entries: Vec<SendMessageBatchRequestEntry>,
    bytes: usize,
}

/// What came back of a request: what the broker has, and what is to be sent again.
#[derive(Default)]
struct Again {
    accepted: Told,
    /// In order, with their message groups where there is order.
    items: Vec<(Option<Group>, Item)>,
    wait: Wait,
}

/// Who waits before another try.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Wait {
    /// Nobody: the next request is another one.
    #[default]
    Nobody,
    /// The message groups of what failed.
    Groups,
    /// Everything: the request as a whole was refused, or its answer lost.
    Everything,
}

/// A request for a FIFO queue under way.
struct UnderWay {
    to: Target,
    groups: Vec<Group>,
    since: Instant,
}

/// Cuts what was given into requests and keeps them going.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    told: UnboundedSender<Told>,
    /// To be told, and when at the latest.
    accepted: Told,
    gathered_until: Option<Instant>,
    /// For standard queues and topics, in order.
    waiting: VecDeque<Item>,
    /// The first that did not fit into the request before.
    carried: Option<Ready>,
    /// For FIFO queues and topics.
    lanes: Lanes<Item>,
    requests: JoinSet<Again>,
    /// Requests for FIFO queues under way.
    busy: HashMap<Id, UnderWay>,
    /// Whether FIFO queues go first: by turns, so that neither kind starves.
    fifo_first: bool,
    /// When a short request need not wait any longer.
    held: Option<Instant>,
    /// Failures in a row of whole requests.
    failures: u32,
    resume: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, told: UnboundedSender<Told>) -> Self {
        Self {
            shared,
            told,
            accepted: Told::new(),
            gathered_until: None,
            waiting: VecDeque::new(),
            carried: None,
            lanes: Lanes::default(),
            requests: JoinSet::new(),
            busy: HashMap::new(),
            fifo_first: false,
            held: None,
            failures: 0,
            resume: None,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            if self.shared.abandoned.load(Ordering::Acquire) {
                return self.abandon();
            }
            self.start();
            if self.gather().await {
                continue;
            }
            let closed = {
                let mut inbox = self.shared.inbox.lock();
                inbox.awaited = self.has_use();
                if inbox.awaited && !inbox.items.is_empty() {
                    continue;
                }
                inbox.closed
            };
            if closed && self.is_idle() {
                return;
            }
            let shared = self.shared.clone();
            let wake = self.resume.or_else(|| self.lanes.next_due().into_iter().chain(self.held).min());
            let wake = wake.into_iter().chain(self.gathered_until).min();
            tokio::select! {
                () = shared.wake.notified() => {}
                Some(ended) = self.requests.join_next_with_id() => self.ended(ended),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Tells what was accepted: to wake those who wait costs as much as a message, so the answers that come in the same turn of
    /// this thread are told together. And more of them as long as so much waits that requests go on without those who are
    /// told. Whether more came.
    async fn gather(&mut self) -> bool {
        let Some(until) = self.gathered_until else { return false };
        if self.accepted.len() < MAX_GATHERED {
            if self.has_backlog() && Instant::now() < until {
                return false;
            }
            // Until the thread has looked at what came from the network.
            yield_now().await;
            if let Some(ended) = self.requests.try_join_next_with_id() {
                self.ended(ended);
                return true;
            }
        }
        self.tell();
        false
    }

    /// Whether there are messages for the next requests, without those that are sent when others are told.
    fn has_backlog(&self) -> bool {
        self.requests.len() >= self.shared.max_requests && self.waiting.len() >= MAX_GATHERED
    }

    /// Takes what requests have left that are over.
    fn take_ended(&mut self) {
        while let Some(ended) = self.requests.try_join_next_with_id() {
            self.ended(ended);
        }
    }

    fn tell(&mut self) {
        self.gathered_until = None;
        if let Err(SendError(accepted)) = self.told.send(std::mem::take(&mut self.accepted)) {
            // The runtime of whoever opened the sender has ended.
            accepted.into_iter().for_each(|(item, receipt)| item.verdict.accept(receipt));
        }
    }

    /// Whether messages that come now could go: else a request under way, or the end of a pause, looks for them.
    fn has_use(&self) -> bool {
        self.requests.len() < self.shared.max_requests && self.resume.is_none()
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.waiting.is_empty()
            && self.carried.is_none()
            && self.lanes.is_empty()
            && self.shared.inbox.lock().items.is_empty()
    }

    /// Gives up: what was not sent is handed back, what is under way is unknown.
    fn abandon(mut self) {
        self.take_ended();
        self.tell();
        let items = std::mem::take(&mut self.shared.inbox.lock().items);
        let carried = self.carried.take().map(|ready| ready.item);
        for item in carried.into_iter().chain(self.waiting.drain(..)).chain(self.lanes.drain()).chain(items) {
            item.fail(Error::closed("sender"));
        }
    }

    /// Starts requests as long as there are messages and room.
    fn start(&mut self) {
        let now = Instant::now();
        if self.resume.is_some_and(|at| at > now) {
            return;
        }
        self.resume = None;
        self.held = None;
        self.take_in();
        self.lanes.wake(now);
        while self.requests.len() < self.shared.max_requests {
            self.fifo_first = !self.fifo_first;
            let request = match self.fifo_first {
                true => self.cut_lanes(now).or_else(|| self.cut(now)),
                false => self.cut(now).or_else(|| self.cut_lanes(now)),
            };
            let Some(request) = request else { return };
            let groups: Vec<_> = request.items.iter().filter_map(|(group, _)| group.clone()).collect();
            let to = request.to.clone();
            let id = self.requests.spawn(request.send(self.shared.clone())).id();
            if !groups.is_empty() {
                self.busy.insert(id, UnderWay { to, groups, since: now });
            }
        }
    }

    fn ended(&mut self, ended: std::result::Result<(Id, Again), JoinError>) {
        // One that panicked answered its messages when they were dropped.
        let (id, mut again) = ended.unwrap_or_else(|panicked| (panicked.id(), Again::default()));
        if !again.accepted.is_empty() {
            self.gathered_until.get_or_insert_with(|| Instant::now() + GATHERS);
            self.accepted.append(&mut again.accepted);
        }
        let mut groups = self.busy.remove(&id).map(|under_way| under_way.groups).unwrap_or_default();
        match again.wait {
            // Those that went together are one failure.
            Wait::Everything if self.resume.is_some() => {}
            Wait::Everything => {
                self.resume = Some(Instant::now() + pause(self.failures));
                self.failures += 1;
            }
            _ => self.failures = 0,
        }
        for (group, mut item) in again.items.into_iter().rev() {
            match group {
                Some(group) => {
                    groups.retain(|other| *other != group);
                    let due = (again.wait == Wait::Groups).then(|| Instant::now() + pause(item.tries));
                    item.tries += 1;
                    self.lanes.again(group, item, due);
                }
                None => self.waiting.push_front(item),
            }
        }
        groups.into_iter().for_each(|group| self.lanes.done(group));
    }

    /// Sorts what was given: by message group for FIFO queues.
    fn take_in(&mut self) {
        let items = std::mem::take(&mut self.shared.inbox.lock().items);
        for mut item in items {
            match self.shared.direct(&mut item) {
                Ok(Kind { fifo: true, .. }) => {
                    let id = convert::message_group(&item.message).into();
                    self.lanes.push(Group { to: item.to.clone(), id }, item);
                }
                Ok(_) => self.waiting.push_back(item),
                Err(error) => item.fail(error.with_operation("send")),
            }
        }
    }

    /// Makes the next request for a FIFO queue, of different message groups; queues take turns.
    ///
    /// A request costs the same for one message as for ten: a short one goes only when no other for its queue is under
    /// way, or is for longer than an answer takes.
    fn cut_lanes(&mut self, now: Instant) -> Option<Request> {
        for to in self.lanes.targets() {
            if self.lanes.ready(&to) < MAX_ENTRIES
                && let Some(until) = self.busy_until(&to).filter(|until| *until > now)
            {
                self.held = Some(self.held.map_or(until, |held| held.min(until)));
                continue;
            }
            let request = self.cut_lane(to, now);
            self.lanes.had_its_turn(&request.to);
            // All that was ready may have failed before the network.
            if !request.entries.is_empty() {
                return Some(request);
            }
        }
        None
    }

    /// Until when a short request for a target waits for one under way.
    fn busy_until(&self, to: &Target) -> Option<Instant> {
        self.busy.values().filter(|under_way| under_way.to == *to).map(|under_way| under_way.since + HOLD).max()
    }

    fn cut_lane(&mut self, to: Target, now: Instant) -> Request {
        let limit = self.limit(to.kind);
        let mut request = Request::new(to);
        while request.entries.len() < MAX_ENTRIES {
            let Some((group, item)) = self.lanes.next(&request.to) else { break };
            let Some(ready) = self.encode(item, now) else {
                self.lanes.done(group);
                continue;
            };
            if !request.entries.is_empty() && request.bytes + ready.encoded.size > limit {
                self.lanes.again(group, ready.item, None);
                break;
            }
            request.push(ready, Some(group));
        }
        request
    }

    /// Makes the next request for a standard queue. Messages that cannot be sent fail alone, before the network.
    fn cut(&mut self, now: Instant) -> Option<Request> {
        let mut request: Option<Request> = None;
        loop {
            let ready = match self.carried.take() {
                Some(carried) => carried,
                None => {
                    let Some(item) = self.waiting.pop_front() else { return request };
                    match self.encode(item, now) {
                        Some(ready) => ready,
                        None => continue,
                    }
                }
            };
            let current = request.get_or_insert_with(|| Request::new(ready.item.to.clone()));
            let fits = current.entries.is_empty()
                || (current.to == ready.item.to
                    && current.entries.len() < MAX_ENTRIES
                    && current.bytes + ready.encoded.size <= self.limit(current.to.kind));
            if !fits {
                self.carried = Some(ready);
                return request;
            }
            current.push(ready, None);
        }
    }

    /// The most bytes of a request.
    fn limit(&self, kind: Kind) -> usize {
        self.shared.max_batch.load(Ordering::Relaxed).min(door::limit(kind))
    }

    fn encode(&self, mut item: Item, now: Instant) -> Option<Ready> {
        if item.expires <= now {
            item.fail(Error::new(ErrorKind::Timeout, "the message was not sent in time").with_operation("send"));
            return None;
        }
        match self.try_encode(&mut item) {
            Ok(encoded) => Some(Ready { item, encoded }),
            Err(error) => {
                item.fail(error.with_operation("send"));
                None
            }
        }
    }

    fn try_encode(&self, item: &mut Item) -> Result<Encoded> {
        let kind = item.to.kind;
        if kind.fifo && item.message.get_id().is_none() {
            // In the message, so that every later try has the same.
            let message = std::mem::take(&mut item.message);
            item.message = message.id(Uuid::now_v7().simple().to_string());
        }
        let can_hop = !kind.fifo && !kind.topic;
        let hopping = self.shared.hop.filter(|_| can_hop).and_then(|hop| hops::first(&item.message, hop));
        let encoded = convert::encode(hopping.as_ref().unwrap_or(&item.message), kind)?;
        let limit = self.shared.max_message.min(door::limit(kind));
        if encoded.size > limit {
            let why = if kind.topic {
                "the message is larger than a topic takes"
            } else {
                "the message is larger than the queue takes"
            };
            return Err(Error::new(ErrorKind::TooLarge, why)
                .with_context("limit", limit)
                .with_context("actual", encoded.size));
        }
        Ok(encoded)
    }
}

impl Drop for Driver {
    /// Dropped with its runtime, it tells what it knows.
    fn drop(&mut self) {
        self.take_ended();
        self.tell();
    }
}

/// The pause after so many failures in a row: doubled each time, of which up to a half is left to chance, so that those
/// who were refused together do not come back together.
fn pause(failures: u32) -> Duration {
    let most = PAUSE.0.saturating_mul(1 << failures.min(16)).min(PAUSE.1);
    most.mul_f64(0.5 + 0.5 * fastrand::f64())
}

impl Request {
    fn new(to: Target) -> Self {
        Self { to, items: Vec::with_capacity(MAX_ENTRIES), entries: Vec::with_capacity(MAX_ENTRIES), bytes: 0 }
    }

    /// Adds a message, with its message group on a FIFO queue.
    fn push(&mut self, ready: Ready, group: Option<Group>) {
        let Ready { item, encoded: Encoded { mut entry, size } } = ready;
        entry.id = self.entries.len().to_string();
        self.bytes += size;
        self.entries.push(entry);
        self.items.push((group, item));
    }

    async fn send(self, shared: Arc<Shared>) -> Again {
        let Self { to, items, entries, bytes } = self;
        match door::send(&shared, &to, entries).await {
            Ok(verdicts) => answered(items, verdicts),
            Err(error) if error.kind() == ErrorKind::TooLarge && items.len() > 1 => {
                // Nothing of it was taken; smaller requests are.
                shared.max_batch.fetch_min(bytes / 2, Ordering::Relaxed);
                Again { items, ..Again::default() }
            }
            Err(error) => failed(&shared, items, &error),
        }
    }
}

/// Whether the message goes again from here: to a FIFO queue or topic, where the deduplication id forbids a double and order
/// would be lost by way of the handle.
fn goes_again(group: Option<&Group>, item: &Item, error: &Error) -> bool {
    group.is_some() && error.is_retryable() && Instant::now() < item.expires
}

fn failed(shared: &Shared, items: Vec<(Option<Group>, Item)>, error: &Error) -> Again {
    let mut again = Again::default();
    if error.kind() == ErrorKind::Throttled {
        again.wait = Wait::Everything;
    }
    for (group, mut item) in items {
        if goes_again(group.as_ref(), &item, error) && !shared.abandoned.load(Ordering::Acquire) {
            item.unsure |= error.outcome() == Outcome::Unknown;
            again.items.push((group, item));
            again.wait = Wait::Everything;
        } else {
            item.fail(error.clone());
        }
    }
    again
}

/// Gives each message its own verdict.
fn answered(items: Vec<(Option<Group>, Item)>, verdicts: Verdicts) -> Again {
    let mut again = Again { accepted: Told::with_capacity(items.len()), items: Vec::new(), wait: Wait::Groups };
    let mut items: Vec<_> = items.into_iter().map(Some).collect();
    let mut take = |id: &str| id.parse::<usize>().ok().and_then(|index| Some((index, items.get_mut(index)?.take()?)));
    again.accepted.extend(verdicts.accepted.into_iter().filter_map(|(id, receipt)| {
        let (_, (_, item)) = take(&id)?;
        Some((item, receipt))
    }));
    let mut refused = Vec::new();
    for (id, error) in verdicts.refused {
        if let Some((index, item)) = take(&id) {
            refused.push((index, item, error));
        }
    }
    let missing = items.into_iter().enumerate().filter_map(|(index, item)| Some((index, item?)));
    refused.extend(missing.map(|(index, item)| (index, item, error::unmentioned("send"))));
    refused.sort_unstable_by_key(|(index, ..)| *index);
    for (_, (group, mut item), error) in refused {
        if goes_again(group.as_ref(), &item, &error) {
            item.unsure |= error.outcome() == Outcome::Unknown;
            again.items.push((group, item));
        } else {
            item.fail(error);
        }
    }
    again
}

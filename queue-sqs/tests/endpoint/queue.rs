//! One queue: its messages, which of them can be seen, and what is remembered of those that cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attributes::Attributes;
use super::entry::Entry;
use super::faults::Dice;
use super::receipt::Receipt;
use super::refusal::Refusal;

/// How long a deduplication id is remembered, whatever becomes of its message.
const REMEMBERED: Duration = Duration::from_secs(300);
/// The longest time that a message stays away, from its receipt.
const MAX_HIDDEN: Duration = Duration::from_secs(43_200);

/// A message in a queue.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: String,
    pub entry: Arc<Entry>,
    pub sent: Instant,
    pub sequence: u64,
    pub receives: u64,
    pub first_received: Option<Instant>,
    pub last_received: Option<Instant>,
    /// The ARN of the queue that it was moved from.
    pub source: Option<String>,
    /// The number of the receive whose handle is good.
    receipt: u64,
    /// Until when it cannot be seen, if it cannot.
    hidden: Option<Instant>,
    /// Hidden because somebody has it, and not because it is delayed.
    in_flight: bool,
}

#[derive(Debug)]
pub struct Queue {
    pub name: String,
    pub fifo: bool,
    pub attributes: Attributes,
    pub tags: BTreeMap<String, String>,
    pub created: Instant,
    pub modified: Instant,
    pub purged: Option<Instant>,
    /// The bodies of what receivers deleted.
    pub deleted: Vec<String>,
    messages: HashMap<u64, Stored>,
    visible: BTreeSet<u64>,
    hidden: BTreeSet<(Instant, u64)>,
    /// Message groups, with how many of each are in flight.
    busy: HashMap<String, usize>,
    /// Message ids and sequence numbers by deduplication id.
    remembered: HashMap<String, (String, u64)>,
    forgotten: VecDeque<(Instant, String)>,
    next_place: u64,
    next_receipt: u64,
}

impl Queue {
    pub fn new(name: String, attributes: Attributes, now: Instant) -> Self {
        Self {
            fifo: name.ends_with(".fifo"),
            name,
            attributes,
            tags: BTreeMap::new(),
            created: now,
            modified: now,
            purged: None,
            deleted: Vec::new(),
            messages: HashMap::new(),
            visible: BTreeSet::new(),
            hidden: BTreeSet::new(),
            busy: HashMap::new(),
            remembered: HashMap::new(),
            forgotten: VecDeque::new(),
            next_place: 0,
            next_receipt: 0,
        }
    }

    /// Takes a message; its id and sequence number, or those of the one it repeats.
    pub fn send(&mut self, entry: Entry, now: Instant) -> (String, u64) {
        let key = self.fifo.then(|| self.deduplication_key(&entry));
        while self.forgotten.front().is_some_and(|(at, _)| *at <= now) {
            let gone = self.forgotten.pop_front();
            gone.and_then(|(_, key)| self.remembered.remove(&key));
        }
        if let Some(known) = key.as_ref().and_then(|key| self.remembered.get(key)) {
            return known.clone();
        }
        let delay = match entry.delay_seconds {
            Some(seconds) if !self.fifo => u64::try_from(seconds).unwrap_or_default(),
            _ => self.attributes.number("DelaySeconds"),
        };
        let (id, sequence) = (uuid::Uuid::now_v7().to_string(), self.next_place);
        if let Some(key) = key {
            self.remembered.insert(key.clone(), (id.clone(), sequence));
            self.forgotten.push_back((now + REMEMBERED, key));
        }
        self.put(Stored {
            id: id.clone(),
            entry: Arc::new(entry),
            sent: now,
            sequence,
            receives: 0,
            first_received: None,
            last_received: None,
            source: None,
            receipt: 0,
            hidden: (delay > 0).then(|| now + Duration::from_secs(delay)),
            in_flight: false,
        });
        (id, sequence)
    }

    fn deduplication_key(&self, entry: &Entry) -> String {
        let id = entry.message_deduplication_id.clone();
        // By content: any digest does, nobody is told.
        let id = id.unwrap_or_else(|| super::digest::of_body(&entry.message_body));
        match &entry.message_group_id {
            Some(group) if self.attributes.is("DeduplicationScope", "messageGroup") => format!("{group} {id}"),
            _ => id,
        }
    }

    /// Puts a message at the end, as new here but for its counts.
    pub fn put(&mut self, message: Stored) {
        let place = self.next_place;
        self.next_place += 1;
        match message.hidden {
            Some(until) => drop(self.hidden.insert((until, place))),
            None => drop(self.visible.insert(place)),
        }
        self.messages.insert(place, Stored { sequence: place, ..message });
    }

    /// Takes every message out that can be seen.
    pub fn take_visible(&mut self, now: Instant) -> Vec<Stored> {
        self.wake(now);
        let visible = std::mem::take(&mut self.visible);
        visible.into_iter().filter_map(|place| self.messages.remove(&place)).collect()
    }

    /// Shows what was hidden long enough.
    fn wake(&mut self, now: Instant) {
        while let Some((_, place)) = self.hidden.first().copied().filter(|(until, _)| *until <= now) {
            self.show(place);
        }
    }

    fn show(&mut self, place: u64) {
        let Some(message) = self.messages.get_mut(&place) else { return };
        if let Some(until) = message.hidden.take() {
            self.hidden.remove(&(until, place));
            self.visible.insert(place);
        }
        if std::mem::take(&mut message.in_flight)
            && let Some(group) = &message.entry.message_group_id
            && let Some(count) = self.busy.get_mut(group)
        {
            *count -= 1;
            if *count == 0 {
                let group = group.clone();
                self.busy.remove(&group);
            }
        }
    }

    /// Hands out messages: in order of their groups on FIFO queues. Beside them: those that were received too often.
    pub fn receive(
        &mut self,
        max: usize,
        time: Duration,
        now: Instant,
        dice: &mut Dice,
    ) -> (Vec<(String, Stored)>, Vec<Stored>) {
        self.wake(now);
        let limit = self.attributes.redrive().map_or(u64::MAX, |redrive| redrive.receives);
        // Those of groups of which nothing is in flight now; a group that begins here goes on here.
        let blocked: HashSet<String> = if self.fifo { self.busy.keys().cloned().collect() } else { HashSet::new() };
        let (mut received, mut dead) = (Vec::new(), Vec::new());
        let mut after = None;
        while received.len() < max {
            let Some(place) = self.choose(after, &blocked, dice) else { break };
            after = self.fifo.then_some(place);
            if self.messages.get(&place).is_some_and(|m| m.receives >= limit) {
                dead.extend(self.remove(place));
                continue;
            }
            if !self.fifo && dice.duplicates() {
                let copy = self.messages.get(&place).cloned();
                copy.into_iter().for_each(|copy| self.put(copy));
            }
            received.extend(self.hand_out(place, time, now));
        }
        (received, dead)
    }

    fn choose(&self, after: Option<u64>, blocked: &HashSet<String>, dice: &mut Dice) -> Option<u64> {
        if !self.fifo {
            return self.visible.iter().nth(dice.first_of(self.visible.len().min(100))).copied();
        }
        let is_free = |place: &u64| {
            let group = self.messages.get(place).and_then(|m| m.entry.message_group_id.as_ref());
            group.is_none_or(|group| !blocked.contains(group))
        };
        self.visible.range(after.map_or(0, |place| place + 1)..).copied().find(|place| is_free(place))
    }

    fn hand_out(&mut self, place: u64, time: Duration, now: Instant) -> Option<(String, Stored)> {
        let message = self.messages.get_mut(&place)?;
        self.next_receipt += 1;
        message.receipt = self.next_receipt;
        message.receives += 1;
        message.first_received.get_or_insert(now);
        message.last_received = Some(now);
        message.in_flight = true;
        message.hidden = Some(now + time);
        self.visible.remove(&place);
        self.hidden.insert((now + time, place));
        if let Some(group) = &message.entry.message_group_id {
            *self.busy.entry(group.clone()).or_default() += 1;
        }
        let receipt = Receipt { place, number: message.receipt };
        Some((receipt.handle(&self.name), message.clone()))
    }

    fn remove(&mut self, place: u64) -> Option<Stored> {
        self.show(place);
        self.visible.remove(&place);
        self.messages.remove(&place)
    }

    fn done(&mut self, place: u64) {
        let removed = self.remove(place);
        self.deleted.extend(removed.map(|message| message.entry.message_body.clone()));
    }

    pub fn delete(&mut self, handle: &str, now: Instant, dice: &mut Dice) -> Result<(), Refusal> {
        let receipt = Receipt::read(handle, &self.name)?;
        self.wake(now);
        let Some(message) = self.messages.get(&receipt.place) else { return Ok(()) };
        let (mut newest, mut in_flight) = (message.receipt == receipt.number, message.in_flight);
        if newest && in_flight && dice.expires() {
            self.lose(receipt.place);
            (newest, in_flight) = (false, false);
        }
        match (self.fifo, newest && in_flight) {
            (_, true) => self.done(receipt.place),
            (true, false) => return Err(Refusal::new("ReceiptHandleIsInvalid", "The receipt handle has expired")),
            // The newest handle is good on a standard queue until the message is received again; with an older one
            // nothing happens, and nobody is told.
            (false, false) if newest => self.done(receipt.place),
            (false, false) => {}
        }
        Ok(())
    }

    pub fn change(&mut self, handle: &str, seconds: i64, now: Instant, dice: &mut Dice) -> Result<(), Refusal> {
        let time = u64::try_from(seconds).ok().map(Duration::from_secs).filter(|time| *time <= MAX_HIDDEN);
        let Some(time) = time else {
            return Err(Refusal::invalid("VisibilityTimeout", seconds, "Must be between 0 and 43200."));
        };
        let receipt = Receipt::read(handle, &self.name)?;
        self.wake(now);
        let expired = || Refusal::new("ReceiptHandleIsInvalid", "The receipt handle has expired");
        let gone = || {
            let why = "Message does not exist or is not available for visibility timeout change.";
            Refusal::invalid("ReceiptHandle", handle, why)
        };
        let message = self.messages.get(&receipt.place).filter(|m| m.receipt == receipt.number);
        let Some(message) = message else { return Err(if self.fifo { expired() } else { gone() }) };
        if !message.in_flight {
            let why = "The specified message isn't in flight.";
            return Err(if self.fifo { expired() } else { Refusal::new("MessageNotInflight", why) });
        }
        if dice.expires() {
            self.lose(receipt.place);
            return Err(if self.fifo { expired() } else { gone() });
        }
        if message.last_received.is_some_and(|at| now + time > at + MAX_HIDDEN) {
            let why = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds].";
            return Err(Refusal::invalid("VisibilityTimeout", seconds, why));
        }
        if time.is_zero() {
            self.show(receipt.place);
        } else if let Some(message) = self.messages.get_mut(&receipt.place)
            && let Some(until) = message.hidden.replace(now + time)
        {
            self.hidden.remove(&(until, receipt.place));
            self.hidden.insert((now + time, receipt.place));
        }
        Ok(())
    }

    /// Has a message come back before its time, its receipt worth nothing.
    fn lose(&mut self, place: u64) {
        self.show(place);
        if let Some(message) = self.messages.get_mut(&place) {
            self.next_receipt += 1;
            message.receipt = self.next_receipt;
        }
    }

    pub fn purge(&mut self) {
        self.messages.clear();
        self.visible.clear();
        self.hidden.clear();
        self.busy.clear();
    }

    /// When the next hidden message is shown.
    pub fn next_shown(&self) -> Option<Instant> {
        self.hidden.first().map(|(until, _)| *until)
    }

    /// How many can be seen, are in flight, are delayed.
    pub fn numbers(&mut self, now: Instant) -> [usize; 3] {
        self.wake(now);
        let in_flight = self.messages.values().filter(|m| m.in_flight).count();
        [self.visible.len(), in_flight, self.messages.len() - self.visible.len() - in_flight]
    }
}

impl Stored {
    /// As it is in the queue that it is moved to; `source` where it becomes a dead letter there.
    pub fn moved(self, source: Option<String>, receives: u64) -> Self {
        Self { source, receives, hidden: None, in_flight: false, receipt: 0, ..self }
    }
}

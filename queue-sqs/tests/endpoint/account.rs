//! The queues of the account, the clock and the faults, behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::clock::Clock;
use super::counts::Counts;
use super::faults::{Dice, Faults};
use super::queue::Queue;
use super::refusal::Refusal;
use super::topics::Topic;

const ARN: &str = "arn:aws:sqs:us-east-1:000000000000:";
const ID: &str = "000000000000";

pub struct Account {
    base: String,
    clock: Clock,
    state: Mutex<State>,
    requests: Mutex<BTreeMap<String, u64>>,
    changed: Notify,
}

/// What one request sees and changes.
pub struct State {
    pub queues: BTreeMap<String, Queue>,
    /// By ARN.
    pub topics: BTreeMap<String, Topic>,
    /// Names of queues that were deleted, and when.
    pub deleted: HashMap<String, Instant>,
    /// Tasks that moved messages, the newest first.
    pub moves: Vec<Value>,
    pub dice: Dice,
}

impl Account {
    pub fn new(base: String, faults: Faults) -> Self {
        let dice = Dice::new(faults);
        let state = State {
            queues: BTreeMap::new(),
            topics: BTreeMap::new(),
            deleted: HashMap::new(),
            moves: Vec::new(),
            dice,
        };
        Self { base, clock: Clock::new(), state: Mutex::new(state), requests: Mutex::default(), changed: Notify::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn pass(&self, time: Duration) {
        self.clock.pass(time);
        self.changed();
    }

    /// Has every poll look again.
    pub fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// Told when there may be something new, from the moment of this call on.
    pub fn news(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub fn count(&self, action: &str) {
        *self.requests.lock().entry(action.to_owned()).or_default() += 1;
    }

    pub fn counts(&self) -> Counts {
        Counts { requests: self.requests.lock().clone(), faults: self.state().dice.counts() }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().dice.faults = faults;
    }

    pub fn url(&self, name: &str) -> String {
        self.url_in(ID, name)
    }

    /// Another account has the same queues.
    pub fn url_in(&self, id: &str, name: &str) -> String {
        format!("{}/{id}/{name}", self.base)
    }
}

pub fn arn(name: &str) -> String {
    format!("{ARN}{name}")
}

/// The ARN of the queue at this URL.
pub fn arn_at(url: &str) -> String {
    let mut parts = url.rsplit('/');
    let (name, id) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    arn(name).replace(ID, id)
}

pub fn name_of_arn(arn: &str) -> Option<&str> {
    arn.strip_prefix(ARN)
}

impl State {
    /// The queue that a request names by its URL.
    pub fn queue(&mut self, request: &Value) -> Result<(&mut Queue, &mut Dice), Refusal> {
        let url = request.get("QueueUrl").and_then(Value::as_str).ok_or_else(|| Refusal::missing("QueueUrl"))?;
        let name = url.rsplit('/').next().unwrap_or_default();
        let queue = self.queues.get_mut(name).ok_or_else(Refusal::no_queue)?;
        Ok((queue, &mut self.dice))
    }
}

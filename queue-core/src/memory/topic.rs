//! A topic: a kept log, and a queue for each group and subscriber.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::profile::Profile;
use super::queue::Queue;
use crate::address::Start;
use crate::message::Message;

#[derive(Debug)]
pub(super) struct Topic {
    name: String,
    profile: Profile,
    /// Messages that are kept for replay and new groups.
    keep: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: VecDeque<(SystemTime, Message)>,
    base: u64,
    groups: HashMap<String, Arc<Queue>>,
    subscribers: Vec<Weak<Queue>>,
    deleted: bool,
}

impl Topic {
    pub(super) fn new(name: &str, profile: Profile, keep: usize) -> Self {
        Self { name: name.to_owned(), profile, keep, state: Mutex::default() }
    }

    /// Sends to every group and subscriber; false when the topic was deleted. The count is that of queues reached.
    pub(super) fn push(&self, messages: &[Message]) -> Option<usize> {
        let mut state = self.state.lock();
        if state.deleted {
            return None;
        }
        let state = &mut *state;
        let first = state.base + state.log.len() as u64;
        let kept = self.profile.capabilities().group_backlog || self.profile.capabilities().replay;
        if kept {
            let now = SystemTime::now();
            state.log.extend(messages.iter().map(|m| (now, m.clone())));
            while state.log.len() > self.keep {
                state.log.pop_front();
                state.base += 1;
            }
        } else {
            state.base += messages.len() as u64;
        }
        state.subscribers.retain(|s| s.strong_count() > 0);
        let mut reached = 0;
        for queue in state.groups.values().cloned().chain(state.subscribers.iter().filter_map(Weak::upgrade)) {
            reached += 1;
            queue.fan_out(messages.to_vec(), first);
        }
        Some(reached)
    }

    /// The queue of a group; made with what it starts with. A start other than committed begins anew.
    pub(super) fn group(&self, name: &str, start: Start) -> Option<Arc<Queue>> {
        let mut state = self.state.lock();
        if state.deleted {
            return None;
        }
        if let Some(queue) = state.groups.get(name) {
            if start == Start::Committed {
                return Some(queue.clone());
            }
            queue.purge();
            state.fill(queue, start);
            return Some(queue.clone());
        }
        let queue = self.queue(&format!("{}--{name}", self.name));
        if self.profile.capabilities().group_backlog {
            state.fill(&queue, start);
        }
        state.groups.insert(name.to_owned(), queue.clone());
        Some(queue)
    }

    /// A queue for one subscriber, which ends with it.
    pub(super) fn subscriber(&self, start: Start) -> Option<Arc<Queue>> {
        let mut state = self.state.lock();
        if state.deleted {
            return None;
        }
        let queue = self.queue(&self.name);
        state.fill(&queue, if start == Start::Committed { Start::Latest } else { start });
        state.subscribers.push(Arc::downgrade(&queue));
        Some(queue)
    }

    fn queue(&self, name: &str) -> Arc<Queue> {
        Arc::new(Queue::new(name, self.profile, self.keep))
    }

    pub(super) fn find_group(&self, name: &str) -> Option<Arc<Queue>> {
        self.state.lock().groups.get(name).cloned()
    }

    pub(super) fn queues(&self) -> Vec<Arc<Queue>> {
        self.state.lock().groups.values().cloned().collect()
    }

    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.base += state.log.len() as u64;
        state.log.clear();
    }

    pub(super) fn delete(&self) {
        let mut state = self.state.lock();
        state.deleted = true;
        let mut queues: Vec<_> = state.groups.drain().map(|(_, queue)| queue).collect();
        queues.extend(state.subscribers.drain(..).filter_map(|s| s.upgrade()));
        drop(state);
        queues.iter().for_each(|queue| queue.delete());
    }
}

impl State {
    fn fill(&self, queue: &Queue, start: Start) {
        let skip = match start {
            Start::Committed | Start::Earliest => 0,
            Start::Latest => self.log.len(),
            Start::Offset(offset) => usize::try_from(offset.saturating_sub(self.base)).unwrap_or(usize::MAX),
            Start::Time(at) => self.log.iter().take_while(|(time, _)| *time < at).count(),
        };
        let kept = self.log.iter().skip(skip).map(|(_, m)| m.clone()).collect();
        queue.fan_out(kept, self.base + skip.min(self.log.len()) as u64);
    }
}

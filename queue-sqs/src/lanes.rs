//! Messages for FIFO queues: in order per message group, and one of each group on its way at a time.
//!
//! Amazon may refuse one entry of a request and take a later one of the same group, which then is before it for good.
//! So the next message of a group goes when the one before it has its verdict, and not in the same request.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

/// A message group of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) queue: Arc<str>,
    pub(crate) id: Box<str>,
}

/// What waits, group by group. A group is known from its first message until the last has its verdict.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    waiting: HashMap<Group, VecDeque<T>>,
    /// Groups with nothing on its way, in the order in which they take turns.
    ready: VecDeque<Group>,
    /// Groups that pause before another try, by its time and a number.
    paused: BTreeMap<(Instant, u64), Group>,
    pauses: u64,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), ready: VecDeque::new(), paused: BTreeMap::new(), pauses: 0 }
    }
}

impl<T> Lanes<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many groups have a message that may go.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Puts a message at the end of its group.
    pub(crate) fn push(&mut self, group: Group, item: T) {
        match self.waiting.entry(group) {
            Entry::Occupied(mut known) => known.get_mut().push_back(item),
            Entry::Vacant(new) => {
                self.ready.push_back(new.key().clone());
                new.insert(VecDeque::from([item]));
            }
        }
    }

    /// The queue whose turn it is.
    pub(crate) fn next_queue(&self) -> Option<Arc<str>> {
        self.ready.front().map(|group| group.queue.clone())
    }

    /// Takes a message whose group then waits for [`done`](Self::done) or [`again`](Self::again).
    pub(crate) fn next(&mut self) -> Option<(Group, T)> {
        let group = self.ready.pop_front()?;
        let item = self.waiting.get_mut(&group)?.pop_front()?;
        Some((group, item))
    }

    /// The message of a group on its way has its verdict.
    pub(crate) fn done(&mut self, group: Group) {
        match self.waiting.get(&group) {
            Some(waiting) if waiting.is_empty() => drop(self.waiting.remove(&group)),
            Some(_) => self.ready.push_back(group),
            None => {}
        }
    }

    /// Takes a message back, before all others of its group: at once, or not before `due`.
    pub(crate) fn again(&mut self, group: Group, item: T, due: Option<Instant>) {
        self.waiting.entry(group.clone()).or_default().push_front(item);
        match due {
            None => self.ready.push_front(group),
            Some(due) => {
                self.pauses += 1;
                self.paused.insert((due, self.pauses), group);
            }
        }
    }

    /// Ends the pauses that are over.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some(first) = self.paused.first_entry().filter(|first| first.key().0 <= now) {
            self.ready.push_back(first.remove());
        }
    }

    /// When the next pause is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.paused.first_key_value().map(|((due, _), _)| *due)
    }

    /// Everything that waits.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.ready.clear();
        self.paused.clear();
        std::mem::take(&mut self.waiting).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn group(id: &str) -> Group {
        Group { queue: "q.fifo".into(), id: id.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_message_of_a_group_is_on_its_way() {
        let mut lanes = Lanes::default();
        for (id, item) in [("a", 1), ("a", 2), ("b", 3)] {
            lanes.push(group(id), item);
        }
        assert_eq!((lanes.next(), lanes.next(), lanes.next()), (Some((group("a"), 1)), Some((group("b"), 3)), None));
        let due = Instant::now() + Duration::from_secs(1);
        lanes.again(group("a"), 1, Some(due));
        lanes.done(group("b"));
        lanes.wake(Instant::now());
        assert_eq!((lanes.ready(), lanes.next_due()), (0, Some(due)));
        lanes.wake(due);
        assert_eq!((lanes.next(), lanes.next()), (Some((group("a"), 1)), None));
        lanes.done(group("a"));
        assert_eq!(lanes.next(), Some((group("a"), 2)));
        assert!(!lanes.is_empty(), "it has no verdict");
        lanes.done(group("a"));
        assert!(lanes.is_empty());
    }
}

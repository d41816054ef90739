//! Messages for FIFO queues and topics: in order per message group, and one of each group on its way at a time.
//!
//! Amazon may refuse one entry of a request and take a later one of the same group, which then is before it for good.
//! So the next message of a group goes when the one before it has its verdict, and not in the same request.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::time::Instant;

use crate::address::Target;

/// A message group of a queue or topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) to: Target,
    pub(crate) id: Box<str>,
}

/// What waits, group by group. A group is known from its first message until the last has its verdict.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    waiting: HashMap<Group, VecDeque<T>>,
    /// Targets that have a group in `ready`, in the order in which they take turns.
    turns: VecDeque<Target>,
    /// Groups with nothing on its way, by their target, in the order in which they take turns.
    ready: HashMap<Target, VecDeque<Group>>,
    /// Groups that pause before another try, by its time and a number.
    paused: BTreeMap<(Instant, u64), Group>,
    pauses: u64,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            ready: HashMap::new(),
            paused: BTreeMap::new(),
            pauses: 0,
        }
    }
}

impl<T> Lanes<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The targets that have a message which may go, in turn.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.turns.iter().cloned().collect()
    }

    /// How many groups of a target have a message that may go.
    pub(crate) fn ready(&self, to: &Target) -> usize {
        self.ready.get(to).map_or(0, VecDeque::len)
    }

    /// Puts a message at the end of its group.
    pub(crate) fn push(&mut self, group: Group, item: T) {
        match self.waiting.entry(group) {
            Entry::Occupied(mut known) => known.get_mut().push_back(item),
            Entry::Vacant(new) => {
                let group = new.key().clone();
                new.insert(VecDeque::from([item]));
                self.may_go(group, false);
            }
        }
    }

    /// Takes a message for a target; its group then waits for [`done`](Self::done) or [`again`](Self::again).
    pub(crate) fn next(&mut self, to: &Target) -> Option<(Group, T)> {
        let groups = self.ready.get_mut(to)?;
        let group = groups.pop_front()?;
        if groups.is_empty() {
            self.ready.remove(to);
            self.turns.retain(|other| other != to);
        }
        let item = self.waiting.get_mut(&group)?.pop_front()?;
        Some((group, item))
    }

    /// Lets the other targets go first the next time.
    pub(crate) fn had_its_turn(&mut self, to: &Target) {
        let place = self.turns.iter().position(|other| other == to);
        if let Some(target) = place.and_then(|place| self.turns.remove(place)) {
            self.turns.push_back(target);
        }
    }

    /// The message of a group on its way has its verdict.
    pub(crate) fn done(&mut self, group: Group) {
        match self.waiting.get(&group) {
            Some(waiting) if waiting.is_empty() => drop(self.waiting.remove(&group)),
            Some(_) => self.may_go(group, false),
            None => {}
        }
    }

    /// Takes a message back, before all others of its group: at once, or not before `due`.
    pub(crate) fn again(&mut self, group: Group, item: T, due: Option<Instant>) {
        self.waiting.entry(group.clone()).or_default().push_front(item);
        match due {
            None => self.may_go(group, true),
            Some(due) => {
                self.pauses += 1;
                self.paused.insert((due, self.pauses), group);
            }
        }
    }

    /// Ends the pauses that are over.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some(first) = self.paused.first_entry().filter(|first| first.key().0 <= now) {
            let group = first.remove();
            self.may_go(group, false);
        }
    }

    /// When the next pause is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.paused.first_key_value().map(|((due, _), _)| *due)
    }

    /// Everything that waits.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.turns.clear();
        self.ready.clear();
        self.paused.clear();
        std::mem::take(&mut self.waiting).into_values().flatten()
    }

    fn may_go(&mut self, group: Group, first: bool) {
        let groups = match self.ready.entry(group.to.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                self.turns.push_back(new.key().clone());
                new.insert(VecDeque::new())
            }
        };
        if first { groups.push_front(group) } else { groups.push_back(group) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(name: &str) -> Target {
        Target::of(&name.parse().unwrap()).unwrap()
    }

    fn group(id: &str) -> Group {
        Group { to: target("q.fifo"), id: id.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_message_of_a_group_is_on_its_way() {
        let mut lanes = Lanes::default();
        for (id, item) in [("a", 1), ("a", 2), ("b", 3)] {
            lanes.push(group(id), item);
        }
        let mut next = || lanes.next(&target("q.fifo"));
        assert_eq!((next(), next(), next()), (Some((group("a"), 1)), Some((group("b"), 3)), None));
        let due = Instant::now() + Duration::from_secs(1);
        lanes.again(group("a"), 1, Some(due));
        lanes.done(group("b"));
        lanes.wake(Instant::now());
        assert_eq!((lanes.ready(&target("q.fifo")), lanes.next_due()), (0, Some(due)));
        lanes.wake(due);
        assert_eq!((lanes.next(&target("q.fifo")), lanes.next(&target("q.fifo"))), (Some((group("a"), 1)), None));
        lanes.done(group("a"));
        assert_eq!(lanes.next(&target("q.fifo")), Some((group("a"), 2)));
        assert!(!lanes.is_empty(), "it has no verdict");
        lanes.done(group("a"));
        assert!(lanes.is_empty());
    }

    #[test]
    fn targets_take_turns() {
        let mut lanes = Lanes::default();
        for (name, id) in [("a", "1"), ("topic:a", "1"), ("a", "2"), ("c", "1")] {
            lanes.push(Group { to: target(name), id: id.into() }, ());
        }
        let [a, topic, c] = ["a", "topic:a", "c"].map(target);
        assert_eq!((lanes.targets(), lanes.ready(&a)), (vec![a.clone(), topic.clone(), c.clone()], 2));
        assert!(lanes.next(&a).is_some());
        lanes.had_its_turn(&a);
        assert_eq!(lanes.targets(), [topic.clone(), c.clone(), a.clone()]);
        assert!(lanes.next(&a).is_some() && lanes.next(&a).is_none());
        assert_eq!(lanes.targets(), [topic, c]);
    }
}

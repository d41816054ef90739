//! What was learnt about queues while they were declared.

use std::collections::HashMap;

use lapin::types::AMQPValue;
use parking_lot::Mutex;

use crate::topology::arguments::type_of;
use crate::topology::native::{Arguments, Binding, DELAYED_RETRY, MAX_PRIORITY, QueueType, SINGLE};

/// More names than a program uses; those that are forgotten are asked for again.
const MOST: usize = 10_000;

/// What is known of one queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) kind: Option<QueueType>,
    /// Whether it was made with priorities of its own.
    pub(crate) priorities: bool,
    /// Whether it gives its messages to one consumer at a time, and so in order.
    pub(crate) single: bool,
    /// Whether it makes a pause of its own before it delivers what failed again.
    pub(crate) backoff: bool,
    /// What it was bound for, where that was asked for.
    pub(crate) binding: Option<Binding>,
}

/// What is known of the queues that this connection declared.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<String, Facts>>);

impl Known {
    pub(crate) fn of(&self, queue: &str) -> Facts {
        self.0.lock().get(queue).cloned().unwrap_or_default()
    }

    fn change(&self, queue: &str, change: impl FnOnce(&mut Facts)) {
        let mut known = self.0.lock();
        if known.len() >= MOST {
            known.clear();
        }
        change(known.entry(queue.to_owned()).or_default());
    }

    /// A queue exists with exactly these arguments.
    pub(crate) fn made(&self, queue: &str, arguments: &Arguments) {
        self.change(queue, |facts| {
            facts.kind = match arguments.contains_key(crate::topology::native::QUEUE_TYPE) {
                true => type_of(arguments),
                false => Some(QueueType::Classic),
            };
            facts.priorities = has_priorities(arguments);
            facts.single = is_single(arguments);
            facts.backoff = has_backoff(arguments);
        });
    }

    pub(crate) fn is_of(&self, queue: &str, kind: QueueType) {
        self.change(queue, |facts| facts.kind = Some(kind));
    }

    pub(crate) fn bound(&self, queue: &str, binding: &Binding) {
        self.change(queue, |facts| facts.binding = Some(binding.clone()));
    }

    pub(crate) fn forget(&self, queue: &str) {
        self.0.lock().remove(queue);
    }
}

/// Whether a queue with these arguments gives its messages to one consumer at a time.
pub(crate) fn is_single(arguments: &Arguments) -> bool {
    arguments.get(SINGLE) == Some(&AMQPValue::Boolean(true))
}

/// Whether a queue with these arguments makes a pause before it delivers what was rejected.
pub(crate) fn has_backoff(arguments: &Arguments) -> bool {
    matches!(arguments.get(DELAYED_RETRY), Some(AMQPValue::LongString(kind)) if ["failed", "all"].iter().any(|k| k.as_bytes() == kind.as_bytes()))
}

/// Whether a queue with these arguments has priorities.
pub(crate) fn has_priorities(arguments: &Arguments) -> bool {
    matches!(arguments.get(MAX_PRIORITY), Some(AMQPValue::LongLongInt(most)) if *most > 0)
}

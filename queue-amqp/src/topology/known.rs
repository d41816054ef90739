//! What was learnt about queues while they were declared.

use std::collections::HashMap;

use lapin::types::AMQPValue;
use parking_lot::Mutex;

use crate::topology::arguments::type_of;
use crate::topology::native::{Arguments, Binding, DELAYED_RETRY, MAX_PRIORITY, QUEUE_TYPE, QueueType, SINGLE};

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
    /// Whether the server was asked since a receiver last took this for true: others may make the queue anew meanwhile.
    pub(crate) fresh: bool,
}

impl Facts {
    /// Those of a queue with exactly these arguments.
    pub(crate) fn with(arguments: &Arguments) -> Self {
        Self {
            kind: match arguments.contains_key(QUEUE_TYPE) {
                true => type_of(arguments),
                false => Some(QueueType::Classic),
            },
            priorities: has_priorities(arguments),
            single: is_single(arguments),
            backoff: has_backoff(arguments),
            binding: None,
            fresh: true,
        }
    }
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
        self.change(queue, |facts| *facts = Facts { binding: facts.binding.take(), ..Facts::with(arguments) });
    }

    /// A queue exists and is of this type; `None` for a type that is not known here.
    pub(crate) fn is_of(&self, queue: &str, kind: Option<QueueType>) {
        self.change(queue, |facts| {
            if facts.kind.is_some() && facts.kind != kind {
                // It is another queue; what it gets was said for its name.
                *facts = Facts { binding: facts.binding.take(), ..Facts::default() };
            }
            facts.kind = kind;
            facts.fresh = true;
        });
    }

    /// What is known of a queue, which is as good as when it was asked.
    pub(crate) fn take_fresh(&self, queue: &str) -> Option<Facts> {
        let mut known = self.0.lock();
        let facts = known.get_mut(queue)?;
        std::mem::take(&mut facts.fresh).then(|| facts.clone())
    }

    /// A queue exists and has these arguments among others.
    #[cfg(feature = "management")]
    pub(crate) fn has(&self, queue: &str, arguments: &Arguments) {
        let Facts { priorities, single, backoff, .. } = Facts::with(arguments);
        self.change(queue, |facts| {
            facts.priorities |= priorities;
            facts.single |= single;
            facts.backoff |= backoff;
        });
    }

    pub(crate) fn bound(&self, queue: &str, binding: &Binding) {
        self.change(queue, |facts| facts.binding = Some(binding.clone()));
    }

    pub(crate) fn forget(&self, queue: &str) {
        self.0.lock().remove(queue);
    }
}

/// Whether a queue with these arguments gives its messages to one consumer at a time.
fn is_single(arguments: &Arguments) -> bool {
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

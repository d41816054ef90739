//! What the endpoint was asked, and which faults it made.

use std::collections::BTreeMap;

/// Counts of one endpoint at one moment.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Requests by action.
    pub requests: BTreeMap<String, u64>,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// How often an action was asked for.
    pub fn of(&self, action: &str) -> u64 {
        self.requests.get(action).copied().unwrap_or_default()
    }

    /// How often a fault was made.
    pub fn fault(&self, name: &str) -> u64 {
        self.faults.get(name).copied().unwrap_or_default()
    }

    /// How many requests were about messages.
    pub fn about_messages(&self) -> u64 {
        self.requests.iter().filter(|(action, _)| is_about_messages(action)).map(|(_, count)| count).sum()
    }

    /// What came on top of an earlier count.
    pub fn since(&self, before: &Self) -> Self {
        let requests = self.requests.iter().map(|(action, n)| (action.clone(), n - before.of(action)));
        let faults = self.faults.iter().map(|(name, n)| (*name, n - before.fault(name)));
        Self { requests: requests.collect(), faults: faults.collect() }
    }
}

/// Whether an action is about messages, and not about queues.
pub fn is_about_messages(action: &str) -> bool {
    matches!(
        action,
        "SendMessage"
            | "SendMessageBatch"
            | "PublishBatch"
            | "ReceiveMessage"
            | "DeleteMessage"
            | "DeleteMessageBatch"
            | "ChangeMessageVisibility"
            | "ChangeMessageVisibilityBatch"
    )
}

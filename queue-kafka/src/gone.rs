//! Topics that librdkafka takes for gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, Outcome};

/// How long librdkafka may refuse messages to a topic that it was told of: an answer from before may reach it later.
const LATE: Duration = Duration::from_secs(5);

/// What one native producer was refused, and what it was told since.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    any: AtomicBool,
    found: Mutex<HashMap<String, Instant>>,
}

impl Gone {
    /// Whether messages were refused because their topic was gone.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// The topic is there.
    pub(crate) fn found(&self, topic: &str) {
        let mut found = self.found.lock();
        found.retain(|_, at| at.elapsed() < LATE);
        found.insert(topic.to_owned(), Instant::now());
    }

    /// The error of a message to a topic: one that can be sent again where the topic is there. One that was with librdkafka may
    /// have gone out before.
    pub(crate) fn judge(&self, topic: &str, error: Error, may_be_out: bool) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        self.any.store(true, Ordering::Relaxed);
        if self.found.lock().get(topic).is_none_or(|at| at.elapsed() >= LATE) {
            return error;
        }
        let why = "librdkafka has yet to learn that the topic exists";
        let outcome = if may_be_out { Outcome::Unknown } else { Outcome::NotSent };
        Error::new(ErrorKind::Connection, why).with_operation("send").with_outcome(outcome).with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_was_found_is_not_gone() {
        let gone = Gone::default();
        let refused = |topic| gone.judge(topic, Error::new(ErrorKind::NotFound, "unknown topic"), false);
        assert!(!gone.any());
        gone.found("here");
        let error = refused("here");
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Connection, Outcome::NotSent));
        assert!(error.is_retryable() && gone.any());
        assert_eq!(refused("there").kind(), ErrorKind::NotFound);
        let known = |kind| gone.judge("here", Error::new(kind, "out"), true);
        assert_eq!(known(ErrorKind::TooLarge).kind(), ErrorKind::TooLarge);
        assert_eq!(known(ErrorKind::NotFound).outcome(), Outcome::Unknown);
    }
}

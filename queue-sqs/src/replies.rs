//! Queues for replies that a process left behind when it was killed.

use std::time::{Duration, SystemTime};

use queue_core::request;

use crate::queues::Queues;

/// None is used for longer than a day; the other day is for clocks that differ.
const OLD: Duration = Duration::from_secs(2 * 86_400);

/// Deletes those that nobody uses any more. Done by whoever makes one; who has no right to it leaves them to others.
pub(crate) async fn sweep(queues: &Queues) {
    let found = match queues.beginning_with(request::REPLIES).await {
        Ok(found) => found,
        Err(error) => return tracing::debug!(%error, "it is not known which queues for replies were left behind"),
    };
    for queue in found.iter().filter(|queue| is_old(queue)) {
        match queues.delete(queue).await {
            Ok(()) => tracing::info!(queue, "deleted a queue for replies that was left behind"),
            Err(error) => tracing::debug!(%error, queue, "a queue for replies that was left behind stays"),
        }
    }
}

fn is_old(queue: &str) -> bool {
    request::made_at(queue).and_then(|made| SystemTime::now().duration_since(made).ok()).is_some_and(|age| age > OLD)
}

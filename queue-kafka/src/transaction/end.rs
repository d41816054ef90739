//! How a commit ended, and what that means for its receivers.

use queue_core::Error;
use tokio::sync::oneshot;

use crate::inbox::{Granted, Turn};

/// What came of a commit.
pub(super) enum End {
    Committed,
    /// Nothing of it happened.
    Not(Error),
    /// It may have happened.
    Unknown(Error),
}

/// Ends the turns as the transaction ended; what waits until that is known.
pub(super) fn settle(granted: Vec<Granted>, end: &End) -> Vec<oneshot::Receiver<()>> {
    let turns = granted.into_iter().map(|granted| granted.turn);
    match end {
        End::Committed => turns.for_each(Turn::committed),
        End::Not(_) => drop(turns.collect::<Vec<_>>()),
        End::Unknown(_) => return turns.map(Turn::doubtful).collect(),
    }
    Vec::new()
}

/// Waits until it is known of all receivers what became of their messages.
pub(super) async fn all(known: Vec<oneshot::Receiver<()>>) {
    for one in known {
        // A receiver that is closed knows no more.
        let _ = one.await;
    }
}

//! How many dead letters there are when a pass begins.

use crate::address::Source;
use crate::client::Client;
use crate::error::{ErrorKind, Result};

/// How many dead letters there are at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Exactly(u64),
    About(u64),
}

impl Expected {
    /// As far as the broker tells.
    pub(super) async fn of(client: &Client, graveyard: &Source) -> Result<Self> {
        let stats = match client.stats(graveyard).await {
            Ok(stats) => stats,
            // Not known, or nothing that this identity may know.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Unauthorized) => {
                return Ok(Self::About(0));
            }
            Err(error) => return Err(error),
        };
        Ok(match stats.ready {
            Some(ready) if !stats.approximate => Self::Exactly(ready),
            ready => Self::About(ready.unwrap_or(0)),
        })
    }

    pub(super) fn count(self) -> u64 {
        match self {
            Self::Exactly(count) | Self::About(count) => count,
        }
    }
}

//! Senders of requests and replies, one for each address.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::address::Address;
use crate::client::ClientInner;
use crate::error::{ErrorKind, Result};
use crate::message::Message;
use crate::observe::{Sending, Subject};
use crate::outbox::Owned;
use crate::outbox::check::check;
use crate::receiver::copier;
use crate::verdict::Verdict;

/// Most addresses that are kept open. Strangers name those of replies.
const MOST: usize = 256;

/// Sends to any address, of which nothing is declared.
#[derive(Default)]
pub(super) struct Ways {
    open: Mutex<HashMap<Address, Arc<Owned>>>,
    /// Whoever opens one.
    opening: tokio::sync::Mutex<()>,
}

impl Ways {
    /// The sender to an address. `NotFound` for one that does not exist where the broker tells.
    pub(super) async fn to(&self, client: &ClientInner, address: &Address) -> Result<Arc<Owned>> {
        if let Some(way) = self.known(address) {
            return Ok(way);
        }
        let _one = self.opening.lock().await;
        if let Some(way) = self.known(address) {
            return Ok(way);
        }
        let way = Arc::new(copier(client, address.clone()).await?);
        client.track_sender(&way);
        let mut open = self.open.lock();
        if open.len() >= MOST {
            // What is on its way goes on.
            open.clear();
        }
        open.insert(address.clone(), way.clone());
        Ok(way)
    }

    fn known(&self, address: &Address) -> Option<Arc<Owned>> {
        self.open.lock().get(address).cloned()
    }

    /// Sends a message and waits until the broker has it. One to an address that is gone is looked for anew next time.
    pub(super) async fn send(&self, client: &ClientInner, way: &Owned, mut message: Message) -> Result<()> {
        let subject = Subject::address(client.system, way.address());
        let mut sending = Sending::begin(&subject, std::slice::from_mut(&mut message), way.capabilities());
        let sent = async { Verdict::new(way.submit(message).await?).await }.await;
        sending.end_one(&sent);
        sent.map(drop).inspect_err(|error| {
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unroutable | ErrorKind::Closed) {
                self.open.lock().remove(way.address());
            }
        })
    }

    /// What can be known to be wrong with a message of the application before the library's own headers are on it.
    pub(super) fn check(way: &Owned, message: &Message) -> Result<()> {
        check(way.capabilities(), way.address(), false, message, message.size())
    }
}

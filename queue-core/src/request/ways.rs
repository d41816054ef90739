//! Senders of requests and replies, one for each address.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

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
pub(super) struct Ways(Mutex<HashMap<Address, Arc<OnceCell<Arc<Owned>>>>>);

impl Ways {
    /// The sender to an address. `NotFound` for one that does not exist where the broker tells.
    pub(super) async fn to(&self, client: &ClientInner, address: &Address) -> Result<Arc<Owned>> {
        let cell = {
            let mut ways = self.0.lock();
            if ways.len() >= MOST && !ways.contains_key(address) {
                // Any of them; what is on its way goes on.
                let one = ways.keys().next().cloned();
                one.map(|one| ways.remove(&one));
            }
            ways.entry(address.clone()).or_default().clone()
        };
        let open = async || {
            let way = Arc::new(copier(client, address.clone()).await?);
            client.track_sender(&way);
            Ok(way)
        };
        let way = cell.get_or_try_init(open).await.cloned();
        if way.is_err() {
            self.forget(address, &cell);
        }
        way
    }

    /// It is looked for anew next time.
    fn forget(&self, address: &Address, cell: &Arc<OnceCell<Arc<Owned>>>) {
        let mut ways = self.0.lock();
        if ways.get(address).is_some_and(|known| Arc::ptr_eq(known, cell)) {
            ways.remove(address);
        }
    }

    /// Sends a message and waits until the broker has it. An address that is gone is looked for anew next time.
    pub(super) async fn send(&self, subject: &Subject, way: &Arc<Owned>, mut message: Message) -> Result<()> {
        let is_elsewhere = message.destination().is_some();
        let mut sending = Sending::begin(subject, std::slice::from_mut(&mut message), way.capabilities());
        let sent = async { Verdict::new(way.submit(message).await?).await }.await;
        sending.end_one(&sent);
        sent.map(drop).inspect_err(|error| {
            let is_gone = !is_elsewhere && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unroutable);
            if is_gone || error.kind() == ErrorKind::Closed {
                let mut ways = self.0.lock();
                let known = ways.get(way.address()).and_then(|cell| cell.get());
                if known.is_some_and(|known| Arc::ptr_eq(known, way)) {
                    ways.remove(way.address());
                }
            }
        })
    }

    /// What can be known to be wrong with a message of the application before the library's own headers are on it.
    pub(super) fn check(way: &Owned, message: &Message) -> Result<()> {
        check(way.capabilities(), way.address(), false, message, message.size())
    }
}

//! What the suite needs to know about a broker.

use std::net::SocketAddr;

use async_trait::async_trait;

use crate::address::Address;
use crate::broker::Driver;
use crate::client::Client;
use crate::error::Result;

/// What became of a request that a harness may be unable to fulfil.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It was done.
    Done,
    /// This harness cannot do it; the cases that need it are left out and listed.
    Cannot,
}

/// What the suite needs to know about a broker: how to reach it, and what can be done to it.
///
/// Three methods are enough. Everything else has a default that fits most brokers.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// The name under which results are shown, such as `rabbitmq` or `rabbitmq, layered`.
    fn name(&self) -> &str;

    /// The drivers that can be connected to; one, normally.
    fn drivers(&self) -> &[Driver];

    /// The environment variable that holds the URL of the broker. Default: none.
    fn variable(&self) -> &str {
        ""
    }

    /// The URL of the broker; `None` where there is none, and every case is reported as ignored. Default: what
    /// [`variable`](Self::variable) holds.
    fn url(&self) -> Option<String> {
        std::env::var(self.variable()).ok().filter(|url| !url.is_empty())
    }

    /// Connects a client of its own. Every client reaches the same broker. Default: [`connect_to`](Self::connect_to) the
    /// harness' own URL.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    async fn connect(&self) -> Result<Client> {
        self.connect_to(&self.url().unwrap_or_default()).await
    }

    /// Connects a client to the broker by another URL. Default: [`Client::connect_with`].
    ///
    /// # Errors
    /// When the broker cannot be reached.
    async fn connect_to(&self, url: &str) -> Result<Client> {
        Client::connect_with(url, self.drivers()).await
    }

    /// The end of every name, such as `.fifo`. Default: nothing.
    fn suffix(&self) -> &str {
        ""
    }

    /// Makes a name from a text that is unique in the world: at most 30 of `[a-z0-9-]`. Default: that text and
    /// [`suffix`](Self::suffix).
    fn address(&self, unique: &str) -> String {
        format!("{unique}{}", self.suffix())
    }

    /// The broker's own options with which a queue can be read again from any position, where a topic's group cannot.
    /// Default: none; nothing but what the capabilities say can be read again.
    fn replayable(&self) -> &[(&str, &str)] {
        &[]
    }

    /// Whether a case is run, `c_topics/two_groups_both_get_everything` for example: not all of them are for a broker that
    /// is there for a part, and slow. What was run is not compared with the document then. Default: all are.
    fn runs(&self, _case: &str) -> bool {
        true
    }

    /// Most cases that run at the same time. Default: 8.
    fn threads(&self) -> usize {
        8
    }

    /// Removes what a case made. Failures are of no interest. Default: [`Client::delete`] for each address.
    async fn cleanup(&self, client: &Client, addresses: &[Address]) {
        for address in addresses {
            let _ = client.delete(address).await;
        }
    }

    /// Puts something into the queue that the adapter cannot decode, by the broker's own means.
    ///
    /// # Errors
    /// When the broker refuses it.
    async fn inject_undecodable(&self, _queue: &Address) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// How many faults a stream of messages sees in [`run_faults`](super::run_faults), and for how many seconds (5 to
    /// 20) a broker is frozen or a link cut. Default: what the environment variable `FAULTS` holds, or 3.
    fn faults(&self) -> usize {
        std::env::var("FAULTS").ok().and_then(|count| count.parse().ok()).unwrap_or(3)
    }

    /// Stops the broker in good order and starts it again with what it had stored; returns when it takes connections.
    ///
    /// # Errors
    /// When the broker does not come back.
    async fn restart(&self) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// Ends the broker at once, as a crash does. It stays down until [`start`](Self::start).
    ///
    /// # Errors
    /// When it cannot be done now.
    async fn kill(&self) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// Has the broker run: starts one that is down with what it had stored, thaws one that is frozen; returns when it
    /// takes connections.
    ///
    /// # Errors
    /// When the broker does not come back.
    async fn start(&self) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// Has the broker, or something between, cut every connection. New ones work.
    ///
    /// # Errors
    /// When it cannot be done now.
    async fn disconnect(&self) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// Freezes the broker (`true`) or lets it go on: connections stay, nothing moves.
    ///
    /// # Errors
    /// When it cannot be done now.
    async fn freeze(&self, _frozen: bool) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// Has the broker take no messages (`true`), as when it is short of memory, or take them again. Receivers go on.
    ///
    /// # Errors
    /// When it cannot be done now.
    async fn block(&self, _blocked: bool) -> Result<Fault> {
        Ok(Fault::Cannot)
    }

    /// Where the broker listens, where its URL holds just this address and clients talk to nothing else: the suite puts
    /// a link of its own between, to cut and to slow. Default: none.
    fn upstream(&self) -> Option<SocketAddr> {
        None
    }
}

#[async_trait]
impl<H: Harness + ?Sized> Harness for std::sync::Arc<H> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn drivers(&self) -> &[Driver] {
        (**self).drivers()
    }

    fn variable(&self) -> &str {
        (**self).variable()
    }

    fn url(&self) -> Option<String> {
        (**self).url()
    }

    async fn connect(&self) -> Result<Client> {
        (**self).connect().await
    }

    async fn connect_to(&self, url: &str) -> Result<Client> {
        (**self).connect_to(url).await
    }

    fn suffix(&self) -> &str {
        (**self).suffix()
    }

    fn address(&self, unique: &str) -> String {
        (**self).address(unique)
    }

    fn replayable(&self) -> &[(&str, &str)] {
        (**self).replayable()
    }

    fn runs(&self, case: &str) -> bool {
        (**self).runs(case)
    }

    fn threads(&self) -> usize {
        (**self).threads()
    }

    async fn cleanup(&self, client: &Client, addresses: &[Address]) {
        (**self).cleanup(client, addresses).await;
    }

    async fn inject_undecodable(&self, queue: &Address) -> Result<Fault> {
        (**self).inject_undecodable(queue).await
    }

    fn faults(&self) -> usize {
        (**self).faults()
    }

    async fn restart(&self) -> Result<Fault> {
        (**self).restart().await
    }

    async fn kill(&self) -> Result<Fault> {
        (**self).kill().await
    }

    async fn start(&self) -> Result<Fault> {
        (**self).start().await
    }

    async fn disconnect(&self) -> Result<Fault> {
        (**self).disconnect().await
    }

    async fn freeze(&self, frozen: bool) -> Result<Fault> {
        (**self).freeze(frozen).await
    }

    async fn block(&self, blocked: bool) -> Result<Fault> {
        (**self).block(blocked).await
    }

    fn upstream(&self) -> Option<SocketAddr> {
        (**self).upstream()
    }
}

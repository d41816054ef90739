//! A harness that runs the suite through a layer.

use std::fmt;
use std::net::SocketAddr;

use async_trait::async_trait;

use super::harness::{Fault, Harness};
use crate::address::Address;
use crate::broker::{BrokerLayer, Driver};
use crate::client::Client;
use crate::error::Result;

/// A harness whose clients go through a layer.
pub struct Layered<H, L> {
    name: String,
    inner: H,
    layer: L,
}

impl<H: Harness, L: BrokerLayer + 'static> Layered<H, L> {
    /// Runs `inner` through `layer`; results show under `<name>+<layer>`.
    #[must_use]
    pub fn new(inner: H, layer: L) -> Self {
        let shown = format!("{layer:?}");
        let kind = shown.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase();
        Self { name: format!("{}+{kind}", inner.name()), inner, layer }
    }
}

impl<H: Harness, L: BrokerLayer> fmt::Debug for Layered<H, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").field("name", &self.name).field("layer", &self.layer).finish_non_exhaustive()
    }
}

#[async_trait]
impl<H: Harness, L: BrokerLayer + 'static> Harness for Layered<H, L> {
    fn name(&self) -> &str {
        &self.name
    }

    fn drivers(&self) -> &[Driver] {
        self.inner.drivers()
    }

    fn variable(&self) -> &str {
        self.inner.variable()
    }

    fn url(&self) -> Option<String> {
        self.inner.url()
    }

    async fn connect(&self) -> Result<Client> {
        Ok(self.inner.connect().await?.layer(&self.layer))
    }

    async fn connect_to(&self, url: &str) -> Result<Client> {
        Ok(self.inner.connect_to(url).await?.layer(&self.layer))
    }

    fn suffix(&self) -> &str {
        self.inner.suffix()
    }

    fn address(&self, unique: &str) -> String {
        self.inner.address(unique)
    }

    fn runs(&self, case: &str) -> bool {
        self.inner.runs(case)
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    async fn cleanup(&self, client: &Client, addresses: &[Address]) {
        self.inner.cleanup(client, addresses).await;
    }

    async fn inject_undecodable(&self, queue: &Address) -> Result<Fault> {
        self.inner.inject_undecodable(queue).await
    }

    fn faults(&self) -> usize {
        self.inner.faults()
    }

    async fn restart(&self) -> Result<Fault> {
        self.inner.restart().await
    }

    async fn kill(&self) -> Result<Fault> {
        self.inner.kill().await
    }

    async fn start(&self) -> Result<Fault> {
        self.inner.start().await
    }

    async fn disconnect(&self) -> Result<Fault> {
        self.inner.disconnect().await
    }

    async fn freeze(&self, frozen: bool) -> Result<Fault> {
        self.inner.freeze(frozen).await
    }

    async fn block(&self, blocked: bool) -> Result<Fault> {
        self.inner.block(blocked).await
    }

    fn upstream(&self) -> Option<SocketAddr> {
        self.inner.upstream()
    }
}

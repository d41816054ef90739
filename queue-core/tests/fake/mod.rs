//! A broker whose producers and consumer are a test's own.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};

use async_trait::async_trait;
use queue_core::*;
use tokio::time::Instant;

/// Opens a producer.
pub(crate) type Open = Box<dyn Fn(&Address) -> Result<Arc<dyn Producer>> + Send + Sync>;
pub(crate) struct Fake {
    pub(crate) caps: Arc<Capabilities>,
    pub(crate) producer: Open,
    pub(crate) consumer: Option<Arc<dyn Consumer>>,
    pub(crate) closes: Arc<AtomicUsize>,
}
impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}
#[async_trait]
impl Broker for Fake {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.caps.clone()
    }
    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        if to.name() == "blocked" {
            options.events.set_problem("link", Some((HealthState::Down, "blocked by the broker".to_owned())));
        }
        (self.producer)(to)
    }
    async fn consumer(&self, _: &Source, _: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        Ok(self.consumer.clone().unwrap())
    }
    async fn declare(&self, _: &Topology) -> Result<()> {
        Ok(())
    }
    async fn verify(&self, _: &Topology) -> Result<()> {
        Ok(())
    }
    async fn delete(&self, _: &Address) -> Result<()> {
        Ok(())
    }
    async fn purge(&self, _: &Address) -> Result<()> {
        Ok(())
    }
    async fn stats(&self, _: &Source) -> Result<Stats> {
        Ok(Stats::default())
    }
    fn health(&self) -> Health {
        Health::up()
    }
    async fn ping(&self) -> Result<()> {
        Ok(())
    }
    fn native(&self) -> &(dyn Any + Send + Sync) {
        self
    }
    async fn close(&self, _: Instant) -> CloseReport {
        self.closes.fetch_add(1, Atomic::SeqCst);
        CloseReport::default()
    }
}

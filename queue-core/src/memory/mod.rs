//! The embedded broker: the reference implementation, the default of tests and small programs, and the floor of the
//! performance table.
//!
//! `memory://` is a broker of its own that lives as long as its handles; `memory://name` is shared by everything in the
//! process that names it. It has competing receivers, topics and groups, leases with redelivery, delay, time to live,
//! priority, dead letters, back-pressure and replay, and keeps time by [`tokio::time`], so that a test with a paused clock
//! runs hours in milliseconds. Messages live in memory only.
//!
//! | option | meaning | default |
//! | --- | --- | --- |
//! | `profile` | takes on the limits and habits of `amqp`, `kafka` or `sqs` | `memory` |
//! | `capacity` | most messages in a queue; a send beyond it waits for room | 1,000,000 |
//!
//! ```
//! use queue_core::{Client, memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> queue_core::Result<()> {
//! let client = Client::connect_with("memory://?profile=sqs", &[memory::DRIVER]).await?;
//! client.sender("orders").await?.send("hello").await?;
//! # Ok(())
//! # }
//! ```

mod broker;
mod consumer;
mod fifo;
mod log;
mod producer;
mod profile;
mod queue;
mod segment;
pub(crate) use segment::{LONG, far};
mod topic;

pub use broker::{DRIVER, MemoryBroker, MemoryConfig};
pub use profile::Profile;

//! For tests of programs: a client that records what was sent, received and answered, assertions that wait, and faults.
//!
//! Behind the feature `testing`, which belongs into `[dev-dependencies]`. A [`TestClient`] is a [`Client`](crate::Client)
//! on an embedded broker of its own, so that the program under test runs as it is: its senders, receivers and workers,
//! with retries, dead letters and leases.
//!
//! ```
//! use queue_core::testing::TestClient;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> queue_core::Result<()> {
//! let client = TestClient::new();
//! client.sender("orders").await?.send("7").await?;
//! client.receiver("orders").await?.receive().await?.ack();
//! assert_eq!(client.acked("orders").one().await.message.text(), Some("7"));
//! # Ok(())
//! # }
//! ```
//!
//! # Time
//! Everything here and in the embedded broker runs on [`tokio::time`]. With `#[tokio::test(start_paused = true)]` the clock
//! stands still while anything is left to do, and jumps to the next timer when nothing is: hours pass in milliseconds, and
//! a test comes to the same result on a slow machine. Delays, leases, backoff and the bounds of assertions all follow it.
//!
//! ```
//! use std::time::Duration;
//! use queue_core::{Message, testing::TestClient};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> queue_core::Result<()> {
//! const HOUR: Duration = Duration::from_secs(3600);
//! let client = TestClient::new();
//! client.sender("reminders").await?.send(Message::new("wake up").delay(8 * HOUR)).await?;
//! let mut inbox = client.receiver("reminders").await?;
//! let (delivery, _) = tokio::join!(inbox.receive(), async {
//!     client.received("reminders").none_within(7 * HOUR).await;
//!     client.received("reminders").within(2 * HOUR).one().await
//! });
//! # delivery?.ack();
//! # Ok(())
//! # }
//! ```
//!
//! # Faults
//! [`Faults`] scripts what goes wrong, at the place where an adapter would say so: see there.
//!
//! # How it records
//! The recorder is a [layer](crate::BrokerLayer) between the handles and the broker. So it sees what a broker sees: each
//! try of a send, messages when they are fetched, which may be before they are handed out, and answers when they reach
//! the broker. Everything is kept until the client is dropped; this is nothing for a program in production.

mod client;
mod consumer;
mod expect;
mod fault;
mod journal;
mod producer;
mod record;
mod script;

pub use client::{Recorder, TestClient};
pub use expect::Expect;
pub use fault::Faults;
pub use record::{AnswerRecord, ReceivedRecord, Record, RecordedAnswer, SentRecord};
pub use script::{Fault, OnAck, OnReceive, OnSend, Operation, Scripted};

pub use crate::interpose::{Interpose, PassThrough};

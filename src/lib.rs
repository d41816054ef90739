#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bindings;

pub use queue_core::*;

pub use crate::bindings::Bindings;

/// RabbitMQ: the adapter's own types.
#[cfg(feature = "amqp")]
pub use queue_amqp as amqp;
/// Apache Kafka: the adapter's own types.
#[cfg(feature = "kafka")]
pub use queue_kafka as kafka;
/// Amazon SQS: the adapter's own types.
#[cfg(feature = "sqs")]
pub use queue_sqs as sqs;
/// The worker: handlers, retries, dead letters, drain.
#[cfg(feature = "worker")]
pub use queue_worker as worker;

/// The drivers that are compiled in.
pub const DRIVERS: &[Driver] = &[
    memory::DRIVER,
    #[cfg(feature = "amqp")]
    queue_amqp::DRIVER,
    #[cfg(feature = "kafka")]
    queue_kafka::DRIVER,
    #[cfg(feature = "sqs")]
    queue_sqs::DRIVER,
];

/// Connects to the broker that the URL names: `memory://`, `amqp://…`, `kafka://…`, `sqs://…`.
///
/// # Errors
/// As [`Client::connect_with`].
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyqueue::Result<()> {
/// let client = anyqueue::connect("memory://?prefetch=64").await?;
/// client.sender("orders").await?.send("hello").await?;
/// # Ok(())
/// # }
/// ```
pub async fn connect(url: &str) -> Result<Client> {
    Client::connect_with(url, DRIVERS).await
}

/// Connects to the broker that the environment names: `QUEUE_URL`, and `QUEUE_<OPTION>` for each option of the URL.
///
/// # Errors
/// As [`Client::from_env_with`].
pub async fn from_env() -> Result<Client> {
    Client::from_env_with(DRIVERS).await
}

/// The code of the guides is compiled, and run where it can be, as documentation tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/guide.md")]
    mod guide {}
    #[doc = include_str!("../docs/observability.md")]
    mod observability {}
    #[doc = include_str!("../docs/adding-a-broker.md")]
    mod adding_a_broker {}
    #[cfg(all(feature = "testing", feature = "worker"))]
    #[doc = include_str!("../docs/testing.md")]
    mod testing {}
}

//! Bindings with the drivers that are compiled in.

use std::path::Path;

use queue_core::{Connections, Result};

/// Named brokers, senders and receivers in a TOML file, connected with the drivers that are compiled in. See
/// [`queue_core::Bindings`] for the format.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyqueue::Result<()> {
/// let bindings = anyqueue::Bindings::parse(r#"
///     [brokers.main]
///     url = "${ORDERS_URL:-memory://}"
///     [senders.orders]
///     to = "orders"
/// "#)?;
/// let queues = bindings.connect().await?;
/// queues.sender("orders").await?.send("hello").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bindings(queue_core::Bindings);

impl Bindings {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`queue_core::Bindings::from_path`].
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        queue_core::Bindings::from_path(path).map(Self)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// As [`queue_core::Bindings::parse`].
    pub fn parse(text: &str) -> Result<Self> {
        queue_core::Bindings::parse(text).map(Self)
    }

    /// Connects to every broker of the file.
    ///
    /// # Errors
    /// As [`queue_core::Bindings::connect_with`].
    pub async fn connect(&self) -> Result<Connections> {
        self.0.connect_with(crate::DRIVERS).await
    }
}

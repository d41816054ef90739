//! The signals that end a program.

/// Resolves at `SIGTERM`, as an orchestrator ends a container, or at ctrl-c.
///
/// # Panics
/// Outside a runtime of tokio with its I/O driver on.
///
/// # Cancel safety
/// Dropped, later signals are no longer taken by it; tokio keeps the process from ending by them all the same.
pub async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    () = interrupt() => {}
                }
            }
            Err(error) => {
                tracing::error!(%error, "SIGTERM cannot be listened to; ctrl-c ends the program");
                interrupt().await;
            }
        }
    }
    #[cfg(not(unix))]
    interrupt().await;
}

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "ctrl-c cannot be listened to");
        std::future::pending().await
    }
}

//! A server of a test's own, which does what is asked of it.

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Outcome;

/// Ends when it is dropped.
pub(crate) struct Front {
    pub(crate) at: String,
    serving: JoinHandle<()>,
}

impl Front {
    /// Answers paths by this.
    pub(crate) async fn start<F>(answer: impl Fn(String) -> F + Send + Sync + 'static) -> Outcome<Self>
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let at = format!("http://{}", listener.local_addr()?);
        let answer = Arc::new(answer);
        let routes = Router::new().fallback(move |uri: Uri| {
            let answer = answer.clone();
            async move { answer(uri.path().to_owned()).await }
        });
        let serving = tokio::spawn(async move { drop(axum::serve(listener, routes).await) });
        Ok(Self { at, serving })
    }

    /// Has these pages, this one once it is so.
    pub(crate) async fn of_when(
        pages: Vec<(&'static str, Vec<u8>)>,
        late: &'static str,
        is_so: watch::Receiver<bool>,
    ) -> Outcome<Self> {
        let index: String = pages.iter().map(|(path, _)| format!("{path}\n")).collect();
        Self::start(move |path| {
            let page = pages.iter().find(|(name, _)| *name == path).map(|(_, page)| page.clone());
            let (mut is_so, is_late) = (is_so.clone(), path == late);
            let page = Response::new(page.unwrap_or_else(|| index.clone().into()).into());
            async move {
                if is_late {
                    // Nobody who tells any more: as good as told.
                    let _ = is_so.wait_for(|is_so| *is_so).await;
                }
                page
            }
        })
        .await
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

//! A worker that runs beside the test.

use anyqueue::worker::{Control, Counts, IntoHandler, Report, Worker};
use tokio::task::JoinHandle;

use crate::Outcome;
use crate::place::until;

pub(crate) struct Running {
    pub(crate) control: Control,
    served: JoinHandle<Report>,
}

impl Running {
    pub(crate) fn start<H, Kind>(worker: Worker, handler: H) -> Self
    where
        H: IntoHandler<Kind> + Send + 'static,
        Kind: 'static,
    {
        Self { control: worker.control(), served: tokio::spawn(worker.serve(handler)) }
    }

    /// Waits until the counts are so.
    pub(crate) async fn until(&self, what: impl Fn(&Counts) -> bool) {
        until(|| what(&self.control.counts())).await;
    }

    /// Waits for the end, which is to be a clean one.
    pub(crate) async fn end(self) -> Outcome<Counts> {
        let report = self.served.await?;
        assert!(report.is_clean(), "{report:?}");
        Ok(report.counts)
    }

    pub(crate) async fn stop(self) -> Outcome<Counts> {
        self.control.stop();
        self.end().await
    }
}

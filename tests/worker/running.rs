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

    /// Waits until the counts are so, which they have to be before the worker ends.
    pub(crate) async fn until(&mut self, what: impl Fn(&Counts) -> bool) {
        until(|| self.served.is_finished() || what(&self.control.counts())).await;
        if !what(&self.control.counts()) {
            panic!("the worker ended: {:?}", (&mut self.served).await);
        }
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

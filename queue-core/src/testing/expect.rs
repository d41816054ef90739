//! Assertions that wait.

use std::fmt;
use std::fmt::Write as _;
use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::fault::Faults;
use super::journal::{Entry, Journal};
use super::record::Record;

/// How long an assertion waits unless told otherwise.
const WITHIN: Duration = Duration::from_secs(5);
/// Most lines of what happened that a failure shows, the latest.
const LINES: usize = 20;

type Pick<R> = Arc<dyn Fn(&Entry) -> Option<R> + Send + Sync>;

/// What a test expects of the records of one kind; made by [`TestClient`](super::TestClient).
///
/// Waits until it is so, or for 5 s of [`tokio::time`], which pass at once when the clock is paused. An assertion that
/// fails panics at the line of the test, and tells everything that happened instead.
///
/// ```
/// # use queue_core::testing::TestClient;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> queue_core::Result<()> {
/// let client = TestClient::new();
/// let orders = client.sender("orders").await?;
/// orders.send("7").await?;
/// orders.send("8").await?;
/// client.sent("orders").count(2).await;
/// client.sent("orders").matching(|sent| sent.message.text() == Some("8")).one().await;
/// client.sent("payments").none();
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is expected until it is asked for"]
pub struct Expect<R> {
    journal: Arc<Journal>,
    faults: Faults,
    what: String,
    pick: Pick<R>,
    within: Duration,
}

impl<R: Record> Expect<R> {
    pub(super) fn new(journal: Arc<Journal>, faults: Faults, what: String, pick: Pick<R>) -> Self {
        Self { journal, faults, what, pick, within: WITHIN }
    }

    /// Waits this long, on tokio's clock. Default: 5 s.
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Counts only those for which `is_meant` answers true.
    pub fn matching(mut self, is_meant: impl Fn(&R) -> bool + Send + Sync + 'static) -> Self {
        let pick = self.pick;
        self.pick = Arc::new(move |entry| pick(entry).filter(|record| is_meant(record)));
        self.what.push_str(" that match");
        self
    }

    /// What there is so far, in order.
    #[must_use]
    pub fn all(&self) -> Vec<R> {
        self.journal.read(|(_, entry)| (self.pick)(entry))
    }

    /// Waits for one, and no more.
    ///
    /// # Panics
    /// When there is none in time, or more than one by then.
    #[track_caller]
    pub fn one(self) -> impl Future<Output = R> + Send {
        let count = self.count(1);
        async move { count.await.remove(0) }
    }

    /// Waits for so many, and no more.
    ///
    /// # Panics
    /// When there are fewer in time, or more by then.
    #[track_caller]
    pub fn count(self, count: usize) -> impl Future<Output = Vec<R>> + Send {
        let at = Location::caller();
        async move {
            match self.wait_for(count).await {
                found if found.len() == count => found,
                found => self.fail(at, &format!("{count}"), Some(self.within), found.len()),
            }
        }
    }

    /// Waits for so many or more.
    ///
    /// # Panics
    /// When there are fewer in time.
    #[track_caller]
    pub fn at_least(self, count: usize) -> impl Future<Output = Vec<R>> + Send {
        let at = Location::caller();
        async move {
            match self.wait_for(count).await {
                found if found.len() >= count => found,
                found => self.fail(at, &format!("at least {count}"), Some(self.within), found.len()),
            }
        }
    }

    /// There is none so far. Waits for nothing.
    ///
    /// # Panics
    /// When there is one.
    #[track_caller]
    pub fn none(self) {
        let found = self.all().len();
        if found > 0 {
            self.fail(Location::caller(), "0", None, found)
        }
    }

    /// There is none, and none comes in this time.
    ///
    /// # Panics
    /// As soon as there is one.
    #[track_caller]
    pub fn none_within(mut self, time: Duration) -> impl Future<Output = ()> + Send {
        let at = Location::caller();
        self.within = time;
        async move {
            let found = self.wait_for(1).await.len();
            if found > 0 {
                self.fail(at, "0", Some(time), found)
            }
        }
    }

    async fn wait_for(&self, count: usize) -> Vec<R> {
        let deadline = crate::memory::far(Instant::now(), self.within);
        loop {
            // Before it looks: from now on it hears of what is added.
            let changed = self.journal.changed.notified();
            let found = self.all();
            if found.len() >= count || timeout_at(deadline, changed).await.is_err() {
                return found;
            }
        }
    }

    fn fail(&self, at: &Location<'_>, expected: &str, within: Option<Duration>, found: usize) -> ! {
        let within = within.map(|within| format!(" within {within:?}")).unwrap_or_default();
        let mut text = format!("{at}: expected {expected} {}{within}, found {found}", self.what);
        let entries = self.journal.read(|(at, entry)| Some((format!("{at:?}: {entry}"), (self.pick)(entry).is_some())));
        text.push_str(if entries.is_empty() { "; nothing happened" } else { "; this happened:" });
        let left_out = entries.len().saturating_sub(LINES);
        if left_out > 0 {
            let _ = write!(text, "\n    … and {left_out} before");
        }
        for (line, is_meant) in &entries[left_out..] {
            let _ = write!(text, "\n  {} {line}", if *is_meant { '*' } else { ' ' });
        }
        if let Some(seed) = self.faults.seed_in_use() {
            let _ = write!(text, "\n  the faults have the seed {seed}: repeat them with `faults().seed({seed})`");
        }
        panic!("{text}")
    }
}

impl<R> fmt::Debug for Expect<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expect").field("what", &self.what).field("within", &self.within).finish_non_exhaustive()
    }
}

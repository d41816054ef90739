//! Runs the cases.

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion as Ran, Failed, Trial};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::case::{CLOSE, Case, CaseResult, Ctx, Failure, Made, Probe, open, within, within_time};
use super::harness::Harness;
use super::report::Report;
use super::{
    a_round_trip, b_send, c_receive, c_topics, d_answer, d_dead_letter, d_redrive, e_order, f_time, g_faults, g_links,
    h_broker, h_life, i_config, j_observation, record,
};
use crate::address::Address;
use crate::client::Client;

/// Repeats a run with the seed that a failure told.
const SEED: &str = "ANYQUEUE_CONFORMANCE_SEED";
/// Runs the whole suite so many times side by side.
const REPEAT: &str = "ANYQUEUE_CONFORMANCE_REPEAT";
/// Makes a missing broker a failure.
const REQUIRE: &str = "ANYQUEUE_REQUIRE_BROKERS";

/// Has faults run, and says how many.
const FAULTS: &str = "FAULTS";

/// The longest that a case may take; its waits end earlier and say what for.
const LIMIT: Duration = Duration::from_secs(300);

/// What each fault of a stream adds to it.
const PER_FAULT: Duration = Duration::from_secs(60);

/// Held for writing by a case that counts what the whole process uses.
static ALONE: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// Which cases are run.
#[derive(Clone, Copy)]
enum Which {
    /// All that leave the broker alone.
    Peaceful,
    /// Those that do it harm, one at a time.
    Faults,
}

impl Which {
    fn cases(self) -> impl Iterator<Item = &'static Case> {
        match self {
            Self::Peaceful => peaceful(),
            Self::Faults => vec![g_faults::CASES, g_links::CASES],
        }
        .into_iter()
        .flatten()
    }
}

fn peaceful() -> Vec<&'static [Case]> {
    vec![
        a_round_trip::CASES,
        b_send::CASES,
        c_receive::CASES,
        c_topics::CASES,
        d_answer::CASES,
        d_dead_letter::CASES,
        d_redrive::CASES,
        e_order::CASES,
        f_time::CASES,
        h_broker::CASES,
        h_life::CASES,
        i_config::CASES,
        j_observation::CASES,
    ]
}

/// The names of the cases that [`run`] runs, such as `d_answer/an_acknowledged_message_never_comes_back`.
#[must_use]
pub fn case_names() -> Vec<String> {
    Which::Peaceful.cases().map(Case::name).collect()
}

/// The names of the cases that [`run_faults`] runs, such as `g_faults/a_broker_killed_mid_stream_loses_nothing_confirmed`.
#[must_use]
pub fn fault_case_names() -> Vec<String> {
    Which::Faults.cases().map(Case::name).collect()
}

/// What a case came to.
enum Outcome {
    Passed,
    /// Its capability is not declared, and that is what the broker answers.
    Unsupported(&'static str),
    LeftOut(String),
    Failed(String),
}

/// What the cases of one harness share.
struct Suite {
    which: Which,
    harness: Arc<dyn Harness>,
    probe: OnceCell<(Arc<Probe>, Client)>,
    /// Held by a case that does harm.
    one: tokio::sync::Mutex<()>,
    cleaning: Mutex<JoinSet<()>>,
    report: Mutex<Report>,
}

/// Keeps others out, or is kept out by one.
enum Gate {
    Shared(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
}

impl Suite {
    fn new(which: Which, harness: Arc<dyn Harness>) -> Arc<Self> {
        let report = Report { name: harness.name().to_owned(), ..Report::default() };
        Arc::new(Self {
            which,
            harness,
            probe: OnceCell::new(),
            one: tokio::sync::Mutex::default(),
            cleaning: Mutex::default(),
            report: Mutex::new(report),
        })
    }

    /// Why there is no broker; `None` when there is one.
    fn absent(&self) -> Option<String> {
        if matches!(self.which, Which::Faults) && number(FAULTS).is_none() {
            return Some(format!("set {FAULTS} to how many faults a stream of messages should see"));
        }
        if self.harness.url().is_some() {
            return None;
        }
        Some(match self.harness.variable() {
            "" => "the harness has no URL".to_owned(),
            variable => format!("set {variable} to the URL of a broker"),
        })
    }

    async fn connected(&self) -> CaseResult<Client> {
        Ok(within("a connection", self.harness.connect()).await??)
    }

    /// The capabilities of a client, and of a sender, a receiver and a group on addresses of the harness; with a
    /// client that cleans up.
    async fn probed(&self) -> CaseResult<(Arc<Probe>, Client)> {
        let probe = async {
            let client = self.connected().await?;
            let broker = client.capabilities();
            let name = self.harness.address(&format!("conf-{:016x}", fastrand::u64(..)));
            let topic = Address::topic(&self.harness.address(&format!("conf-{:016x}", fastrand::u64(..))))?;
            let queue = Address::queue(&name)?;
            let discarding = |address: &Address| client.receiver(address).discard_dead_letters();
            let sender = within("a sender to open", async { client.sender(&queue).await }).await??.capabilities();
            let receiver = open(discarding(&queue)).await?.capabilities();
            let topic_capabilities = match broker.topics {
                true => open(discarding(&topic).group("probe")).await?.capabilities(),
                false => broker.clone(),
            };
            self.harness.cleanup(&client, &[queue, topic]).await;
            let replay = topic_capabilities.replay || !self.harness.replayable().is_empty();
            Ok((Arc::new(Probe { broker, sender, receiver, topic: topic_capabilities, replay }), client))
        };
        self.probe.get_or_try_init(|| within_time(LIMIT, "the capabilities", probe).flatten_ok()).await.cloned()
    }

    async fn run(self: Arc<Self>, case: &'static Case, seed: u64) -> Outcome {
        let _one = match self.which {
            Which::Peaceful => None,
            Which::Faults => Some(self.one.lock().await),
        };
        let gate = match case.alone {
            true => Gate::Alone(ALONE.clone().write_owned().await),
            false => Gate::Shared(ALONE.clone().read_owned().await),
        };
        let opened = async {
            if let Which::Faults = self.which {
                // What an earlier case did to it, and could not undo.
                self.harness.start().await?;
            }
            let (probe, cleaner) = self.probed().await?;
            Ok::<_, Failure>((probe, cleaner, self.connected().await?))
        };
        let (probe, cleaner, client) = match opened.await {
            Ok(opened) => opened,
            Err(failure) => return Self::outcome(Err(failure), None),
        };
        let made = Arc::new(Made::default());
        made.clients.lock().push(client.clone());
        let (run, missing) = match &case.needs {
            Some(need) if !(need.declared)(&probe) => (need.twin, Some(need.capability)),
            _ => (case.run, None),
        };
        let ctx = Ctx { harness: self.harness.clone(), client, probe, seed, made: made.clone() };
        let mut task = tokio::spawn(run(ctx));
        let limit = self.limit();
        let result = match timeout(limit, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Failure::Broken(format!("the case panicked: {panic}"))),
            Err(_) => {
                task.abort();
                Err(Failure::Broken(format!("the case did not end within {limit:?}")))
            }
        };
        self.clean(made, cleaner, gate);
        Self::outcome(result, missing)
    }

    fn limit(&self) -> Duration {
        match self.which {
            Which::Peaceful => LIMIT,
            Which::Faults => LIMIT + PER_FAULT * u32::try_from(self.harness.faults()).unwrap_or(u32::MAX),
        }
    }

    fn outcome(result: CaseResult, missing: Option<&'static str>) -> Outcome {
        match (result, missing) {
            (Ok(()), None) => Outcome::Passed,
            (Ok(()), Some(capability)) => Outcome::Unsupported(capability),
            (Err(Failure::Cannot(why)), _) => Outcome::LeftOut(why.to_owned()),
            (Err(Failure::Broken(text)), None) => Outcome::Failed(text),
            (Err(Failure::Broken(text)), Some(capability)) => {
                Outcome::Failed(format!("`{capability}` is not declared, and this is what happened: {text}"))
            }
        }
    }

    /// Closes and removes behind a case, while others run.
    fn clean(&self, made: Arc<Made>, cleaner: Client, gate: Gate) {
        let harness = self.harness.clone();
        let mut cleaning = self.cleaning.lock();
        while cleaning.try_join_next().is_some() {}
        cleaning.spawn(async move {
            let clients: Vec<_> = std::mem::take(&mut *made.clients.lock());
            let _ = timeout(CLOSE, futures::future::join_all(clients.iter().map(|c| c.close(CLOSE / 2)))).await;
            let addresses = std::mem::take(&mut *made.addresses.lock());
            let _ = timeout(CLOSE * 2, harness.cleanup(&cleaner, &addresses)).await;
            drop(gate);
        });
    }

    async fn finish(&self) -> Report {
        let mut cleaning = std::mem::take(&mut *self.cleaning.lock());
        while cleaning.join_next().await.is_some() {}
        if let Some((_, client)) = self.probe.get() {
            client.close(CLOSE).await;
        }
        let mut report = self.report.lock().clone();
        report.sort();
        report
    }

    fn note(&self, name: String, outcome: &Outcome) {
        let mut report = self.report.lock();
        match outcome {
            Outcome::Passed => report.passed.push(name),
            Outcome::Unsupported(capability) => report.unsupported.push((name, capability)),
            Outcome::LeftOut(why) => report.left_out.push((name, why.clone())),
            Outcome::Failed(text) => report.failed.push((name, text.clone())),
        }
    }
}

/// A result in a result, flat.
trait FlattenOk<T>: Future<Output = CaseResult<CaseResult<T>>> + Sized {
    async fn flatten_ok(self) -> CaseResult<T> {
        self.await?
    }
}

impl<T, F: Future<Output = CaseResult<CaseResult<T>>>> FlattenOk<T> for F {}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn seed() -> u64 {
    number(SEED).unwrap_or_else(|| fastrand::u64(..))
}

/// Runs the cases whose name the filter takes, in this process, four at a time, and reports; for tests of the suite
/// itself and of layers that must not pass it.
pub async fn check(harness: impl Harness, filter: impl Fn(&str) -> bool) -> Report {
    check_some(Which::Peaceful, 4, harness, filter).await
}

/// Runs the cases of [`run_faults`] whose name the filter takes as [`check`] does, one at a time.
pub async fn check_faults(harness: impl Harness, filter: impl Fn(&str) -> bool) -> Report {
    check_some(Which::Faults, 1, harness, filter).await
}

async fn check_some(which: Which, most: usize, harness: impl Harness, filter: impl Fn(&str) -> bool) -> Report {
    let suite = Suite::new(which, Arc::new(harness));
    let mut running = JoinSet::new();
    let mut waiting: Vec<_> = which.cases().filter(|case| filter(&case.name())).collect();
    waiting.reverse();
    loop {
        while running.len() < most
            && let Some(case) = waiting.pop()
        {
            let (suite, seed) = (suite.clone(), seed());
            running.spawn(async move {
                let outcome = suite.clone().run(case, seed).await;
                suite.note(case.name(), &outcome);
            });
        }
        if running.join_next().await.is_none() {
            return suite.finish().await;
        }
    }
}

fn trial(suite: &Arc<Suite>, runtime: &Arc<Runtime>, case: &'static Case, round: Option<u64>) -> Trial {
    let (suite, runtime) = (suite.clone(), runtime.clone());
    let shown = match round {
        Some(round) => format!("{}/{} #{round}", suite.harness.name(), case.name()),
        None => format!("{}/{}", suite.harness.name(), case.name()),
    };
    Trial::ignorable_test(shown, move || {
        if let Some(why) = suite.absent() {
            let required = number(REQUIRE) == Some(1) && matches!(suite.which, Which::Peaceful);
            return if required { Err(Failed::from(why)) } else { Ok(Ran::ignored_with(why)) };
        }
        let seed = seed();
        let outcome = runtime.block_on(suite.clone().run(case, seed));
        suite.note(case.name(), &outcome);
        match outcome {
            Outcome::Passed | Outcome::Unsupported(_) => Ok(Ran::Completed),
            Outcome::LeftOut(why) => Ok(Ran::ignored_with(why)),
            Outcome::Failed(text) => Err(format!("{text}\nrepeat with {SEED}={seed}").into()),
        }
    })
}

/// Runs the suite on each harness, as the `main` of a test target with `harness = false`; takes the arguments of
/// `cargo test`.
///
/// A harness without a broker reports its cases as ignored, or as failed where `ANYQUEUE_REQUIRE_BROKERS=1` is set.
/// `ANYQUEUE_CONFORMANCE_SEED` repeats a run with the seed that a failure told, `ANYQUEUE_CONFORMANCE_REPEAT=8` runs
/// everything eight times side by side.
#[must_use]
pub fn run<H: Harness>(harnesses: impl IntoIterator<Item = H>) -> ExitCode {
    run_some(Which::Peaceful, harnesses)
}

/// Runs the cases that do harm to the broker, one at a time on each harness, as [`run`] runs the others: for harnesses
/// whose broker is their own. [`Harness::start`] is called before each case. A fault that a harness cannot cause leaves out what needs
/// it, and the report lists it.
///
/// `FAULTS=20` sets how many faults each stream of messages sees; without the variable all cases are ignored.
#[must_use]
pub fn run_faults<H: Harness>(harnesses: impl IntoIterator<Item = H>) -> ExitCode {
    run_some(Which::Faults, harnesses)
}

fn run_some<H: Harness>(which: Which, harnesses: impl IntoIterator<Item = H>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let runtime = match Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let suites: Vec<_> = harnesses.into_iter().map(|h| Suite::new(which, Arc::new(h))).collect();
    let (rounds, threads) = match which {
        Which::Peaceful => {
            (number(REPEAT).filter(|n| *n > 1), suites.iter().map(|s| s.harness.threads()).min().unwrap_or(1))
        }
        Which::Faults => (None, suites.len()),
    };
    let side_by_side = usize::try_from(rounds.unwrap_or(1)).unwrap_or(1);
    arguments.test_threads.get_or_insert(threads.saturating_mul(side_by_side).min(256));
    let mut trials = Vec::new();
    // Case by case, so that every harness has one to run while the others wait for their broker.
    for case in which.cases() {
        for suite in suites.iter().filter(|suite| suite.harness.runs(&case.name())) {
            match rounds {
                Some(rounds) => trials.extend((1..=rounds).map(|r| trial(suite, &runtime, case, Some(r)))),
                None => trials.push(trial(suite, &runtime, case, None)),
            }
        }
    }
    let listing = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut documented = true;
    if !listing {
        for suite in &suites {
            match suite.absent() {
                Some(why) => println!("{}: not run: {why}", suite.harness.name()),
                None => documented &= conclude(which, &runtime.block_on(suite.finish()), rounds.is_some()),
            }
        }
    }
    if documented { conclusion.exit_code() } else { ExitCode::FAILURE }
}

/// Prints a report; of a complete run that failed nowhere, whether the document says the same.
fn conclude(which: Which, report: &Report, repeated: bool) -> bool {
    print!("{report}");
    let run = report.passed.len() + report.unsupported.len() + report.left_out.len();
    if repeated || run != which.cases().count() {
        return true;
    }
    match record::compare(report) {
        Ok(told) => {
            told.iter().for_each(|told| println!("  {told}"));
            true
        }
        Err(differs) => {
            eprintln!("{differs}");
            false
        }
    }
}

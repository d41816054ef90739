//! Faults, each with its own probability, all from one seed.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;

/// Repeats the faults of a run.
const SEED: &str = "ANYQUEUE_ENDPOINT_SEED";

/// How often what goes wrong: probabilities from 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A received message stays in the queue as well; on standard queues, as Amazon has it.
    pub duplicate: f64,
    /// A message comes before older ones; on standard queues.
    pub reorder: f64,
    /// An answer is late by [`late_by`](Self::late_by).
    pub delay: f64,
    pub late_by: Duration,
    /// A request about messages is refused before anything is done.
    pub throttle: f64,
    /// A request about messages is done, and its answer is a failure of the server or none at all.
    pub lose: f64,
    /// An entry of a batch is not done, and said to have failed.
    pub fail_entry: f64,
    /// A message that is being answered had come back to the queue before.
    pub expire: f64,
}

/// Decides what goes wrong, and counts it.
#[derive(Debug)]
pub struct Dice {
    pub faults: Faults,
    rng: Rng,
    counts: BTreeMap<&'static str, u64>,
    /// How often in a row each has not fallen.
    spared: BTreeMap<&'static str, f64>,
}

impl Dice {
    pub fn new(faults: Faults) -> Self {
        let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        println!("endpoint: {SEED}={seed}");
        Self { faults, rng: Rng::with_seed(seed), counts: BTreeMap::new(), spared: BTreeMap::new() }
    }

    /// Falls by chance, and at the latest when it was due twice: what a test asks for happens, whatever the seed.
    fn falls(&mut self, name: &'static str, probability: f64) -> bool {
        // No number is spent on what never happens, so that one fault more leaves the others as they were.
        if probability <= 0.0 {
            return false;
        }
        let spared = self.spared.entry(name).or_default();
        *spared += 1.0;
        let falls = self.rng.f64() < probability || *spared * probability >= 2.0;
        if falls {
            *spared = 0.0;
        }
        *self.counts.entry(name).or_default() += u64::from(falls);
        falls
    }

    pub fn duplicates(&mut self) -> bool {
        self.falls("duplicate", self.faults.duplicate)
    }

    pub fn throttles(&mut self) -> bool {
        self.falls("throttle", self.faults.throttle)
    }

    pub fn fails_entry(&mut self) -> bool {
        self.falls("fail_entry", self.faults.fail_entry)
    }

    pub fn expires(&mut self) -> bool {
        self.falls("expire", self.faults.expire)
    }

    /// Which of `count` messages comes first.
    pub fn first_of(&mut self, count: usize) -> usize {
        if count > 1 && self.falls("reorder", self.faults.reorder) { self.rng.usize(1..count) } else { 0 }
    }

    /// How long an answer waits.
    pub fn delay(&mut self) -> Option<Duration> {
        self.falls("delay", self.faults.delay).then_some(self.faults.late_by)
    }

    /// How an answer is lost: `Some(true)` with its connection, `Some(false)` as a failure of the server.
    pub fn loses(&mut self) -> Option<bool> {
        self.falls("lose", self.faults.lose).then(|| self.rng.bool())
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.clone()
    }
}

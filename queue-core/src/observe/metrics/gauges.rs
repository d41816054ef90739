//! What receivers hold at the moment, read when somebody asks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use parking_lot::Mutex;

use super::{attributes, is_on};
use crate::client::ClientInner;
use crate::lease::Fetch;

/// Every client of the process.
static CLIENTS: Mutex<Vec<Weak<ClientInner>>> = Mutex::new(Vec::new());

/// Keeps an eye on the receivers of a client.
pub(crate) fn watch(client: &Arc<ClientInner>) {
    let mut clients = CLIENTS.lock();
    clients.retain(|client| client.strong_count() > 0);
    clients.push(Arc::downgrade(client));
}

/// When what is unanswered was fetched.
#[derive(Debug, Default)]
pub(crate) struct Ages(Mutex<VecDeque<(Instant, Weak<Fetch>)>>);

impl Ages {
    /// Messages were fetched; they are unanswered as long as their fetch lives.
    pub(crate) fn fetched(&self, fetch: &Arc<Fetch>) {
        if !is_on() {
            return;
        }
        let mut fetches = self.0.lock();
        while fetches.front().is_some_and(|(_, fetch)| fetch.strong_count() == 0) {
            fetches.pop_front();
        }
        if fetches.len() > 1024 && fetches.len().is_power_of_two() {
            // One that is held long must not keep those behind it in memory.
            fetches.retain(|(_, fetch)| fetch.strong_count() > 0);
        }
        fetches.push_back((Instant::now(), Arc::downgrade(fetch)));
    }

    /// Seconds since the oldest that is unanswered was fetched.
    fn oldest(&self) -> f64 {
        let fetches = self.0.lock();
        let oldest = fetches.iter().find(|(_, fetch)| fetch.strong_count() > 0);
        oldest.map_or(0.0, |(at, _)| at.elapsed().as_secs_f64())
    }
}

/// Of each source: how many messages are in flight, and the age of the oldest.
fn read() -> Vec<(Vec<KeyValue>, u64, f64)> {
    let clients: Vec<_> = CLIENTS.lock().iter().filter_map(Weak::upgrade).collect();
    let mut sources: HashMap<_, (Vec<KeyValue>, u64, f64)> = HashMap::new();
    for inbox in clients.iter().flat_map(|client| client.open_receivers()) {
        let subject = inbox.subject();
        let key = (subject.system, subject.address.clone(), subject.group.clone());
        let of = sources.entry(key).or_insert_with(|| (attributes(subject), 0, 0.0));
        let in_flight = inbox.in_flight();
        of.1 += in_flight as u64;
        if in_flight > 0 {
            of.2 = of.2.max(inbox.ages().oldest());
        }
    }
    sources.into_values().collect()
}

pub(super) fn register(meter: &Meter) {
    meter
        .u64_observable_gauge("anyqueue.messages.in_flight")
        .with_unit("{message}")
        .with_description("Messages that were handed out, or wait here for their next attempt, and are not answered")
        .with_callback(|observer| read().iter().for_each(|(of, count, _)| observer.observe(*count, of)))
        .build();
    meter
        .f64_observable_gauge("anyqueue.unanswered.age")
        .with_unit("s")
        .with_description("How long the oldest unanswered message has been here")
        .with_callback(|observer| read().iter().for_each(|(of, _, age)| observer.observe(*age, of)))
        .build();
}

//! An open loop: messages are due at a rate, whatever becomes of those before.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::process::{Meter, Outcome, Run};

/// Sends at the rate of the run, and measures from the tick at which a message is sent to the end of its future.
pub(crate) async fn open_loop<S>(run: &Run, mut send: impl FnMut(usize) -> S) -> Outcome
where
    S: Future<Output: Future>,
{
    let mut micros = Vec::with_capacity(run.messages);
    let mut window = FuturesUnordered::new();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let meter = Meter::start();
    let (start, mut sent) = (Instant::now(), 0);
    while micros.len() < run.messages {
        tokio::select! {
            Some(took) = window.next(), if !window.is_empty() => micros.push(took),
            _ = tick.tick(), if sent < run.messages => {
                let began = Instant::now();
                for _ in 0..due(start, sent, run.rate).min(run.messages - sent) {
                    let verdict = send(sent).await;
                    sent += 1;
                    window.push(async move {
                        verdict.await;
                        began.elapsed().as_secs_f64() * 1e6
                    });
                }
                // Lazy ones are handed over by a first look.
                while let Some(Some(took)) = window.next().now_or_never() {
                    micros.push(took);
                }
            }
        }
    }
    Outcome { latency: percentiles(micros), ..meter.end(run.messages) }
}

/// p50 and p99.
fn percentiles(mut micros: Vec<f64>) -> [f64; 2] {
    micros.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|part| micros[((micros.len() - 1) as f64 * part) as usize])
}

/// The times at which the messages of an open loop are due: in steps of a millisecond, as timers tick.
fn due(start: Instant, sent: usize, rate: f64) -> usize {
    ((start.elapsed().as_secs_f64() * rate) as usize).saturating_sub(sent)
}

//! Both sides of a case, in turn.

use crate::process::{self, Outcome, Run};

/// A setting from the environment.
pub(crate) fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Prints the heads of the columns.
pub(crate) fn title(native: &str) {
    println!(
        "{:<14} {:>7} {:>7}  {:<24} {:>8} {:>8}  rate ratio",
        "case",
        "ours",
        native,
        "ratio",
        "ours/s",
        format!("{native}/s")
    );
}

/// Runs both sides of a case in turn, and prints what came of it.
pub(crate) fn compare(run: &Run, pairs: usize, native: &str) {
    let mut both: Vec<(Outcome, Outcome)> = Vec::new();
    for pair in 0..pairs {
        // Whoever goes first finds the server as the other left it.
        both.push(if pair % 2 == 0 {
            let ours = process::start(run, false);
            (ours, process::start(run, true))
        } else {
            let raw = process::start(run, true);
            (process::start(run, false), raw)
        });
    }
    let of = |value: &dyn Fn(&(Outcome, Outcome)) -> f64| spread(both.iter().map(value).collect());
    let name = format!("{} {}", run.case, run.size);
    let (cpu, rate) = (of(&|(ours, raw)| ours.cpu / raw.cpu), of(&|(ours, raw)| ours.rate / raw.rate));
    println!(
        "{name:<14} {:>7.2} {:>7.2}  {:.3} ({:.3} to {:.3})   {:>8.0} {:>8.0}  {:.2} ({:.2} to {:.2})",
        of(&|(ours, _)| ours.cpu).1,
        of(&|(_, raw)| raw.cpu).1,
        cpu.1,
        cpu.0,
        cpu.2,
        of(&|(ours, _)| ours.rate).1,
        of(&|(_, raw)| raw.rate).1,
        rate.1,
        rate.0,
        rate.2,
    );
    if run.case == "latency" {
        for (name, index) in [("p50", 0), ("p99", 1)] {
            let ratio = of(&|(ours, raw)| ours.latency[index] / raw.latency[index]);
            println!(
                "  {name} at {:.0}/s: {:.0} µs, {native} {:.0} µs, ratio {:.3} ({:.3} to {:.3})",
                run.rate,
                of(&|(ours, _)| ours.latency[index]).1,
                of(&|(_, raw)| raw.latency[index]).1,
                ratio.1,
                ratio.0,
                ratio.2
            );
        }
    }
}

/// The quarter, the median and the three quarters.
fn spread(mut list: Vec<f64>) -> (f64, f64, f64) {
    list.sort_by(f64::total_cmp);
    (list[list.len() / 4], list[list.len() / 2], list[list.len() * 3 / 4])
}

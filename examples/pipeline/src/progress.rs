//! Shows how far a run is: two bars, or a line each second where nobody looks at a terminal.

use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::Outcome;
use crate::state::Standing;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) enum Progress {
    Bars { fetched: ProgressBar, aggregated: ProgressBar },
    Lines { at: Instant, done: u64 },
}

impl Progress {
    /// Begins where an earlier run ended.
    pub(crate) fn new(begun: &Standing) -> Outcome<Self> {
        if !stderr().is_terminal() {
            return Ok(Self::Lines { at: Instant::now(), done: begun.done });
        }
        let bars = MultiProgress::new();
        let bar = |name, unit, at| {
            let look = format!("{{prefix:>10}} [{{bar:40}}] {{human_pos}} of {{human_len}} {unit}, {{rate}}/s");
            let rate = |state: &ProgressState, out: &mut dyn Write| {
                let _ = write!(out, "{:.0}", state.per_sec());
            };
            let bar = bars.add(ProgressBar::new(0).with_prefix(name).with_position(at));
            bar.set_style(ProgressStyle::with_template(&look)?.with_key("rate", rate).progress_chars("=> "));
            bar.reset_eta();
            Outcome::Ok(bar)
        };
        let fetched = bar("fetched", "pages", begun.fetched)?;
        Ok(Self::Bars { fetched, aggregated: bar("aggregated", "records", begun.done)? })
    }

    /// How often there is something new to show.
    pub(crate) fn every(&self) -> Duration {
        match self {
            Self::Bars { .. } => SECOND / 10,
            Self::Lines { .. } => SECOND,
        }
    }

    pub(crate) fn show(&mut self, now: &Standing) {
        let Standing { pages, fetched: here, records, done } = *now;
        match self {
            Self::Bars { fetched, aggregated } => {
                for (bar, at, of) in [(fetched, here, pages), (aggregated, done, records)] {
                    bar.set_length(of);
                    bar.set_position(at);
                }
            }
            Self::Lines { at, done: before } => {
                let took = at.elapsed().max(Duration::from_millis(1)).as_micros();
                let rate = u128::from(done.saturating_sub(*before)) * 1_000_000 / took;
                eprintln!("fetched {here} of {pages} pages, aggregated {done} of {records} records, {rate}/s");
                (*at, *before) = (Instant::now(), done);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bars { fetched, aggregated } = self {
            fetched.abandon();
            aggregated.abandon();
        }
    }
}

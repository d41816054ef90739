//! What a run shows at a terminal.

use std::process::Command;

use crate::Outcome;
use crate::place::{Place, pages, run};

/// `script` of util-linux is the terminal.
pub(crate) fn bars(_: &str) -> Outcome {
    let place = Place::on_memory("bars")?;
    let (server, at) = pages(20, 10)?;
    let pipeline = place.pipeline(&["run", &at]);
    let program = pipeline.get_program().to_str().ok_or("no text")?;
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &format!("stty cols 200 && exec '{program}' run {at}"), "/dev/null"]);
    terminal.envs(pipeline.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
    let shown = run(terminal).map_err(|error| format!("script, of util-linux: {error}"))?;
    println!("{shown}");
    let full = "=".repeat(40);
    assert!(shown.contains(&format!("   fetched [{full}] 2 of 2 pages, ")), "{shown}");
    assert!(shown.contains(&format!("aggregated [{full}] 20 of 20 records, ")), "{shown}");
    let said = shown.lines().last().unwrap_or_default();
    assert!(said.contains("2 pages, 20 records of ") && said.ends_with(" records/s"), "{said}");
    server.interrupt()?;
    place.clean()
}

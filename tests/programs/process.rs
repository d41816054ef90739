//! Programs of this folder and of `examples`, and what they print.

mod running;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

pub(crate) use self::running::{Running, failed, refused};
use crate::Outcome;

/// One of the examples.
pub(crate) fn example(name: &str, url: &str, arguments: &[&str]) -> Outcome<Command> {
    let path = std::env::current_exe()?.with_file_name("../examples").join(name);
    if !path.exists() {
        return Err(format!("{name} is not built: cargo build --examples --all-features").into());
    }
    let mut command = Command::new(path);
    command.args(arguments).env("QUEUE_URL", url);
    Ok(command)
}

/// A program of this folder, in Python.
pub(crate) fn python(name: &str, arguments: &[&str]) -> Outcome<Command> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let make = || {
        let output = Command::new(root.join("scripts/interop")).output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout).into()) } else { Err(text(&output.stderr)) }
    };
    let python = PYTHON.get_or_init(make).as_ref().map_err(|why| format!("scripts/interop: {why}"))?;
    let mut command = Command::new(python);
    // Leaves no compiled files among the sources.
    command.arg("-B").arg(root.join("tests/programs").join(name)).args(arguments);
    Ok(command)
}

/// What drives a browser without a window.
pub(crate) fn browser() -> Outcome<Command> {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/browser")).output()?;
    if !output.status.success() {
        return Err(format!("scripts/browser: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(Command::new(String::from_utf8(output.stdout)?.trim()))
}

/// Runs a program to its end, which has to be a good one; what it printed.
pub(crate) fn run(command: Command) -> Outcome<String> {
    let Output { status, stdout, stderr } = running::output(&command)?;
    if !status.success() {
        return Err(format!("{command:?}: {status}: {}", String::from_utf8_lossy(&stderr)).into());
    }
    Ok(String::from_utf8(stdout)?)
}

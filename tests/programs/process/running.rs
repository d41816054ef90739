//! A program that runs, and one that has ended as it should.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a program to its end, or for so long as anything may take.
pub(crate) fn output(command: &Command) -> Outcome<Output> {
    let mut bounded = Command::new("timeout");
    bounded.arg(PATIENCE.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    Ok(bounded.envs(set).output()?)
}

/// Runs a program to its end, which has to be that of wrong arguments; what it said.
pub(crate) fn refused(command: Command) -> Outcome<String> {
    let Output { status, stdout, stderr } = output(&command)?;
    assert_eq!((status.code(), &*stdout), (Some(2), &b""[..]), "{command:?}");
    Ok(String::from_utf8(stderr)?)
}

/// Runs a program to its end, which has to be a failure; what it printed, and what it said of that.
pub(crate) fn failed(command: Command) -> Outcome<(String, String)> {
    let Output { status, stdout, stderr } = output(&command)?;
    let said = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    assert_eq!(status.code(), Some(1), "{command:?}: {said:?}");
    Ok(said)
}

/// A program that runs; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Outcome<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (printed, lines) = channel();
        // Ends with the program.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if printed.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line that it prints.
    pub(crate) fn line(&self) -> Outcome<String> {
        self.lines.recv_timeout(PATIENCE).map_err(|error| format!("it printed nothing more: {error}").into())
    }

    /// Ends it as Ctrl-C does; it has to end well.
    pub(crate) fn interrupt(mut self) -> Outcome {
        let told = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        assert!(told.success());
        let told = Instant::now();
        while told.elapsed() < PATIENCE {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("it ended with {status}").into()),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
        Err("it does not end".into())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

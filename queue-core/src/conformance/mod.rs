//! The conformance suite: proves of a driver, a layer or a wrapper what the library promises of every broker.
//!
//! Behind the feature `conformance`. Each case is named by the promise it proves and belongs to a group: **A** round
//! trip, **B** send, **C** receive and topics, **D** answers and dead letters, **E** order, **F** time, **H** life of
//! handles and brokers, **I** configuration. Group **G**, real faults, is run by [`run_faults`] on a broker that is the
//! harness' own.
//!
//! # For the author of a driver
//!
//! Add to `Cargo.toml` what makes the suite a test target of its own,
//!
//! ```toml
//! [dev-dependencies]
//! queue-core = { version = "0.1", features = ["conformance"] }
//!
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! and write `tests/conformance.rs`: a [`Harness`] says how to reach the broker, [`run`] does the rest. This one is for
//! the embedded broker; put your own driver, and the environment variable that holds your broker's URL, in its place.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use queue_core::conformance::{Harness, Layered, PassThrough, run};
//! use queue_core::{Driver, memory};
//!
//! struct Mine;
//!
//! impl Harness for Mine {
//!     fn name(&self) -> &str {
//!         "mine"
//!     }
//!
//!     fn drivers(&self) -> &[Driver] {
//!         &[memory::DRIVER]
//!     }
//!
//!     // A driver of a real broker overrides `variable` instead: `"MINE_TEST_URL"`.
//!     fn url(&self) -> Option<String> {
//!         Some("memory://conformance".to_owned())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     // Once as it is, once through a layer that forwards every method.
//!     let harnesses: [Arc<dyn Harness>; 2] = [Arc::new(Mine), Arc::new(Layered::new(Mine, PassThrough))];
//!     run(harnesses)
//! }
//! ```
//!
//! `cargo test --test conformance` runs it; a part of a name as an argument runs the cases that contain it.
//!
//! # What the suite asks for
//!
//! * **Every client of a harness reaches the same broker**, and names that it never saw before may be used at once:
//!   each case makes its own queues and topics and has them deleted at the end.
//! * **Capabilities are taken at their word.** What a sender or receiver declares must work. What it does not declare
//!   must be answered by `Unsupported` before anything is sent: for each case with a capability there is a twin that
//!   proves it. A declared capability that fails and one that works and is not declared both fail the suite. The
//!   list of what was answered by `Unsupported` is printed at the end and is part of a [`Report`].
//! * **Exact capabilities count.** They are those of a sender, a receiver and a group on the harness' own addresses, so
//!   a kind of queue that can do less (SQS FIFO) is a harness of its own with another [`suffix`](Harness::suffix).
//! * Nothing that a driver's own buffers do may show: what a closed or dropped receiver had fetched comes to another
//!   receiver within seconds, not when its lease ends.
//! * A case waits at most 20 seconds for anything, and says what it waited for. What must not come early is checked
//!   to the millisecond; what must come has time, as a test machine may be slow.
//! * Bodies go up to the largest allowed, at most 1 MiB. That a larger one is refused is checked with a real body up to
//!   64 MiB, and with a shared block counted many times in a header above that; a broker without a limit
//!   (`usize::MAX`) must take 2 MiB instead.
//!
//! A failure prints its seed; `ANYQUEUE_CONFORMANCE_SEED` repeats it. `ANYQUEUE_CONFORMANCE_REPEAT=8` runs everything
//! eight times side by side. Without a URL the cases are ignored, and say which variable to set; with
//! `ANYQUEUE_REQUIRE_BROKERS=1` that is a failure.
//!
//! With `ANYQUEUE_CONFORMANCE_DOC=docs/semantics.md` (an absolute path, since tests run in the folder of their crate) a
//! complete run must come to what the section `### name` of that document says; `UPDATE_DOCS=1` rewrites the section.
//!
//! # Faults
//!
//! A [`Harness`] whose broker nobody else uses can do it harm: kill, restart, freeze, block, cut connections. [`run_faults`],
//! as the `main` of a test target of its own, sends a stream of messages through each fault and proves that nothing
//! confirmed is lost, that nothing is acknowledged that was not processed, and that what comes more than once is explained
//! by the connections that were lost: for each at most what the receiver held and the sender had in flight. Cuts and
//! slowness of the network come from a link of the suite's own, where [`upstream`](Harness::upstream) says where it can
//! stand. What a harness cannot do is listed. `FAULTS=20` sets how many faults a stream sees (default 3).
//!
//! # For the author of a layer
//!
//! Run the suite with [`Layered`] on a broker that passes it. [`PassThrough`] shows the pattern: every method is
//! overridden, and `clippy::missing_trait_methods` denies the one forgotten. [`Interpose`] puts something before
//! producers and consumers in a test; [`check`] runs some cases and reports instead of exiting.

mod a_round_trip;
mod b_send;
mod c_receive;
mod c_topics;
mod case;
mod d_answer;
mod d_dead_letter;
mod d_redrive;
mod e_order;
mod f_time;
mod flaky;
mod g_faults;
mod g_links;
mod h_broker;
mod h_life;
mod harness;
mod i_config;
mod j_observation;
mod layer;
mod link;
mod load;
mod record;
mod report;
mod runner;

pub use harness::{Fault, Harness};
pub use layer::Layered;
pub use record::section;
pub use report::{Report, capability_table};
pub use runner::{case_names, check, check_faults, fault_case_names, run, run_faults};

pub use crate::interpose::{Interpose, PassThrough};

#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod breaker;
#[cfg(feature = "cloudevents")]
pub mod cloudevents;
pub mod codec;
mod control;
mod counts;
mod failure;
mod handler;
mod handling;
mod job;
mod lanes;
mod light;
mod limit;
mod payload;
mod reply;
mod report;
mod retry;
mod router;
mod run;
mod signal;
mod slots;
mod task;
mod tasks;
mod typed;
mod worker;

pub use crate::batch::{BatchHandler, Batches, HandledBatch};
pub use crate::breaker::Breaker;
pub use crate::control::Control;
pub use crate::counts::Counts;
pub use crate::failure::{BoxError, Failure, FailureKind, OrFail};
pub use crate::handler::{Handled, HandlerFn, IntoHandler, IsService};
pub use crate::job::Job;
pub use crate::limit::Adaptive;
#[cfg(feature = "json")]
pub use crate::payload::Json;
pub use crate::payload::{FromJob, Payload};
pub use crate::reply::{IntoReply, Reply};
pub use crate::report::Report;
pub use crate::retry::{Backoff, Retry, RetryPolicy};
pub use crate::router::Router;
pub use crate::signal::signal;
#[cfg(feature = "json")]
pub use crate::tasks::RunTask;
pub use crate::tasks::{TASK, TASKS, TaskCall, TaskClient, Tasks};
pub use crate::typed::{Typed, TypedReceiver, TypedSender};
pub use crate::worker::Worker;

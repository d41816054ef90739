//! Requests, replies and tasks on every broker.
//!
//! Needs the variables that `scripts/brokers env` prints; what is left out is reported as ignored.

#[path = "../worker/place.rs"]
#[allow(dead_code, reason = "what it says of the brokers is for the tests of the worker too")]
mod place;
#[path = "../support/proxy.rs"]
mod proxy;

mod answers;
mod asking;
mod broken;
mod serving;
mod tasks;

use std::process::ExitCode;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use place::{PLACES, Place};

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
/// What a handler panics with when its case wants it to.
pub(crate) const WANTED: &str = "the password is hunter2";

type Case = fn(Arc<Place>) -> LocalBoxFuture<'static, Outcome>;

macro_rules! cases {
    ($($module:ident::$name:ident,)*) => {
        &[$((stringify!($name), |place| Box::pin($module::$name(place)) as LocalBoxFuture<'static, Outcome>),)*]
    };
}

const CASES: &[(&str, Case)] = cases![
    asking::a_reply_comes_to_whoever_asks,
    asking::a_thousand_requests_each_get_their_own_reply,
    asking::late_second_and_foreign_replies_are_ignored,
    asking::a_request_without_a_worker_times_out,
    asking::a_request_to_no_queue_fails_at_once,
    asking::a_caller_that_goes_away_leaves_nothing_behind,
    asking::closing_fails_what_waits_at_once,
    asking::what_is_no_request_is_refused,
    answers::a_handlers_value_is_the_reply,
    answers::a_reply_goes_where_the_request_says,
    answers::a_permanent_error_reaches_the_caller,
    answers::a_temporary_error_is_tried_again_first,
    answers::the_last_attempts_error_reaches_the_caller,
    answers::what_a_panic_says_reaches_nobody,
    answers::a_request_is_handed_to_another_when_its_worker_ends,
    answers::what_nobody_waits_for_is_not_worked_on,
    answers::a_reply_to_nobody_is_dropped,
    tasks::a_task_runs_and_its_result_comes_back,
    tasks::an_unknown_task_is_an_error_that_names_no_others,
    tasks::a_task_that_is_sent_runs,
];

/// Where a connection can be cut, and replies come by it alone.
const BROKEN: &[(&str, Case)] = cases![
    broken::a_lost_connection_fails_what_waits_and_the_next_request_works,
    broken::a_worker_replies_when_its_connection_is_back,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref() != Some(&WANTED) {
            usual(panic);
        }
    }));
    // One that waits for an error is no load.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let mut trials = Vec::new();
    for place in PLACES {
        let broken = if place.name.starts_with("rabbitmq") { BROKEN } else { &[] };
        for (name, case) in CASES.iter().chain(broken) {
            let name = format!("{}/{name}", place.name);
            trials.push(Trial::ignorable_test(name, move || match Place::find(place) {
                Ok(place) => match place::run(case(Arc::new(place))) {
                    Ok(()) => Ok(Completion::Completed),
                    Err(error) => Err(Failed::from(error.to_string())),
                },
                Err(why) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => Err(Failed::from(why)),
                Err(why) => Ok(Completion::ignored_with(why)),
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

//! The worker on every broker: exact attempts, order by key, rate, drain; and a worker's process that is killed.
//!
//! Needs the variables that `scripts/brokers env` prints; what is left out is reported as ignored. `FAULTS` sets how often
//! processes are killed (3), `FULL=1` the sizes of the long form.

mod attempts;
mod child;
mod killed;
mod order;
mod place;
mod promises;
mod running;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::RwLock;
use place::{Known, PLACES, Place};

/// Cases at a time: they wait more than they work.
const THREADS: usize = 4;
/// Held for itself by a case that measures a rate, or counts what the process has open.
static PROCESS: RwLock<()> = RwLock::new(());

/// What a handler panics with when its case wants it to.
pub(crate) const WANTED: &str = "a panic that the test wants";

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    if child::is_wanted() {
        return child::run();
    }
    silence_wanted_panics();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let (mut alone, mut trials) = (Vec::new(), Vec::new());
    for place in PLACES {
        alone.push(trial(place, "workers_that_ended_leave_nothing_open", true, promises::lives));
        alone.push(trial(place, "64_handlers_are_faster_than_one", true, order::faster));
        let mut case = |name: &str, run: fn(Arc<Place>) -> Outcome| trials.push(trial(place, name, false, run));
        case("failures_end_after_exactly_max_deliveries_across_restarts", attempts::exact);
        case("an_error_is_the_reason_of_its_dead_letter", attempts::reason);
        case("a_drain_gives_back_what_it_has", attempts::drain);
        case("a_retry_is_not_early_and_holds_up_nothing", promises::retry);
        case("exactly_those_that_failed_are_dead_letters", promises::exactly);
        case("all_arrive_though_some_fail_and_panic", promises::all_arrive);
        case("a_delay_is_never_early", promises::delay);
        case("what_is_past_its_time_is_not_worked_on", promises::expired);
        case("what_hurries_is_worked_on_first", promises::priority);
        case("a_handler_of_three_leases_sees_its_message_once", promises::long);
        case("one_of_two_workers_ends_and_the_other_goes_on", promises::one_of_two);
        case("a_key_that_waits_holds_up_no_other", order::waits);
        case("the_order_of_each_key_is_kept_by_64_handlers", order::kept);
        if place.durable {
            case("a_process_that_is_killed_loses_nothing", killed::again_and_again);
            case("a_message_that_kills_its_process_ends_alone", killed::poison);
            case("a_process_that_is_told_to_end_ends_well", killed::told_to_end);
        }
    }
    // First, so that nothing waits for them.
    alone.extend(trials);
    libtest_mimic::run(&arguments, alone).exit_code()
}

/// A panic that is part of a case says nothing about it.
fn silence_wanted_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref() != Some(&WANTED) {
            usual(panic);
        }
    }));
}

fn trial(place: &'static Known, name: &str, alone: bool, run: fn(Arc<Place>) -> Outcome) -> Trial {
    Trial::ignorable_test(format!("{}/{name}", place.name), move || {
        let place = match Place::find(place) {
            Ok(place) => place,
            Err(why) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => return Err(Failed::from(why)),
            Err(why) => return Ok(Completion::ignored_with(why)),
        };
        let (_alone, _beside) = if alone { (Some(PROCESS.write()), None) } else { (None, Some(PROCESS.read())) };
        run(Arc::new(place)).map(|()| Completion::Completed).map_err(|error| Failed::from(error.to_string()))
    })
}

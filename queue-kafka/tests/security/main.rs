//! Logging in and TLS, against a Kafka of the tests' own.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "msk-iam")]
mod iam;
mod logins;
mod logs;
mod proxy;
mod server;
mod tls;
mod tokens;

use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tokio::time::{Instant, sleep};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(40);

/// What nothing may ever show.
const SECRETS: [&str; 8] = [
    server::PASSWORD,
    server::WRONG_PASSWORD,
    server::TOKEN_START,
    server::SECRET_KEY,
    server::SESSION_START,
    server::SESSION_START_IN_URL,
    server::REQUEST_START,
    "PRIVATE KEY",
];

fn main() {
    #[cfg(feature = "msk-iam")]
    iam::in_an_environment_of_its_own();
    let required = std::env::var("ANYQUEUE_REQUIRE_BROKERS").as_deref() == Ok("1");
    let missing = common::url().is_none();
    if missing {
        eprintln!("ANYQUEUE_TEST_KAFKA_URL is not set: the tests against a broker are ignored");
    }
    macro_rules! trials {
        ($($file:ident::$name:ident),* $(,)?) => { vec![$(
            Trial::test(stringify!($name), move || {
                if missing {
                    return Err("ANYQUEUE_TEST_KAFKA_URL is not set".into());
                }
                common::block_on($file::$name());
                Ok(())
            })
            .with_ignored_flag(missing && !required)
        ),*] };
    }
    // Those that wait for tokens to expire first; the others have the time meanwhile.
    #[cfg(feature = "msk-iam")]
    let mut trials = trials![
        iam::a_connection_outlives_its_first_credentials_of_aws,
        iam::an_identity_of_aws_logs_in,
        iam::an_identity_that_aws_would_not_take_is_refused,
        iam::without_region_or_credentials_of_aws_it_is_told_what_to_set,
    ];
    #[cfg(not(feature = "msk-iam"))]
    let mut trials = Vec::new();
    trials.extend(trials![
        tokens::a_connection_outlives_its_first_token,
        tokens::a_token_file_is_followed,
        tokens::a_token_that_nobody_renews_is_refused,
        tokens::a_provider_that_fails_is_told_when_connecting,
        logins::a_password_logs_in_by_every_mechanism,
        logins::a_login_that_is_refused_is_told_at_once_and_not_hammered,
        logins::a_password_that_changes_is_told_and_a_file_with_the_new_one_is_taken,
        logins::options_that_do_not_fit_together_are_refused,
        tls::a_broker_is_trusted_by_its_authority_and_its_name_only,
        tls::the_wrong_scheme_for_a_port_is_told,
        tls::a_client_certificate_logs_in,
        tls::a_broker_that_says_nothing_is_an_error_in_time,
    ]);
    logs::collect();
    let mut arguments = Arguments::from_args();
    // Most wait more than they work.
    arguments.test_threads.get_or_insert(3);
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !missing {
        server::down();
    }
    let shown: Vec<_> = logs::lines().into_iter().filter(|l| SECRETS.iter().any(|s| l.contains(s))).collect();
    assert!(shown.is_empty(), "secrets were logged: {shown:#?}");
    conclusion.exit();
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a text shows a secret.
pub(crate) fn tells(text: &str) -> bool {
    SECRETS.iter().any(|s| text.contains(s))
}

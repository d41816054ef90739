//! Logging in and TLS, against a RabbitMQ of the tests' own, and connecting to what is no RabbitMQ.

#[path = "../common/mod.rs"]
mod common;

mod links;
mod logins;
mod proxy;
mod server;
mod tls;
mod tokens;

use futures::FutureExt;

use crate::common::{Case, conclude};

fn main() {
    macro_rules! cases {
        ($($file:ident::$name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |_| $file::$name().boxed_local())),*] };
    }
    let conclusion = conclude(
        common::URL,
        cases![
            links::a_server_that_says_nothing_is_an_error_in_time_and_is_left,
            links::a_server_that_closes_at_once_is_an_error_at_once,
            links::a_server_that_is_silent_at_the_end_is_left_too,
            links::a_swallowed_network_is_noticed_and_told_once,
            links::a_host_that_says_nothing_leaves_time_for_the_next,
            logins::refusals_are_told_apart_and_show_no_password,
            logins::a_changed_password_is_read_at_the_reconnect_and_a_refused_one_is_not_hammered,
            logins::options_that_do_not_fit_together_are_refused,
            tls::a_server_is_trusted_by_its_authority_and_its_name_only,
            tls::the_wrong_scheme_for_a_port_is_told,
            tls::a_client_certificate_logs_in,
            tls::certificates_are_read_again_at_the_reconnect,
            tokens::a_connection_outlives_its_first_token,
            tokens::a_token_file_is_followed,
            tokens::a_token_that_nobody_renews_is_refused,
        ],
    );
    server::down();
    conclusion.exit();
}

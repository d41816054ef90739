//! Three services with databases of their own, which talk by messages, and a proxy in front.
//!
//! ```sh
//! export QUEUE_URL=amqp://guest:guest@localhost:5672      # or kafka://… sqs://…
//! cargo build -p microservices
//! cargo run -q -p microservices -- orders &
//! cargo run -q -p microservices -- payments &
//! cargo run -q -p microservices -- notifications &
//! cargo run -q -p microservices -- proxy &
//! # When each of the four has printed its address:
//! curl -H 'content-type: application/json' -d '{"customer": "ann", "item": "lamp", "amount": 4900}' http://127.0.0.1:8080/orders
//! curl 'http://127.0.0.1:8080/notifications?customer=ann'
//! ```
//! `LISTEN` says where each listens (the proxy at 127.0.0.1:8080, the services at 8081, 8082 and 8083), `DATABASE` which file a
//! service keeps (`orders.db`, `payments.db`, `notifications.db`), `ORDERS`, `PAYMENTS` and `NOTIFICATIONS` where the proxy finds
//! the services, `TIMEOUT` how many seconds one may take to answer it (30). A service starts only while the broker can be reached.
//! Instances of one service share its `DATABASE`, because the inbox is in it.
//!
//! Each service is one file with its tables, its routes and its handler of messages. What they share: a message is stored in
//! the transaction that it tells of, and sent after that (`outbox`); what has been handled is noted in the transaction of the
//! handler, so that a copy changes nothing (`inbox`).

mod database;
mod inbox;
mod messages;
mod notifications;
mod orders;
mod outbox;
mod payments;
mod proxy;
mod rest;
mod service;
mod settings;

use std::process::ExitCode;

use anyqueue::ErrorKind;

use crate::settings::Invalid;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let ended = match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [Some("orders")] => orders::run().await,
        [Some("payments")] => payments::run().await,
        [Some("notifications")] => notifications::run().await,
        [Some("proxy")] => proxy::run().await,
        _ => Err(Invalid("usage: microservices orders | payments | notifications | proxy".to_owned()).into()),
    };
    let Err(error) = ended else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    let is_broker = |error: &anyqueue::Error| error.kind() == ErrorKind::InvalidConfig;
    let is_setting = error.is::<Invalid>() || error.downcast_ref().is_some_and(is_broker);
    ExitCode::from(if is_setting { 2 } else { 1 })
}

//! All that a shop runs: three services with their databases, and a proxy.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyqueue::{Client, ErrorKind, Source};
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::{Instant, sleep};

use crate::http::{ask, get};
use crate::process::Running;
use crate::{Outcome, block_on};

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const SERVICES: [&str; 3] = ["orders", "payments", "notifications"];
pub(crate) const QUEUES: [&str; 3] = ["payments-requested", "orders-decided", "notices"];

/// The program.
pub(crate) fn program(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microservices"));
    command.args(arguments).env("LISTEN", "127.0.0.1:0").envs(settings.iter().copied());
    command
}

/// A folder of its own; removed when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Outcome<Self> {
        let name = format!("microservices-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// Where a program says what goes wrong.
    fn log(&self, name: &str) -> Outcome<File> {
        Ok(File::options().create(true).append(true).open(self.file(&format!("{name}.log")))?)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The services, and their proxy at `at`.
pub(crate) struct Shop {
    pub(crate) at: String,
    url: String,
    running: BTreeMap<&'static str, Running>,
    addresses: BTreeMap<&'static str, String>,
    proxy: Option<Running>,
    folder: Folder,
    closed: bool,
    _alone: MutexGuard<'static, ()>,
}

impl Shop {
    /// Starts all, on empty queues and databases.
    pub(crate) fn open(url: &str) -> Outcome<Self> {
        let alone = alone(url);
        clean(url)?;
        let folder = Folder::new()?;
        let (mut running, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for name in SERVICES {
            let service = service(name, url, "127.0.0.1:0", &folder)?;
            let at = service.line()?;
            running.insert(name, service);
            addresses.insert(name, at);
        }
        let mut proxy = program(
            &["proxy"],
            &[
                ("ORDERS", &addresses["orders"]),
                ("PAYMENTS", &addresses["payments"]),
                ("NOTIFICATIONS", &addresses["notifications"]),
            ],
        );
        proxy.stderr(folder.log("proxy")?);
        let proxy = Running::start(proxy)?;
        let at = proxy.line()?;
        Ok(Self {
            at,
            url: url.to_owned(),
            running,
            addresses,
            proxy: Some(proxy),
            folder,
            closed: false,
            _alone: alone,
        })
    }

    /// A service, to be ended: dropped, it is killed.
    pub(crate) fn take(&mut self, name: &str) -> Outcome<Running> {
        self.running.remove(name).ok_or_else(|| format!("{name} does not run").into())
    }

    /// Starts a service again, on the same database and at the same address.
    pub(crate) fn start(&mut self, name: &'static str) -> Outcome {
        let url = self.url.clone();
        self.start_with(name, &url)
    }

    /// As `start`, with another way to the broker.
    pub(crate) fn start_with(&mut self, name: &'static str, url: &str) -> Outcome {
        let address = self.addresses[name].trim_start_matches("http://");
        let service = service(name, url, address, &self.folder)?;
        assert_eq!(service.line()?, self.addresses[name]);
        self.running.insert(name, service);
        Ok(())
    }

    /// Where a service is, without the proxy.
    pub(crate) fn address(&self, name: &str) -> &str {
        &self.addresses[name]
    }

    /// What a service has said of what went wrong.
    pub(crate) fn said(&self, name: &str) -> Outcome<String> {
        Ok(std::fs::read_to_string(self.folder.file(&format!("{name}.log")))?)
    }

    /// Asks for an order.
    pub(crate) async fn place(&self, key: &str, order: &Value) -> Outcome<(StatusCode, Value)> {
        let request = Request::post(format!("{}/orders", self.at)).header("content-type", "application/json");
        let request = request.header("idempotency-key", key).body(order.to_string().into())?;
        let (status, body) = ask(request).await?;
        let body = serde_json::from_str(&body).map_err(|error| format!("{status} {body}: {error}"))?;
        Ok((status, body))
    }

    /// What a path shows, which has to be there.
    pub(crate) async fn show(&self, path: &str) -> Outcome<Value> {
        let (status, body) = get(format!("{}{path}", self.at)).await?;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// The database of a service.
    pub(crate) async fn database(&self, name: &str) -> Outcome<SqliteConnection> {
        let options = SqliteConnectOptions::new().filename(self.folder.file(name)).busy_timeout(PATIENCE);
        Ok(SqliteConnection::connect_with(&options).await?)
    }

    /// A figure out of the database of a service.
    pub(crate) async fn count(&self, name: &str, what: &str) -> Outcome<i64> {
        let count = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {what}")));
        Ok(count.fetch_one(&mut self.database(name).await?).await?)
    }

    /// Waits until so many orders have been decided, paid or declined, and told of.
    pub(crate) async fn settled(&self, orders: i64) -> Outcome {
        until("all orders are told of", async || Ok(self.count("notifications", "notices").await? >= orders)).await
    }

    /// Each order has its decision, one payment and one notice.
    pub(crate) async fn is_exact(&self, order: &Value) -> Outcome {
        let id = order["id"].as_str().ok_or("no id")?;
        let status = if order["amount"].as_i64() > Some(100_000) { "declined" } else { "paid" };
        let mut decided = order.clone();
        decided["status"] = status.into();
        assert_eq!(self.show(&format!("/orders/{id}")).await?, decided);
        let payment =
            json!({ "order": id, "customer": order["customer"], "amount": order["amount"], "decision": status });
        assert_eq!(self.show(&format!("/payments/{id}")).await?, payment);
        let text = format!("your order of {} is {status}", order["item"].as_str().ok_or("no item")?);
        let notice = json!({ "order": id, "customer": order["customer"], "text": text });
        assert_eq!(self.show(&format!("/notifications?order={id}")).await?, json!([notice]));
        Ok(())
    }

    /// Ends all in good order. Everything was consumed then, once, and so many messages of each queue are dead letters.
    pub(crate) fn close(mut self, orders: i64, dead: u64) -> Outcome {
        block_on(async {
            let client = anyqueue::connect(&self.url).await?;
            for queue in QUEUES {
                until(&format!("{queue} is empty"), async || Ok(waiting(&client, queue).await? == 0)).await?;
            }
            client.close(Duration::from_secs(5)).await;
            Ok(())
        })?;
        for name in SERVICES {
            self.take(name)?.interrupt()?;
        }
        block_on(async {
            let client = anyqueue::connect(&self.url).await?;
            for queue in QUEUES {
                // Nothing came back from handlers that had not ended.
                assert_eq!(waiting(&client, queue).await?, 0, "{queue}");
                assert_eq!(waiting(&client, &format!("{queue}-dlq")).await?, dead, "dead letters of {queue}");
            }
            client.close(Duration::from_secs(5)).await;
            for (name, what) in
                [("orders", "orders WHERE status != 'pending'"), ("payments", "payments"), ("notifications", "notices")]
            {
                assert_eq!(self.count(name, what).await?, orders, "{what}");
                assert_eq!(self.count(name, "outbox").await?, 0, "outbox of {name}");
            }
            Ok(())
        })?;
        self.proxy.take().ok_or("no proxy")?.interrupt()?;
        self.closed = true;
        clean(&self.url)
    }
}

impl Drop for Shop {
    /// Tells what the services said, if that is of use to anybody.
    fn drop(&mut self) {
        for name in SERVICES.into_iter().chain(["proxy"]).filter(|_| !self.closed) {
            let said = self.said(name).unwrap_or_default();
            let last = said.lines().rev().take(20).collect::<Vec<_>>();
            last.iter().rev().for_each(|line| eprintln!("{name}: {line}"));
        }
    }
}

fn service(name: &'static str, url: &str, listen: &str, folder: &Folder) -> Outcome<Running> {
    let database = folder.file(name);
    let mut command = program(&[name], &[("QUEUE_URL", url), ("LISTEN", listen), ("DATABASE", &database)]);
    command.stderr(folder.log(name)?);
    Running::start(command)
}

/// The cases of one broker have its queues one after the other.
pub(crate) fn alone(url: &str) -> MutexGuard<'static, ()> {
    static BROKERS: Mutex<BTreeMap<String, &'static Mutex<()>>> = Mutex::new(BTreeMap::new());
    let mut brokers = BROKERS.lock().unwrap_or_else(PoisonError::into_inner);
    let broker: &'static Mutex<()> = brokers.entry(url.to_owned()).or_insert_with(|| Box::leak(Box::default()));
    drop(brokers);
    broker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Messages that wait in a queue, or are with somebody.
pub(crate) async fn waiting(client: &Client, queue: &str) -> Outcome<u64> {
    match client.stats(&Source::new(queue.parse()?)).await {
        Ok(stats) => {
            let ready = stats.ready.or(stats.lag).ok_or_else(|| format!("nothing is told of {queue}"))?;
            Ok(ready + stats.in_flight.unwrap_or(0))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Deletes what a shop leaves at a broker.
pub(crate) fn clean(url: &str) -> Outcome {
    block_on(async {
        let client = anyqueue::connect(url).await?;
        for queue in QUEUES {
            client.delete(queue).await?;
            client.delete(&*format!("{queue}-dlq")).await?;
        }
        client.close(Duration::from_secs(5)).await;
        Ok(())
    })
}

/// Waits for something.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Outcome<bool>) -> Outcome {
    let begun = Instant::now();
    while !is_so().await? {
        if begun.elapsed() > PATIENCE {
            return Err(format!("in vain: {what}").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

//! The example of a service: its health and its metrics, and the dashboard over them.
//!
//! Needs a RabbitMQ (`ANYQUEUE_TEST_AMQP_URL`), whose connection is cut; without one that is reported as ignored.

#[path = "../examples/service.rs"]
mod service;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use axum::http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::Value;
use service::Outcome;
use support::proxy::Proxy;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(240);

/// A line of what the endpoint says.
struct Series {
    name: String,
    labels: Vec<(String, String)>,
}

impl Series {
    fn read(line: &str) -> Option<Self> {
        let line = line.split('#').next().filter(|line| !line.is_empty())?;
        let (name, rest) = line.split_once(['{', ' '])?;
        let labels = rest.split_once('}').map(|(labels, _)| labels).unwrap_or_default();
        Some(Self { name: name.to_owned(), labels: matchers(labels).into_iter().map(|(n, _, v)| (n, v)).collect() })
    }

    /// What a label says; one that is absent says nothing, as in Prometheus.
    fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// Label, whether it has to differ, and value.
type Matchers = Vec<(String, bool, String)>;

fn matchers(list: &str) -> Matchers {
    let read = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let differs = name.ends_with('!');
        Some((name.trim_end_matches('!').trim().to_owned(), differs, value.trim_matches('"').to_owned()))
    };
    list.split("\",").filter_map(read).collect()
}

/// The series that an expression selects: names with their matchers, and the labels that it groups by.
struct Query {
    selects: Vec<(String, Matchers)>,
    by: Vec<String>,
}

impl Query {
    fn read(expression: &str) -> Self {
        let (mut selects, mut by, mut rest) = (Vec::new(), Vec::new(), expression);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
            rest = &rest[start..];
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            let after = after.trim_start();
            rest = after;
            if name == "by" {
                let (labels, behind) = after.trim_start_matches('(').split_once(')').unwrap_or_default();
                by.extend(labels.split(',').map(|label| label.trim().to_owned()));
                rest = behind;
            } else if let Some(selector) = after.strip_prefix('{') {
                let (list, behind) = selector.split_once('}').unwrap_or_default();
                selects.push((name.to_owned(), matchers(list)));
                rest = behind;
            } else if !after.starts_with('(') && !after.starts_with("by") {
                selects.push((name.to_owned(), Vec::new()));
            }
            // A window, such as `[5m]`, is no name.
            if let Some(window) = rest.strip_prefix('[') {
                rest = window.split_once(']').map_or("", |(_, behind)| behind);
            }
        }
        Self { selects, by }
    }

    /// Why it shows nothing.
    fn lacks(&self, series: &[Series]) -> Option<String> {
        let lacking = |(name, wanted): &(String, Matchers)| {
            let fits = |one: &&Series| {
                one.name == *name && wanted.iter().all(|(l, differs, value)| (one.label(l) != value) == *differs)
            };
            match series.iter().find(fits) {
                None => Some(format!("no series {name} {wanted:?}")),
                Some(one) => {
                    let lacks = self.by.iter().find(|label| one.label(label).is_empty())?;
                    Some(format!("{name} has no label {lacks}"))
                }
            }
        };
        self.selects.iter().find_map(lacking)
    }
}

fn a_query_is_read_as_prometheus_reads_it() {
    let query = Query::read(r#"histogram_quantile(0.95, sum by (le, a_b) (rate(x_bucket{k="v", e!=""}[$__rate])))"#);
    let wanted = vec![("k".to_owned(), false, "v".to_owned()), ("e".to_owned(), true, String::new())];
    assert_eq!(query.selects, [("x_bucket".to_owned(), wanted)]);
    assert_eq!(query.by, ["le", "a_b"]);
    let series = |line| [Series::read(line).unwrap()];
    assert_eq!(query.lacks(&series(r#"x_bucket{k="v",e="1",le="2",a_b="c"} 1"#)), None);
    assert!(query.lacks(&series(r#"x_bucket{k="v",le="2",a_b="c"} 1"#)).is_some());
    assert!(query.lacks(&series(r#"x_bucket{k="v",e="1",le="2"} 1"#)).is_some());
    assert!(query.lacks(&series(r#"x_sum{k="v",e="1",le="2",a_b="c"} 1"#)).is_some());
}

async fn ask(method: Method, address: SocketAddr, path: &str, body: &str) -> Outcome<(StatusCode, String)> {
    let client = HttpClient::builder(TokioExecutor::new()).build_http();
    let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    let answer = client.request(request.body(Full::new(bytes::Bytes::from(body.to_owned())))?).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// Waits until the path answers so.
async fn until(address: SocketAddr, path: &str, so: impl Fn(StatusCode, &str) -> bool) -> Outcome {
    let began = Instant::now();
    loop {
        let (status, text) = ask(Method::GET, address, path, "").await?;
        if so(status, &text) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{path} answers {status}: {text}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// That it answers with this status.
fn is(wanted: StatusCode) -> impl Fn(StatusCode, &str) -> bool {
    move |status, _| status == wanted
}

/// The broker behind a link that can be cut, or why there is none.
fn upstream() -> Result<SocketAddr, String> {
    let variable = "ANYQUEUE_TEST_AMQP_URL";
    let url = std::env::var(variable).map_err(|_| format!("set {variable} to the URL of a RabbitMQ"))?;
    let host = url.rsplit('@').next().unwrap_or(&url).split(['/', '?']).next().unwrap_or_default().to_owned();
    host.parse().map_err(|error| format!("{variable}: {host}: {error}"))
}

fn main() -> ExitCode {
    let read = Trial::test("a_query_is_read_as_prometheus_reads_it", || {
        a_query_is_read_as_prometheus_reads_it();
        Ok(())
    });
    let name = "every_panel_of_the_dashboard_shows_data_and_health_follows_the_broker";
    let observed = Trial::ignorable_test(name, || match upstream() {
        Ok(upstream) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome = runtime.block_on(observed(upstream));
            outcome.map(|()| Completion::Completed).map_err(|error| Failed::from(error.to_string()))
        }
        Err(why) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => Err(Failed::from(why)),
        Err(why) => Ok(Completion::ignored_with(why)),
    });
    libtest_mimic::run(&Arguments::from_args(), vec![read, observed]).exit_code()
}

async fn observed(upstream: SocketAddr) -> Outcome {
    let link = Proxy::to(upstream).await;
    let url = format!("amqp://guest:guest@127.0.0.1:{}?deadline=2s", link.port());
    let queue = format!("service-{:x}", fastrand::u32(..));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (end, ended) = oneshot::channel::<()>();
    let running = {
        let queue = queue.clone();
        let until = async move { drop(ended.await) };
        tokio::spawn(async move { service::run(&url, &queue, listener, until).await })
    };
    until(address, "/health/ready", is(StatusCode::OK)).await?;
    until(address, "/health/live", is(StatusCode::OK)).await?;
    // One that takes a while, one that is tried again, one that is given up.
    for order in ["5", "13", "no number"] {
        assert_eq!(ask(Method::POST, address, "/orders", order).await?.0, StatusCode::ACCEPTED);
    }
    // A message that is lost with its connection is no retry.
    until(address, "/metrics", |_, text| text.contains("anyqueue_retries_total{")).await?;
    link.cut();
    until(address, "/health/ready", is(StatusCode::SERVICE_UNAVAILABLE)).await?;
    until(address, "/health/live", is(StatusCode::OK)).await?;
    assert_eq!(ask(Method::POST, address, "/orders", "1").await?.0, StatusCode::BAD_GATEWAY);
    link.mend();
    until(address, "/health/ready", is(StatusCode::OK)).await?;

    let dashboard: Value = serde_json::from_str(include_str!("../docs/grafana.json"))?;
    let panels = dashboard["panels"].as_array().ok_or("no panels")?;
    assert_eq!(panels.len(), 12);
    let began = Instant::now();
    loop {
        let (status, text) = ask(Method::GET, address, "/metrics", "").await?;
        assert_eq!(status, StatusCode::OK);
        let series: Vec<_> = text.lines().filter_map(Series::read).collect();
        let mut empty = Vec::new();
        for panel in panels {
            let expression = panel["targets"][0]["expr"].as_str().ok_or("a panel without a query")?;
            let query = Query::read(expression);
            assert!(!query.selects.is_empty(), "{expression}");
            empty.extend(query.lacks(&series).map(|why| format!("{}: {why}", panel["title"])));
        }
        // The connection came back.
        if !text.lines().any(|line| line.starts_with("anyqueue_reconnects_total{") && !line.ends_with(" 0")) {
            empty.push("no reconnect is counted".to_owned());
        }
        if empty.is_empty() {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{empty:?} of\n{text}").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let _ = end.send(());
    running.await??;
    let client = anyqueue::connect(&std::env::var("ANYQUEUE_TEST_AMQP_URL")?).await?;
    client.delete(queue.as_str()).await?;
    client.delete(format!("{queue}-dlq").as_str()).await?;
    Ok(())
}

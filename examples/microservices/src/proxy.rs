//! The proxy in front: hands each request to the service that its path names, and the answer back, both as they come.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use anyqueue::worker::signal;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::rest::{MOST, Wrong};
use crate::{Outcome, settings};

/// What is between two neighbours, and not passed on.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How long a service that is there takes to be reached.
const REACHED: Duration = Duration::from_secs(5);
/// How long requests have to end, once the proxy is to.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Proxy {
    client: Client<HttpConnector, Body>,
    /// The first part of a path, and whose it is.
    services: [(&'static str, Uri); 3],
    timeout: Duration,
}

pub(crate) async fn run() -> Outcome {
    let listen = settings::listen("127.0.0.1:8080")?;
    let services = [
        ("orders", settings::base("ORDERS", "http://127.0.0.1:8081")?),
        ("payments", settings::base("PAYMENTS", "http://127.0.0.1:8082")?),
        ("notifications", settings::base("NOTIFICATIONS", "http://127.0.0.1:8083")?),
    ];
    let timeout = settings::timeout()?;
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(REACHED));
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let routes = Router::new().fallback(pass).with_state(Proxy { client, services, timeout });
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    let listener =
        TcpListener::bind(listen).await.map_err(|error| format!("{listen} cannot be listened at: {error}"))?;
    println!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(signal()) => served?,
        // A request that never ends holds up nothing.
        () = async { signal().await; sleep(GRACE).await } => {}
    }
    Ok(())
}

async fn pass(
    State(proxy): State<Proxy>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    mut request: Request,
) -> Result<Response, Wrong> {
    let first = request.uri().path().split('/').nth(1).unwrap_or_default();
    let Some((name, base)) = proxy.services.iter().find(|(name, _)| *name == first) else {
        return Err(Wrong(StatusCode::NOT_FOUND, "there is nothing here".to_owned()));
    };
    // Told here: a service that stops reading hangs up, and its answer may be lost with the connection.
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MOST as u64) {
        return Err(too_long());
    }
    *request.uri_mut() = at(base, request.uri().path_and_query());
    *request.version_mut() = Version::HTTP_11;
    drop_hop_by_hop(request.headers_mut());
    // The service's own comes in its place.
    request.headers_mut().remove(header::HOST);
    let forwarded_for = forwarded_for(request.headers(), from);
    request.headers_mut().insert(FORWARDED_FOR, forwarded_for);
    let request = request.map(|body| Body::new(Limited::new(body, MOST)));
    match timeout(proxy.timeout, proxy.client.request(request)).await {
        Ok(Ok(mut answer)) => {
            drop_hop_by_hop(answer.headers_mut());
            Ok(answer.into_response())
        }
        Ok(Err(error)) => {
            let causes = std::iter::successors(Some(&error as &(dyn Error + 'static)), |&cause| cause.source());
            if causes.clone().any(|cause| cause.is::<LengthLimitError>()) {
                return Err(too_long());
            }
            eprintln!("{name}: {}", causes.map(ToString::to_string).collect::<Vec<_>>().join(": "));
            Err(Wrong(StatusCode::BAD_GATEWAY, format!("the service {name} is away")))
        }
        Err(_) => Err(Wrong(StatusCode::GATEWAY_TIMEOUT, format!("the service {name} did not answer in time"))),
    }
}

fn too_long() -> Wrong {
    Wrong(StatusCode::PAYLOAD_TOO_LARGE, format!("length limit exceeded: a body has at most {MOST} bytes"))
}

/// This path at a service.
fn at(base: &Uri, path: Option<&PathAndQuery>) -> Uri {
    let mut parts = base.clone().into_parts();
    parts.path_and_query = path.cloned().or(parts.path_and_query);
    // Of valid parts, all of which are there.
    Uri::from_parts(parts).unwrap_or_else(|_| base.clone())
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).collect();
    let named: Vec<HeaderName> = named.join(",").split(',').filter_map(|name| name.trim().parse().ok()).collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The clients that a request came through so far, and this one.
fn forwarded_for(headers: &HeaderMap, from: SocketAddr) -> HeaderValue {
    let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok().map(str::to_owned));
    let all: Vec<_> = before.chain([from.ip().to_string()]).collect();
    HeaderValue::try_from(all.join(", ")).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

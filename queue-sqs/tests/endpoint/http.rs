//! HTTP: requests to actions, answers to JSON, and the faults that befall whole requests.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::account::Account;
use super::actions::{self, topics, topics::Form};
use super::counts::is_about_messages;
use super::refusal::Refusal;

/// The connection is closed instead of an answer.
#[derive(Debug)]
struct HungUp;

impl std::fmt::Display for HungUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is lost")
    }
}

impl std::error::Error for HungUp {}

/// Takes connections until it is aborted; they end with it.
pub async fn serve(listener: TcpListener, account: Arc<Account>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        // Answers are small and awaited.
        let _ = socket.set_nodelay(true);
        let account = account.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(account.clone(), request));
            // A client that goes away in the middle is no concern of the endpoint.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(account: Arc<Account>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, HungUp> {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let target = target.and_then(|target| target.strip_prefix("AmazonSQS.")).map(str::to_owned);
    let body = request.into_body().collect().await.map_err(|_| HungUp)?.to_bytes();
    // SQS says its action in the head, SNS in the form that is the body.
    let form: Option<Form> = target.is_none().then(|| form_urlencoded::parse(&body).into_owned().collect());
    let action = target.or_else(|| form.as_ref()?.get("Action").cloned()).unwrap_or_default();
    let refused = |refusal: &Refusal| match form {
        Some(_) => xml(refusal.status, topics::refusal(refusal)),
        None => refused(refusal),
    };
    account.count(&action);
    let about_messages = is_about_messages(&action);
    if about_messages && account.state().dice.throttles() {
        return Ok(refused(&Refusal::throttled()));
    }
    let outcome = match (&form, serde_json::from_slice::<Value>(&body)) {
        (Some(form), _) => topics::act(&account, &action, form).map(|answer| xml(200, answer)),
        (None, Ok(request)) => {
            actions::act(&account, &action, request).await.map(|answer| response(200, None, &answer))
        }
        (None, Err(_)) => Err(Refusal::new("SerializationException", "The request is no JSON.")),
    };
    let (delay, lost) = {
        let dice = &mut account.state().dice;
        if about_messages { (dice.delay(), dice.loses()) } else { (None, None) }
    };
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    match (lost, outcome) {
        (Some(true), _) => Err(HungUp),
        (Some(false), _) => Ok(refused(&Refusal::failed())),
        (None, Ok(answer)) => Ok(answer),
        (None, Err(refusal)) => Ok(refused(&refusal)),
    }
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let who = if refusal.sender_fault { "Sender" } else { "Receiver" };
    response(refusal.status, Some(format!("{};{who}", refusal.code())), &refusal.body())
}

fn xml(status: u16, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/xml"));
    response
}

fn response(status: u16, code: Option<String>, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/x-amz-json-1.0"));
    if let Some(code) = code.and_then(|code| code.parse().ok()) {
        headers.insert("x-amzn-query-error", code);
    }
    response
}

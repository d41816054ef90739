//! One request, one answer.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use crate::Outcome;

/// More than an answer takes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn get(url: String) -> Outcome<(StatusCode, String)> {
    ask(Request::get(url).body(Full::default())?).await
}

pub(crate) async fn post(url: String, content_type: &str, body: impl Into<Bytes>) -> Outcome<(StatusCode, String)> {
    let request = Request::post(url);
    let request = if content_type.is_empty() { request } else { request.header("content-type", content_type) };
    ask(request.body(Full::new(body.into()))?).await
}

pub(crate) async fn head(url: String) -> Outcome<(StatusCode, String)> {
    ask(Request::head(url).body(Full::default())?).await
}

pub(crate) async fn ask(request: Request<Full<Bytes>>) -> Outcome<(StatusCode, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answered = async {
        let answer = client.request(request).await?;
        let status = answer.status();
        Outcome::Ok((status, String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?))
    };
    timeout(PATIENCE, answered).await?
}

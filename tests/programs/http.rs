//! What a browser asks.

mod asking;

use axum::body::Bytes;
use axum::http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

pub(crate) use self::asking::{get, head, post};
use crate::Outcome;

/// The first lines of an answer that goes on, until one contains this.
pub(crate) async fn listen(url: String, until: &str) -> Outcome<String> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut answer = client.request(Request::get(url).body(Full::<Bytes>::default())?).await?;
    let mut text = String::new();
    while let Some(frame) = answer.frame().await {
        text.push_str(&String::from_utf8_lossy(frame?.data_ref().map_or(&[][..], |data| data)));
        if text.contains(until) {
            return Ok(text);
        }
    }
    Err(format!("it ended: {text}").into())
}

//! What the REST interfaces share: errors as JSON, `{"error": "…"}`, with their status, and checks of what was asked.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

/// Bytes of a request's body.
pub(crate) const MOST: usize = 16 * 1024;
/// The longest text that a request may contain.
const LONGEST: usize = 100;

pub(crate) struct Wrong(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<JsonRejection> for Wrong {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Wrong {
    fn from(rejection: QueryRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Wrong {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

/// The caller may try again, and is told nothing of what is inside.
impl From<sqlx::Error> for Wrong {
    fn from(error: sqlx::Error) -> Self {
        eprintln!("the database: {error}");
        Self(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer".to_owned())
    }
}

/// The id of an order in a path, as it is stored.
pub(crate) fn id(path: Result<Path<String>, PathRejection>) -> Result<String, Wrong> {
    let Path(text) = path?;
    checked_id(&text)
}

/// The id of an order, as it is stored.
pub(crate) fn checked_id(text: &str) -> Result<String, Wrong> {
    let id =
        Uuid::try_parse(text).map_err(|_| Wrong(StatusCode::BAD_REQUEST, "the id of an order is a UUID".to_owned()))?;
    Ok(id.to_string())
}

/// Whether this is a text that can be kept and shown.
pub(crate) fn is_text(text: &str) -> bool {
    let has_length = !text.trim().is_empty() && text.chars().count() <= LONGEST;
    has_length && !text.chars().any(char::is_control)
}

/// How many a list may have.
pub(crate) fn limit(asked: Option<u32>) -> Result<u32, Wrong> {
    let limit = asked.unwrap_or(100);
    let wrong = || Wrong(StatusCode::BAD_REQUEST, "limit is a number from 1 to 1000".to_owned());
    (1..=1000).contains(&limit).then_some(limit).ok_or_else(wrong)
}

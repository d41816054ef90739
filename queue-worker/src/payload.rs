//! What handlers take out of a message.

use queue_core::Message;

#[cfg(feature = "json")]
use crate::codec;
use crate::failure::Failure;
use crate::job::Job;

/// What a handler can take instead of the [`Job`]: implement it for types of your own.
///
/// ```
/// use queue_worker::{Failure, FromJob, Job, OrFail};
///
/// /// The tenant that a message belongs to.
/// struct Tenant(String);
///
/// impl FromJob for Tenant {
///     fn from_job(job: &Job) -> Result<Self, Failure> {
///         let tenant = job.headers().get("tenant").and_then(|value| value.as_str());
///         tenant.map(|tenant| Self(tenant.to_owned())).ok_or("a message without a tenant").or_permanent()
///     }
/// }
/// ```
pub trait FromJob: Sized {
    /// Takes it out of the message.
    ///
    /// # Errors
    /// What the message lacks. Mostly that is permanent: it will not have it in the next attempt either.
    fn from_job(job: &Job) -> Result<Self, Failure>;
}

impl FromJob for Message {
    fn from_job(job: &Job) -> Result<Self, Failure> {
        Ok(job.message().clone())
    }
}

/// The payload, as it is: a `String` must be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload<T>(pub T);

impl FromJob for Payload<String> {
    fn from_job(job: &Job) -> Result<Self, Failure> {
        match job.text() {
            Some(text) => Ok(Self(text.to_owned())),
            None => Err(Failure::permanent("the payload is no UTF-8 text")),
        }
    }
}

impl FromJob for Payload<Vec<u8>> {
    fn from_job(job: &Job) -> Result<Self, Failure> {
        Ok(Self(job.payload().to_vec()))
    }
}

/// The payload, read as JSON. A message that says it is something else, or that cannot be read, is a dead letter with the
/// decoder's error.
#[cfg(feature = "json")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

#[cfg(feature = "json")]
impl<T: serde::de::DeserializeOwned> FromJob for Json<T> {
    fn from_job(job: &Job) -> Result<Self, Failure> {
        <codec::Json as codec::Decode<T>>::value(job.message()).map(Self).map_err(Failure::permanent)
    }
}

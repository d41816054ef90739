//! Logins with an identity of AWS. The token is a request that is signed and never sent: who gets it can ask AWS whose it
//! is.
//!
//! It is signed by AWS's own `aws-sigv4`, which comes with `aws-config`. The public crate for the purpose,
//! `aws-msk-iam-sasl-signer` 1.0, does not tell when the credentials end that it signed with, turns on
//! `behavior-version-latest` for every user of the SDK in a program, and brings crates that are not needed otherwise.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use queue_core::{Error, ErrorKind, Result, Token, TokenProvider};
use tracing::subscriber::{NoSubscriber, with_default};

use crate::error;

/// How long a broker takes a token: the most that it allows, as in AWS's own signers.
const LIFE: Duration = Duration::from_secs(900);
/// What is asked for, of which service.
const ACTION: &str = "kafka-cluster%3AConnect";
const SERVICE: &str = "kafka-cluster";
/// Shows in the broker's logs.
const USER_AGENT: &str = concat!("anyqueue/", env!("CARGO_PKG_VERSION"));

/// Tokens for Amazon MSK, signed with an identity of AWS: what `auth=aws-iam` logs in with.
///
/// For a configuration of the program's own, such as a role that it takes on, give one to
/// [`KafkaBroker::connect_with_tokens`](crate::KafkaBroker::connect_with_tokens), with a URL that starts with
/// `kafkas://`. One serves any number of brokers.
///
/// A token is good for 15 minutes, and no longer than the credentials behind it, which are asked for with each token. It
/// goes over TLS only.
pub struct MskIam(Identity);

enum Identity {
    /// Found anew for each token: files and environment may have changed, and a failure heals.
    Found {
        region: OnceLock<String>,
        profile: Option<String>,
    },
    Given(Signer),
}

impl fmt::Debug for MskIam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (region, profile) = match &self.0 {
            Identity::Found { region, profile } => (region.get(), profile.as_ref()),
            Identity::Given(signer) => (Some(&signer.region), None),
        };
        f.debug_struct("MskIam").field("region", &region).field("profile", &profile).finish_non_exhaustive()
    }
}

impl MskIam {
    /// Finds credentials as AWS's own programs do, and the region too; what is given comes first.
    pub(crate) fn new(region: Option<String>, profile: Option<String>) -> Self {
        Self(Identity::Found { region: region.map_or_else(OnceLock::new, OnceLock::from), profile })
    }

    /// Takes region and credentials from a configuration of the caller's own. Nothing is asked of the network.
    ///
    /// # Errors
    /// `InvalidConfig` where it has no region or no credentials.
    pub fn from_config(config: &SdkConfig) -> Result<Self> {
        Signer::new(config).map(|signer| Self(Identity::Given(signer)))
    }
}

/// Finds region and credentials; a region that is known is not asked for.
async fn find(region: Option<&String>, profile: Option<&String>) -> Result<Signer> {
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    if let Some(region) = region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = profile {
        loader = loader.profile_name(profile);
    }
    let mut config = loader.load().await;
    if let Some(profile) = profile {
        // Who names one means no other identity: the usual search looks into the environment first.
        let surroundings = ProviderConfig::without_region().with_region(config.region().cloned());
        let provider = ProfileFileCredentialsProvider::builder().configure(&surroundings).profile_name(profile).build();
        config = config.into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build();
    }
    Signer::new(&config)
}

#[async_trait]
impl TokenProvider for MskIam {
    async fn token(&self) -> Result<Token> {
        match &self.0 {
            Identity::Given(signer) => signer.token_now().await,
            Identity::Found { region, profile } => {
                let signer = find(region.get(), profile.as_ref()).await?;
                // The instance may have been asked.
                region.get_or_init(|| signer.region.clone());
                signer.token_now().await
            }
        }
    }

    /// It is a signed request: whoever overhears it can log in with it.
    fn needs_tls(&self) -> bool {
        true
    }
}

struct Signer {
    region: String,
    credentials: SharedCredentialsProvider,
}

impl Signer {
    fn new(config: &SdkConfig) -> Result<Self> {
        let Some(region) = config.region() else {
            return Err(invalid("no region: give `region` or set AWS_REGION"));
        };
        // It becomes part of a host.
        if region.as_ref().is_empty() || !region.as_ref().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(invalid("this is no region of AWS").with_context("region", region));
        }
        let Some(credentials) = config.credentials_provider() else {
            return Err(invalid("the configuration of AWS has no credentials"));
        };
        Ok(Self { region: region.to_string(), credentials })
    }

    async fn token_now(&self) -> Result<Token> {
        let credentials = self.credentials.provide_credentials().await.map_err(|e| error::of_credentials(&e))?;
        self.token(credentials, SystemTime::now())
    }

    /// Signs a token that is good from now on.
    fn token(&self, credentials: Credentials, now: SystemTime) -> Result<Token> {
        let life = match credentials.expiry() {
            Some(end) => end.duration_since(now).unwrap_or_default().min(LIFE),
            None => LIFE,
        };
        if life.is_zero() {
            return Err(
                Error::new(ErrorKind::Unauthorized, "the AWS credentials have expired").with_operation("connect")
            );
        }
        // No error of the signer: it may quote what it was given.
        let url = self.signed(credentials, now).ok_or_else(|| invalid("the AWS credentials cannot be signed with"))?;
        // The signature does not cover this.
        let url = format!("{url}&User-Agent={}", USER_AGENT.replace('/', "%2F"));
        Ok(Token::new(BASE64.encode(url)).valid_for(life))
    }

    fn signed(&self, credentials: Credentials, now: SystemTime) -> Option<String> {
        let url = format!("https://kafka.{}.amazonaws.com/?Action={ACTION}", self.region);
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(LIFE);
        let identity = credentials.into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(now)
            .settings(settings)
            .build()
            .ok()?;
        let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::empty()).ok()?;
        // The signer's log has the session token in it.
        let signed = with_default(NoSubscriber::default(), || sign(request, &params.into()));
        let (signature, _) = signed.ok()?.into_parts();
        let mut request = http::Request::get(url).body(()).ok()?;
        signature.apply_to_request_http1x(&mut request);
        Some(request.uri().to_string())
    }
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("configure")
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::error::CredentialsError;

    use super::*;

    const SECRET: &str = "hunter2-secret";
    const SESSION: &str = "hunter2-session+/=";

    fn config(region: &'static str, credentials: Credentials) -> SdkConfig {
        let credentials = SharedCredentialsProvider::new(credentials);
        SdkConfig::builder().region(Region::new(region)).credentials_provider(credentials).build()
    }

    /// Credentials that end so many seconds from now.
    fn credentials(end: Option<u64>) -> Credentials {
        let end = end.map(|secs| SystemTime::now() + Duration::from_secs(secs));
        Credentials::new("AKIDTEST", SECRET, Some(SESSION.to_owned()), end, "test")
    }

    #[tokio::test]
    async fn a_token_is_a_signed_request() {
        let iam = MskIam::from_config(&config("eu-west-1", credentials(None))).unwrap();
        let token = iam.token().await.unwrap();
        let url = String::from_utf8(BASE64.decode(token.secret().expose()).unwrap()).unwrap();
        let (host, query) = url.split_once("/?").unwrap();
        assert_eq!(host, "https://kafka.eu-west-1.amazonaws.com");
        let params: Vec<_> = query.split('&').map(|param| param.split_once('=').unwrap()).collect();
        for (name, value) in [
            ("Action", "kafka-cluster%3AConnect"),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Expires", "900"),
            ("X-Amz-SignedHeaders", "host"),
            ("X-Amz-Security-Token", "hunter2-session%2B%2F%3D"),
            ("User-Agent", concat!("anyqueue%2F", env!("CARGO_PKG_VERSION"))),
        ] {
            assert!(params.contains(&(name, value)), "{name}: {url}");
        }
        assert!(!url.contains(SECRET) && !format!("{iam:?}").contains("hunter2"), "{iam:?}");
    }

    #[tokio::test]
    async fn a_token_is_renewed_before_it_or_its_credentials_end() {
        let renewed = async |end| {
            let iam = MskIam::from_config(&config("eu-west-1", credentials(end))).unwrap();
            iam.token().await.unwrap().renew_in().unwrap().as_secs_f64()
        };
        assert_eq!(renewed(None).await, 675.0);
        assert_eq!(renewed(Some(86_400)).await, 675.0);
        let soon = renewed(Some(400)).await;
        assert!((290.0..=300.0).contains(&soon), "{soon}");
        let iam = MskIam::from_config(&config("eu-west-1", credentials(Some(0)))).unwrap();
        let error = iam.token().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
        assert!(error.message().contains("expired"), "{error}");
    }

    #[test]
    fn what_cannot_be_signed_with_is_refused() {
        for region in ["", "eu west", "eu-west-1.example.com/", "eu-west-1?"] {
            let error = MskIam::from_config(&config(region, credentials(None))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{region}");
        }
        for (config, says) in [
            (SdkConfig::builder().build(), "AWS_REGION"),
            (SdkConfig::builder().region(Region::new("eu-west-1")).build(), "no credentials"),
        ] {
            let error = MskIam::from_config(&config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.message().contains(says), "{error}");
        }
    }

    /// What a service of AWS says of itself.
    #[test]
    fn a_refusal_of_aws_is_not_tried_again() {
        for (says, kind) in [
            ("unhandled error (AccessDenied)", ErrorKind::Unauthorized),
            ("unhandled error (InvalidClientTokenId)", ErrorKind::Unauthorized),
            ("ExpiredTokenException", ErrorKind::Unauthorized),
            ("unhandled error (Throttling)", ErrorKind::Connection),
        ] {
            let error = CredentialsError::provider_error(std::io::Error::other(says));
            let error = error::of_credentials(&error);
            assert_eq!((error.kind(), error.is_retryable()), (kind, kind == ErrorKind::Connection), "{says}");
        }
    }

    #[test]
    fn an_error_of_credentials_hides_what_was_answered() {
        #[derive(Debug)]
        struct Answer(#[allow(dead_code)] &'static str);

        impl fmt::Display for Answer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the answer is no JSON")
            }
        }

        impl std::error::Error for Answer {}

        for (error, kind) in [
            (CredentialsError::not_loaded(Answer(SECRET)), ErrorKind::Unauthorized),
            (CredentialsError::invalid_configuration(Answer(SECRET)), ErrorKind::InvalidConfig),
            (CredentialsError::provider_error(Answer(SECRET)), ErrorKind::Connection),
            (CredentialsError::unhandled(Answer(SECRET)), ErrorKind::Connection),
        ] {
            let error = error::of_credentials(&error);
            assert_eq!((error.kind(), error.context("cause")), (kind, Some("the answer is no JSON")));
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let error = error::of_credentials(&CredentialsError::not_loaded("tried:\n  this\n  that"));
        assert_eq!(error.context("cause"), Some("tried: this that"));
        assert!(error.context("advice").is_some_and(|advice| advice.contains("AWS_ACCESS_KEY_ID")));
        let error = error::of_credentials(&CredentialsError::provider_timed_out(LIFE));
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }
}

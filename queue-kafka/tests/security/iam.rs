//! Identities of AWS. Who checks them is `AwsVerifier.java`, in the broker.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use queue_core::{Endpoint, Error, ErrorKind, EventKind, Events, Source};
use queue_kafka::{KafkaBroker, MskIam};
use tokio::time::{Instant, sleep};

use crate::common::*;
use crate::server::*;
use crate::tells;

/// Of temporary credentials: short, and long enough for a busy machine to renew them in a quarter of it.
const LIFE: Duration = Duration::from_secs(20);

/// Starts this program again where AWS's files are those of the tests, the known identity stands in the environment,
/// and no network is asked for one.
pub(crate) fn in_an_environment_of_its_own() {
    const MARK: &str = "AWS_EC2_METADATA_DISABLED";
    let files = [("AWS_CONFIG_FILE", "aws-config"), ("AWS_SHARED_CREDENTIALS_FILE", "aws-credentials")];
    if std::env::var_os(MARK).is_some() && files.iter().all(|(name, path)| std::env::var(name) == Ok(file(path))) {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.args(std::env::args_os().skip(1)).env(MARK, "true").envs(files.map(|(name, path)| (name, file(path))));
    panic!("{}", command.exec());
}

fn url(options: &str) -> String {
    format!("kafkas://localhost:{AWS_PORT}?auth=aws-iam&ca_file={}{options}", file("server-ca.pem"))
}

/// Makes a topic, which the client cannot do that logs in with a token.
async fn queue() -> queue_core::Address {
    Rig::at(&format!("kafka://localhost:{OPEN_PORT}"), 2).await.queue
}

async fn refused(url: &str) -> Error {
    let start = Instant::now();
    let error = connect_to(url).await.expect_err(url);
    println!("{error} after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(!tells(&format!("{error} {error:?}")), "{error:?}");
    error
}

pub(crate) async fn an_identity_of_aws_logs_in() {
    server();
    // By the environment, by a profile with its region, and by one whose region is another.
    for options in
        [format!("&region={REGION}"), "&profile=known".to_owned(), format!("&profile=elsewhere&region={REGION}")]
    {
        let rig = Rig { broker: connect_to(&url(&options)).await.unwrap(), queue: queue().await };
        rig.send(numbered(0..10)).await;
        let consumer = rig.consumer().await;
        let tokens: Vec<_> = receive(&*consumer, 10).await.iter().map(|r| r.token).collect();
        consumer.ack(&tokens);
        consumer.flush().await.unwrap();
        assert_eq!(rig.broker.stats(&Source::new(rig.queue.clone())).await.unwrap().lag, Some(0));
        assert!(!tells(&format!("{:?} {:?}", rig.broker, rig.broker.health())));
        assert_eq!(rig.broker.delete(&rig.queue).await.unwrap_err().kind(), ErrorKind::Unsupported);
        rig.end().await;
    }
}

pub(crate) async fn an_identity_that_aws_would_not_take_is_refused() {
    server();
    // Nor is the identity of the environment tried instead.
    for (profile, why) in [
        ("wrong", "the signature is not as it should be"),
        ("unknown", "an unknown identity"),
        ("no-session", "the session is missing"),
        ("elsewhere", "the address is not as it should be"),
    ] {
        let error = refused(&url(&format!("&profile={profile}"))).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
        assert!(!error.is_retryable());
        assert!(error.to_string().contains(why), "{error}");
    }
}

pub(crate) async fn without_region_or_credentials_of_aws_it_is_told_what_to_set() {
    server();
    for (options, kind, says) in [
        ("&profile=nowhere", ErrorKind::InvalidConfig, "AWS_REGION"),
        ("&profile=known&region=eu.west", ErrorKind::InvalidConfig, "eu.west"),
        ("&profile=missing&region=eu-west-1", ErrorKind::Unauthorized, "profile `missing` was not defined"),
    ] {
        let error = refused(&url(options)).await;
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

/// Gives credentials that end soon, as a token server does.
#[derive(Debug, Default, Clone)]
struct Temporary(Arc<AtomicUsize>);

impl ProvideCredentials for Temporary {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.0.fetch_add(1, Ordering::SeqCst);
        let end = SystemTime::now() + LIFE;
        let session = format!("{SESSION_START}{}", end.duration_since(UNIX_EPOCH).unwrap().as_millis());
        let credentials = Credentials::new(TEMPORARY_ACCESS_KEY, SECRET_KEY, Some(session), Some(end), "tests");
        future::ProvideCredentials::ready(Ok(credentials))
    }
}

pub(crate) async fn a_connection_outlives_its_first_credentials_of_aws() {
    server();
    let provider = Temporary::default();
    let credentials = SharedCredentialsProvider::new(provider.clone());
    let config = SdkConfig::builder().region(Region::new(REGION)).credentials_provider(credentials).build();
    let endpoint: Endpoint =
        format!("kafkas://localhost:{AWS_PORT}?ca_file={}", file("server-ca.pem")).parse().unwrap();
    let (iam, events) = (MskIam::from_config(&config).unwrap(), Events::new());
    let mut heard = events.listen();
    let broker = KafkaBroker::connect_with_tokens(&endpoint, events, Arc::new(iam)).await.unwrap();
    let rig = Rig { broker: Arc::new(broker), queue: queue().await };
    let (producer, consumer) = (rig.producer().await, rig.consumer().await);
    // The broker ends a session with its credentials.
    let end = Instant::now() + LIFE * 2;
    while Instant::now() < end {
        send(&*producer, numbered(0..5)).await;
        consumer.ack(&receive(&*consumer, 5).await.iter().map(|r| r.token).collect::<Vec<_>>());
        consumer.flush().await.unwrap();
        rig.broker.ping().await.unwrap();
        assert!(rig.broker.health().is_up(), "{:?}", rig.broker.health());
        sleep(Duration::from_millis(500)).await;
    }
    let asked = provider.0.load(Ordering::SeqCst);
    assert!((3..10).contains(&asked), "{asked}");
    let mut kinds = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, heard.next()).await {
        kinds.push(event.kind);
    }
    assert_eq!(kinds, [EventKind::Connected], "the connection was lost");
    rig.end().await;
}

//! A Kafka with TLS, certificates, passwords and tokens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Ports that the brokers of other tests do not use.
pub(crate) const OPEN_PORT: u16 = 9792;
const CONTROLLER_PORT: u16 = 9793;
pub(crate) const TLS_PORT: u16 = 9794;
/// The same for those with a certificate only.
pub(crate) const MUTUAL_PORT: u16 = 9795;
/// Passwords over TLS.
pub(crate) const LOGIN_TLS_PORT: u16 = 9796;
/// Passwords, in the open.
pub(crate) const LOGIN_PORT: u16 = 9797;
pub(crate) const TOKEN_PORT: u16 = 9798;
/// Passwords behind a proxy: the broker listens on the first, and names the second.
pub(crate) const HIDDEN_PORT: u16 = 9799;
pub(crate) const PROXY_PORT: u16 = 9800;
/// Identities of AWS, over TLS.
pub(crate) const AWS_PORT: u16 = 9801;

/// Of every user, and in no output.
pub(crate) const PASSWORD: &str = "correct-horse";
pub(crate) const WRONG_PASSWORD: &str = "hunter2-wrong";
/// How every token starts.
pub(crate) const TOKEN_START: &str = "eyJ";

/// The region in which the server is.
pub(crate) const REGION: &str = "eu-west-1";
/// An identity of AWS that the server knows, and one that is temporary.
pub(crate) const ACCESS_KEY: &str = "AKIDOFTHETESTS";
pub(crate) const TEMPORARY_ACCESS_KEY: &str = "ASIAOFTHETESTS";
/// Of both.
pub(crate) const SECRET_KEY: &str = "correct/battery+staple";
/// How every session token starts. It goes on with when it ends.
pub(crate) const SESSION_START: &str = "session/of+the=tests-";
pub(crate) const SESSION_START_IN_URL: &str = "session%2Fof%2Bthe%3Dtests-";
/// How every token starts that is a signed request.
pub(crate) const REQUEST_START: &str = "aHR0cHM6Ly";

/// A broker looks at a token again when it expires, or after this.
const MAX_SESSION_MS: u32 = 3_600_000;

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

/// A server that was started, and the authority that vouches for it.
pub(crate) struct Server {
    pub(crate) authority: Authority,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// Starts the server once.
pub(crate) fn server() -> &'static Server {
    SERVER.get_or_init(|| {
        brokers(&["down", "kafka"]);
        let authority = authority();
        store("server-ca.pem", &authority.pem());
        issue(&authority, "server", "localhost");
        // The broker wants key and certificate in one file.
        let both = ["server-key.pem", "server-cert.pem"].map(|name| std::fs::read_to_string(file(name)).unwrap());
        store("server.pem", &both.concat());
        issue(&authority, "client", "client.test");
        store("server.properties", &configuration());
        if cfg!(feature = "msk-iam") {
            store("AwsVerifier.java", include_str!("AwsVerifier.java"));
        } else {
            // Of a run before, which would be compiled all the same.
            let _ = std::fs::remove_file(file("AwsVerifier.java"));
        }
        store("aws-config", &profiles("profile "));
        store("aws-credentials", &profiles(""));
        brokers(&["up", "kafka"]);
        for sha in [256, 512] {
            set_password("alice", sha, PASSWORD);
        }
        Server { authority }
    })
}

/// Ends the server, also one that was started in vain.
pub(crate) fn down() {
    brokers(&["down", "kafka"]);
}

/// Makes or changes a user that proves a password without showing it, by SHA-256 or SHA-512.
pub(crate) fn set_password(user: &str, sha: u32, password: &str) {
    let server = format!("127.0.0.1:{OPEN_PORT}");
    let change = format!("SCRAM-SHA-{sha}=[iterations=4096,password={password}]");
    #[rustfmt::skip]
    brokers(&["tool", "kafka", "kafka.admin.ConfigCommand", "--bootstrap-server", &server, "--alter",
        "--entity-type", "users", "--entity-name", user, "--add-config", &change]);
}

fn brokers(arguments: &[&str]) {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/brokers"))
        .args(arguments)
        .env("ANYQUEUE_BROKERS_MODE", "native")
        .env("ANYQUEUE_KAFKA_PORT", OPEN_PORT.to_string())
        .env("ANYQUEUE_KAFKA_CONTROLLER_PORT", CONTROLLER_PORT.to_string())
        .env("ANYQUEUE_KAFKA_EXTRA", folder())
        .env("ANYQUEUE_BROKERS_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("kafka-security"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kafka-security-files")
}

/// Where a file of the tests is.
pub(crate) fn file(name: &str) -> String {
    folder().join(name).to_str().unwrap().to_owned()
}

/// Writes a file so that nobody ever reads half of it.
pub(crate) fn store(name: &str, text: &str) -> String {
    std::fs::create_dir_all(folder()).unwrap();
    let (path, new) = (file(name), file(&format!("{name}.new")));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, &path).unwrap();
    path
}

/// Makes an authority.
pub(crate) fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Makes `<file>-cert.pem` and `<file>-key.pem`: a certificate for the name of a host.
pub(crate) fn issue(authority: &Authority, file: &str, host: &str) {
    let mut params = CertificateParams::new([host.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, host);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    store(&format!("{file}-cert.pem"), &certificate.pem());
    store(&format!("{file}-key.pem"), &key.serialize_pem());
}

fn configuration() -> String {
    let listeners = [
        ("PLAINTEXT", "PLAINTEXT", OPEN_PORT),
        ("CONTROLLER", "PLAINTEXT", CONTROLLER_PORT),
        ("OVERTLS", "SSL", TLS_PORT),
        ("MUTUAL", "SSL", MUTUAL_PORT),
        ("LOGINTLS", "SASL_SSL", LOGIN_TLS_PORT),
        ("LOGIN", "SASL_PLAINTEXT", LOGIN_PORT),
        ("TOKEN", "SASL_PLAINTEXT", TOKEN_PORT),
        ("HIDDEN", "SASL_PLAINTEXT", HIDDEN_PORT),
        ("AWS", "SASL_SSL", AWS_PORT),
    ];
    // The last wants a class of the tests' own, and so a compiler.
    let listeners = &listeners[..listeners.len() - usize::from(!cfg!(feature = "msk-iam"))];
    let lists = [
        listeners.iter().map(|(name, _, port)| format!("{name}://127.0.0.1:{port}")).collect::<Vec<_>>(),
        // Whoever is not the controller.
        listeners[..1]
            .iter()
            .chain(&listeners[2..])
            .map(|(name, _, port)| {
                let port = if *name == "HIDDEN" { PROXY_PORT } else { *port };
                format!("{name}://localhost:{port}")
            })
            .collect(),
        listeners.iter().map(|(name, protocol, _)| format!("{name}:{protocol}")).collect(),
    ];
    let [own, advertised, protocols] = lists.map(|list| list.join(","));
    let mut text =
        format!("listeners={own}\nadvertised.listeners={advertised}\nlistener.security.protocol.map={protocols}\n");
    text += &format!(
        "ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.mutual.ssl.client.auth=required
listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.token.oauthbearer.connections.max.reauth.ms={MAX_SESSION_MS}
listener.name.token.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";
",
        file("server.pem"),
        file("server-ca.pem"),
    );
    if cfg!(feature = "msk-iam") {
        text += &format!(
            "listener.name.aws.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.aws.oauthbearer.connections.max.reauth.ms={MAX_SESSION_MS}
listener.name.aws.oauthbearer.sasl.server.callback.handler.class=AwsVerifier
listener.name.aws.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\" region=\"{REGION}\" secret_{ACCESS_KEY}=\"{SECRET_KEY}\" secret_{TEMPORARY_ACCESS_KEY}=\"{SECRET_KEY}\";
"
        );
    }
    for name in ["login", "logintls", "hidden"] {
        text += &format!(
            "listener.name.{name}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.{name}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_alice=\"{PASSWORD}\";
listener.name.{name}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{name}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"
        );
    }
    text
}

/// The files of AWS, as the tests have them: who is who, and where.
fn profiles(prefix: &str) -> String {
    let mut text = String::new();
    for (name, region, access_key, secret) in [
        ("known", REGION, ACCESS_KEY, SECRET_KEY),
        ("wrong", REGION, ACCESS_KEY, WRONG_PASSWORD),
        ("unknown", REGION, "AKIDOFNOBODY", SECRET_KEY),
        ("no-session", REGION, TEMPORARY_ACCESS_KEY, SECRET_KEY),
        ("elsewhere", "us-east-1", ACCESS_KEY, SECRET_KEY),
        ("nowhere", "", ACCESS_KEY, SECRET_KEY),
    ] {
        text += &format!("[{prefix}{name}]\n");
        text += &match prefix {
            "" => format!("aws_access_key_id={access_key}\naws_secret_access_key={secret}\n"),
            _ if region.is_empty() => String::new(),
            _ => format!("region={region}\n"),
        };
    }
    text
}

/// A token that the server takes, for so long.
pub(crate) fn token(life: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let body = format!(r#"{{"sub":"carol","iat":{},"exp":{}}}"#, now.as_secs_f64(), (now + life).as_secs_f64());
    format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode(body))
}

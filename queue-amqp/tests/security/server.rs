//! A RabbitMQ with TLS, certificates and tokens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Ports that the brokers of other tests do not use.
pub(crate) const PLAIN_PORT: u16 = 5735;
pub(crate) const TLS_PORT: u16 = 5725;
/// Names the server of `scripts/brokers` to test with, `rabbitmq` or `rabbitmq4`.
const SERVER_NAME: &str = "ANYQUEUE_TEST_SECURITY_SERVER";
/// Known to the server, so that it believes our tokens.
const TOKEN_KEY: &[u8] = b"a key for nothing but these tests";

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

/// A server that was started, and the authority that vouches for it.
pub(crate) struct Server {
    pub(crate) authority: Authority,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// Starts the server once.
pub(crate) fn server() -> &'static Server {
    SERVER.get_or_init(|| {
        let name = name();
        brokers(&["down", &name]);
        let authority = authority();
        store("server-ca.pem", &authority.pem());
        issue(&authority, "server", "localhost", "broker.test");
        issue(&authority, "client", "client", "client.test");
        issue(&authority, "nobody", "nobody", "nobody.test");
        store("rabbitmq.conf", &configuration());
        store("enabled_plugins", "[rabbitmq_auth_mechanism_ssl,rabbitmq_auth_backend_oauth2].\n");
        store("advanced.config", &keys());
        brokers(&["up", &name]);
        for user in ["client", "rotating"] {
            tool(&["add_user", user, "first"]);
            tool(&["set_permissions", user, ".*", ".*", ".*"]);
        }
        tool(&["add_vhost", "closed"]);
        tool(&["clear_permissions", "-p", "closed", "guest"]);
        Server { authority }
    })
}

/// Ends the server if it was started.
pub(crate) fn down() {
    if SERVER.get().is_some() {
        brokers(&["down", &name()]);
    }
}

fn name() -> String {
    std::env::var(SERVER_NAME).unwrap_or_else(|_| "rabbitmq".to_owned())
}

pub(crate) fn tool(arguments: &[&str]) {
    brokers(&[&["tool", &name()], arguments].concat());
}

fn brokers(arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // The port of the newer server is two above that of the other.
    let first = if name() == "rabbitmq4" { PLAIN_PORT - 2 } else { PLAIN_PORT };
    let output = Command::new(root.join("scripts/brokers"))
        .args(arguments)
        .env("ANYQUEUE_BROKERS_MODE", "native")
        .env("ANYQUEUE_RABBITMQ_PORT", first.to_string())
        .env("ANYQUEUE_RABBITMQ_EXTRA", folder())
        .env("ANYQUEUE_BROKERS_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("amqp-security"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("amqp-security-files")
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

/// Makes `<file>-cert.pem` and `<file>-key.pem`: a certificate for a common name and the name of a host.
pub(crate) fn issue(authority: &Authority, file: &str, common_name: &str, host: &str) {
    let mut params = CertificateParams::new([host.to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    store(&format!("{file}-cert.pem"), &certificate.pem());
    store(&format!("{file}-key.pem"), &key.serialize_pem());
}

fn configuration() -> String {
    format!(
        "listeners.ssl.1 = 127.0.0.1:{TLS_PORT}
ssl_options.cacertfile = {}
ssl_options.certfile = {}
ssl_options.keyfile = {}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
auth_backends.1 = internal
auth_backends.2 = rabbit_auth_backend_oauth2
",
        file("server-ca.pem"),
        file("server-cert.pem"),
        file("server-key.pem"),
    )
}

fn keys() -> String {
    format!(
        r#"[{{rabbitmq_auth_backend_oauth2, [{{resource_server_id, <<"rabbitmq">>}}, {{key_config, [
  {{default_key, <<"test">>}},
  {{signing_keys, #{{<<"test">> => {{map, #{{<<"kty">> => <<"oct">>, <<"alg">> => <<"HS256">>, <<"k">> => <<"{}">>}}}}}}}}]}}]}}].
"#,
        BASE64.encode(TOKEN_KEY)
    )
}

/// A token that the server takes, for so long.
pub(crate) fn token(life: Duration) -> String {
    let expires = (SystemTime::now() + life).duration_since(UNIX_EPOCH).unwrap().as_secs();
    let head = BASE64.encode(r#"{"alg":"HS256","typ":"JWT","kid":"test"}"#);
    let body = BASE64.encode(format!(
        r#"{{"sub":"carol","aud":["rabbitmq"],"exp":{expires},"scope":["rabbitmq.configure:*/*","rabbitmq.write:*/*","rabbitmq.read:*/*"]}}"#
    ));
    let signed = format!("{head}.{body}");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, TOKEN_KEY), signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(signature))
}

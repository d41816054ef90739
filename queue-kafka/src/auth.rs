//! How a connection logs in: passwords, certificates, tokens.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use queue_core::{Endpoint, Error, ErrorKind, Result, Secret, TokenProvider, files};
use rdkafka::ClientConfig;
use serde::Deserialize;

use crate::config::KafkaConfig;
#[cfg(feature = "msk-iam")]
use crate::iam::MskIam;
use crate::tls::Tls;
use crate::tokens::{TokenSource, Tokens};

/// Why `auth=aws-iam` is refused where it is not built in.
pub(crate) const NEEDS_MSK_IAM: &str = "auth=aws-iam needs the feature `msk-iam` (`kafka-msk-iam` of the facade)";

/// How a connection logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Auth {
    /// User and password (`PLAIN`), which the broker sees.
    Plain,
    /// User and password, proven without being shown (`SCRAM-SHA-256`).
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// The same with a longer hash (`SCRAM-SHA-512`).
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
    /// The certificate that the client shows, on a listener without SASL.
    External,
    /// A token instead of a password (`OAUTHBEARER`).
    Oauth2,
    /// An identity of AWS, as Amazon MSK takes it: a token that is signed with its credentials (`OAUTHBEARER`).
    #[serde(rename = "aws-iam")]
    AwsIam,
}

impl Auth {
    /// The name of the mechanism; `None` where TLS is the login.
    fn mechanism(self) -> Option<&'static str> {
        match self {
            Self::Plain => Some("PLAIN"),
            Self::ScramSha256 => Some("SCRAM-SHA-256"),
            Self::ScramSha512 => Some("SCRAM-SHA-512"),
            Self::External => None,
            Self::Oauth2 | Self::AwsIam => Some("OAUTHBEARER"),
        }
    }
}

/// Where user and secret come from.
#[derive(Clone)]
pub(crate) enum Login {
    /// None at all, or the certificate says it.
    Nothing,
    Password {
        auth: Auth,
        user: String,
        password: Secret,
    },
    PasswordFile {
        auth: Auth,
        user: String,
        path: PathBuf,
        /// What was read last.
        last: Arc<Mutex<Secret>>,
    },
    Tokens(Arc<Tokens>),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(***)")
    }
}

impl Login {
    /// Reads the options; every combination that would leave one without effect is refused.
    pub(crate) fn new(
        endpoint: &Endpoint,
        config: &KafkaConfig,
        tls: Option<&Tls>,
        provider: Option<Arc<dyn TokenProvider>>,
    ) -> Result<Self> {
        let user = endpoint.user.clone();
        let auth = match (provider.is_some(), config.auth, &user) {
            (true, None | Some(Auth::Oauth2), _) => Some(Auth::Oauth2),
            (true, ..) => return Err(refused("a provider of tokens is for auth=oauth2")),
            (false, None, Some(_)) => Some(Auth::Plain),
            (false, auth, _) => auth,
        };
        if tls.is_none() && provider.as_ref().is_some_and(|provider| provider.needs_tls()) {
            return Err(refused("the tokens of this provider go over TLS only: the URL has to start with kafkas"));
        }
        let sources = [endpoint.password.is_some(), config.password_file.is_some(), config.token_file.is_some()];
        if sources.into_iter().filter(|s| *s).count() + usize::from(provider.is_some()) > 1 {
            return Err(refused("there is one password or token: in the URL, in a file, or from a provider"));
        }
        if config.token_file.is_some() && auth != Some(Auth::Oauth2) {
            return Err(refused("token_file is for auth=oauth2"));
        }
        if config.password_file.is_some() && matches!(auth, Some(Auth::External | Auth::Oauth2 | Auth::AwsIam)) {
            return Err(refused("password_file is for auth=plain, auth=scram-sha-256 and auth=scram-sha-512"));
        }
        if (config.region.is_some() || config.profile.is_some()) && auth != Some(Auth::AwsIam) {
            return Err(refused("region and profile are for auth=aws-iam"));
        }
        let without_tls = matches!(auth, None | Some(Auth::Plain | Auth::External | Auth::AwsIam));
        let built_in = cfg!(feature = "tls") || without_tls;
        if !built_in {
            return Err(refused("this way to log in needs the feature `tls` (`kafka-tls` of the facade)"));
        }
        match auth {
            None if endpoint.password.is_some() || config.password_file.is_some() => {
                Err(refused("a password needs a user, in the URL"))
            }
            None => Ok(Self::Nothing),
            Some(Auth::External) => {
                if user.is_some() || endpoint.password.is_some() {
                    return Err(refused("with auth=external the certificate says who logs in: no user, no password"));
                }
                if !tls.is_some_and(Tls::has_identity) {
                    return Err(refused("auth=external needs kafkas, client_cert_file and client_key_file"));
                }
                Ok(Self::Nothing)
            }
            Some(Auth::Oauth2) => {
                let source = match (provider, &config.token_file, &endpoint.password) {
                    (Some(provider), ..) => TokenSource::Provider(provider),
                    (None, Some(path), _) => TokenSource::File(path.clone()),
                    (None, None, Some(token)) => TokenSource::Fixed(token.clone()),
                    (None, None, None) => {
                        return Err(refused("auth=oauth2 needs token_file, or the token as password"));
                    }
                };
                Ok(Self::Tokens(Tokens::new(source, user)))
            }
            Some(Auth::AwsIam) => {
                let source = aws_tokens(config)?;
                if user.is_some() || endpoint.password.is_some() {
                    return Err(refused("with auth=aws-iam AWS's credentials say who logs in: no user, no password"));
                }
                if tls.is_none() {
                    return Err(refused("auth=aws-iam needs kafkas: MSK takes it over TLS only"));
                }
                Ok(Self::Tokens(Tokens::new(source, None)))
            }
            Some(auth) => match (user, &config.password_file, &endpoint.password) {
                (Some(user), Some(path), _) => {
                    Ok(Self::PasswordFile { auth, user, path: path.clone(), last: Arc::default() })
                }
                (Some(user), None, Some(password)) => Ok(Self::Password { auth, user, password: password.clone() }),
                _ => Err(refused("this way to log in needs a user and a password, in the URL or in password_file")),
            },
        }
    }

    fn auth(&self) -> Option<Auth> {
        match self {
            Self::Nothing => None,
            Self::Password { auth, .. } | Self::PasswordFile { auth, .. } => Some(*auth),
            Self::Tokens(_) => Some(Auth::Oauth2),
        }
    }

    /// Who logs in, as far as that is known here.
    pub(crate) fn user(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Password { user, .. } | Self::PasswordFile { user, .. } => Some(user),
            Self::Tokens(tokens) => tokens.user(),
        }
    }

    /// Sets what is the same for every client.
    pub(crate) fn prepare(&self, over_tls: bool, config: &mut ClientConfig) {
        let mechanism = self.auth().and_then(Auth::mechanism);
        config.set(
            "security.protocol",
            match (mechanism.is_some(), over_tls) {
                (true, true) => "sasl_ssl",
                (true, false) => "sasl_plaintext",
                (false, true) => "ssl",
                (false, false) => "plaintext",
            },
        );
        if let Some(mechanism) = mechanism {
            config.set("sasl.mechanism", mechanism);
        }
        if let Self::Password { user, .. } | Self::PasswordFile { user, .. } = self {
            config.set("sasl.username", user);
        }
    }

    /// Sets what a client logs in with now. Reads a small file.
    pub(crate) fn complete(&self, config: &mut ClientConfig) -> Result<()> {
        match self {
            Self::Nothing | Self::Tokens(_) => {}
            Self::Password { password, .. } => drop(config.set("sasl.password", password.expose())),
            Self::PasswordFile { path, last, .. } => {
                let password = files::secret(path)?;
                config.set("sasl.password", password.expose());
                *last.lock() = password;
            }
        }
        Ok(())
    }

    /// Hides the secret in a text from elsewhere: the broker may repeat what it was told.
    pub(crate) fn hide(&self, text: &str) -> String {
        let hide = |secret: &Secret| {
            if secret.is_empty() { text.to_owned() } else { text.replace(secret.expose(), "***") }
        };
        match self {
            Self::Nothing => text.to_owned(),
            Self::Password { password, .. } => hide(password),
            Self::PasswordFile { last, .. } => hide(&last.lock()),
            Self::Tokens(tokens) => tokens.last().map_or_else(|| text.to_owned(), |s| hide(&s)),
        }
    }
}

#[cfg(feature = "msk-iam")]
fn aws_tokens(config: &KafkaConfig) -> Result<TokenSource> {
    let provider = MskIam::new(config.region.clone(), config.profile.clone());
    Ok(TokenSource::Provider(Arc::new(provider)))
}

#[cfg(not(feature = "msk-iam"))]
fn aws_tokens(_: &KafkaConfig) -> Result<TokenSource> {
    Err(refused(NEEDS_MSK_IAM))
}

pub(crate) fn refused(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("configure")
}

#[cfg(test)]
mod tests {
    use queue_core::Token;

    use super::*;
    use crate::config::Settings;

    struct Provider;

    #[async_trait::async_trait]
    impl TokenProvider for Provider {
        async fn token(&self) -> Result<Token> {
            Ok(Token::new("a-token"))
        }
    }

    #[test]
    fn a_provider_and_another_way_to_log_in_are_refused() {
        for auth in ["plain", "scram-sha-256", "external", "aws-iam"] {
            let endpoint = format!("kafka://a?auth={auth}").parse().unwrap();
            let error = Settings::new(&endpoint, Some(Arc::new(Provider))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.message().contains("auth=oauth2"), "{error}");
        }
    }

    #[test]
    fn the_options_of_aws_are_for_its_identities() {
        for option in ["region=eu-west-1", "profile=a"] {
            for url in ["kafka://a?", "kafka://u:p@a?auth=plain&"] {
                let error = Settings::new(&format!("{url}{option}").parse().unwrap(), None).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidConfig);
                assert!(error.message().contains("auth=aws-iam"), "{url}{option}: {error}");
            }
            let endpoint = format!("kafka://a?{option}").parse().unwrap();
            let error = Settings::new(&endpoint, Some(Arc::new(Provider))).unwrap_err();
            assert!(error.message().contains("auth=aws-iam"), "{option}: {error}");
        }
    }

    struct Shy;

    #[async_trait::async_trait]
    impl TokenProvider for Shy {
        async fn token(&self) -> Result<Token> {
            Ok(Token::new("a-token"))
        }

        fn needs_tls(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_provider_that_needs_tls_gets_it() {
        let error = Settings::new(&"kafka://a".parse().unwrap(), Some(Arc::new(Shy))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().contains("kafkas"), "{error}");
        let secure = Settings::new(&"kafkas://a".parse().unwrap(), Some(Arc::new(Shy)));
        assert_eq!(secure.is_ok(), cfg!(feature = "tls"));
    }

    #[cfg(feature = "msk-iam")]
    #[test]
    fn an_identity_of_aws_needs_tls_and_nothing_else() {
        for (url, says) in [
            ("kafka://a?auth=aws-iam", "kafkas"),
            ("kafkas://u@a?auth=aws-iam", "no user"),
            ("kafkas://:hunter2@a?auth=aws-iam", "no password"),
            ("kafkas://u:hunter2@a?auth=aws-iam&profile=b", "no user"),
            ("kafkas://a?auth=aws-iam&token_file=/x", "auth=oauth2"),
            ("kafkas://a?auth=aws-iam&password_file=/x", "auth=plain"),
        ] {
            let error = Settings::new(&url.parse().unwrap(), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.message().contains(says), "{url}: {error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        for url in ["kafkas://a?auth=aws-iam", "kafkas://a?auth=aws-iam&region=eu-west-1&profile=b"] {
            let settings = Settings::new(&url.parse().unwrap(), None).unwrap();
            let client = settings.client().unwrap();
            assert_eq!(client.get("security.protocol"), Some("sasl_ssl"));
            assert_eq!(client.get("sasl.mechanism"), Some("OAUTHBEARER"));
            assert!(settings.has_tokens());
        }
    }

    #[cfg(not(feature = "msk-iam"))]
    #[test]
    fn without_msk_iam_the_missing_feature_is_named() {
        for url in ["kafkas://a?auth=aws-iam", "kafka://a?auth=aws-iam", "kafkas://a?auth=aws-iam&region=eu-west-1"] {
            let error = Settings::new(&url.parse().unwrap(), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.message().contains("`kafka-msk-iam`"), "{url}: {error}");
        }
    }
}

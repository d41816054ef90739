//! Tokens for Amazon MSK, beside those that Amazon's own library for Python signs.

use std::collections::BTreeMap;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use queue_kafka::{MskIam, TokenProvider};
use serde_json::json;

use crate::python::run_with;

/// The address, and the parameters as they are written.
fn parts(token: &str) -> (String, BTreeMap<String, String>) {
    let url = String::from_utf8(BASE64.decode(token).unwrap()).unwrap();
    let (address, query) = url.split_once('?').unwrap();
    let params = query.split('&').map(|param| param.split_once('=').unwrap());
    (address.to_owned(), params.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

pub(crate) async fn a_token_for_msk_is_what_amazon_s_own_library_signs() {
    let (access_key, secret_key) = ("AKIDOFTHETESTS", "correct/battery+staple");
    let long = "IQoJb3JpZ2luX2Vj//+/=".repeat(40);
    for (region, session) in [
        ("eu-west-1", None),
        ("us-gov-east-1", None),
        ("eu-west-1", Some("a/session+of=the tests~*é")),
        ("ap-southeast-2", Some(long.as_str())),
    ] {
        let credentials = Credentials::new(access_key, secret_key, session.map(str::to_owned), None, "tests");
        let credentials = SharedCredentialsProvider::new(credentials);
        let config = SdkConfig::builder().region(Region::new(region)).credentials_provider(credentials).build();
        let token = MskIam::from_config(&config).unwrap().token().await.unwrap();
        let (address, mut ours) = parts(token.secret().expose());
        let asked = json!({
            "region": region, "access_key": access_key, "secret_key": secret_key, "session": session,
            "date": ours["X-Amz-Date"],
        });
        let theirs = run_with("sign.py", &[], &asked).await.remove(0);
        let (their_address, mut theirs) = parts(theirs["token"].as_str().unwrap());
        // Who asks, which is not signed.
        assert!(ours.remove("User-Agent").unwrap().starts_with("anyqueue%2F"));
        theirs.remove("User-Agent").unwrap();
        assert_eq!((address, ours), (their_address, theirs), "{region} {session:?}");
    }
}

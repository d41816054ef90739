//! Bad arguments, settings and requests are told so.

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::http::{ask, get, head, post};
use crate::process::{Running, failed, refused};
use crate::shop::{Folder, Shop, program};
use crate::{Outcome, block_on};

pub(crate) fn settings(_: &str) -> Outcome {
    let usage = "usage: microservices orders | payments | notifications | proxy\n";
    for arguments in [&[][..], &["order"], &["orders", "payments"], &["--help"], &[""]] {
        assert_eq!(refused(program(arguments, &[]))?, usage, "{arguments:?}");
    }
    let amqp = ("QUEUE_URL", "amqp://127.0.0.1:1");
    for (arguments, settings, why) in [
        ("orders", &[("QUEUE_URL", "")][..], "QUEUE_URL says which broker the services talk through: amqp://"),
        ("payments", &[("QUEUE_URL", "memory://")], "the memory broker is that of one process"),
        ("payments", &[("QUEUE_URL", "Memory://shop")], "the memory broker is that of one process"),
        (
            "notifications",
            &[amqp, ("LISTEN", "here")],
            "LISTEN takes an address with a port, as 127.0.0.1:8083, not 'here'",
        ),
        ("orders", &[amqp, ("LISTEN", "127.0.0.1:99999")], "LISTEN takes an address with a port, as 127.0.0.1:8081"),
        ("orders", &[amqp, ("DATABASE", "")], "DATABASE takes a file, as orders.db"),
        ("proxy", &[("LISTEN", "")], "LISTEN takes an address with a port, as 127.0.0.1:8080, not ''"),
        ("proxy", &[("ORDERS", "127.0.0.1:8081")], "ORDERS takes a URL without a path, as http://127.0.0.1:8081, not"),
        ("proxy", &[("PAYMENTS", "https://127.0.0.1:8082")], "PAYMENTS takes a URL without a path"),
        ("proxy", &[("NOTIFICATIONS", "http://127.0.0.1:8083/v1")], "NOTIFICATIONS takes a URL without a path"),
        ("proxy", &[("ORDERS", "http://user@127.0.0.1:8081/?a")], "ORDERS takes a URL without a path"),
        ("proxy", &[("TIMEOUT", "0")], "TIMEOUT takes seconds from 1 to 3600, not '0'"),
        ("proxy", &[("TIMEOUT", "soon")], "TIMEOUT takes seconds from 1 to 3600, not 'soon'"),
    ] {
        let said = refused(program(&[arguments], settings))?;
        assert!(said.starts_with(why) && said.lines().count() == 1, "{settings:?}: {said}");
    }
    // The broker's own.
    let folder = Folder::new()?;
    let file = folder.file("orders");
    for (url, why) in [
        ("there", "a URL reads scheme://host:port/path?option=value"),
        ("ftp://there", "no driver for the scheme `ftp`"),
        ("amqp://127.0.0.1:1?prefetsh=7", "did_you_mean: prefetch"),
        ("kafka://127.0.0.1:1?kafka.no.such=7", "no option `no.such`"),
    ] {
        let said = refused(program(&["orders"], &[("QUEUE_URL", url), ("DATABASE", &file)]))?;
        assert!(said.contains(why) && said.lines().count() == 1, "{url}: {said}");
    }
    // What is taken, or not there.
    let proxy = Running::start(program(&["proxy"], &[]))?;
    let taken = proxy.line()?;
    let (printed, said) = failed(program(&["proxy"], &[("LISTEN", taken.trim_start_matches("http://"))]))?;
    assert!(printed.is_empty() && said.contains("cannot be listened at: Address already in use"), "{said}");
    proxy.interrupt()?;
    let nowhere = folder.file("nowhere/orders");
    let (printed, said) = failed(program(&["orders"], &[amqp, ("DATABASE", &nowhere)]))?;
    assert!(printed.is_empty() && said.starts_with(&format!("the database {nowhere} cannot be opened: ")), "{said}");
    // A file of its own: beside one that was opened stands a log that would heal it.
    let text = folder.file("text");
    std::fs::write(&text, "no database at all, but a text that is long enough to be looked at".repeat(20))?;
    let (printed, said) = failed(program(&["orders"], &[amqp, ("DATABASE", &text)]))?;
    assert!(printed.is_empty() && said.contains("file is not a database"), "{said}");
    Ok(())
}

pub(crate) fn requests(url: &str) -> Outcome {
    let shop = Shop::open(url)?;
    block_on(async {
        orders(&shop.at, shop.address("orders")).await?;
        keys(&shop).await?;
        reads(&shop.at).await
    })?;
    // The one of the keys.
    block_on(shop.settled(1))?;
    shop.close(1, 0)
}

async fn orders(at: &str, service: &str) -> Outcome {
    let url = || format!("{at}/orders");
    let good = json!({ "customer": "ann", "item": "lamp", "amount": 1 });
    let json = "application/json";
    for (content_type, body, expected, why) in [
        (json, "", StatusCode::BAD_REQUEST, "EOF"),
        (json, "{", StatusCode::BAD_REQUEST, "EOF"),
        (json, "{} {}", StatusCode::UNPROCESSABLE_ENTITY, "missing field"),
        (json, "\u{1}", StatusCode::BAD_REQUEST, "expected value"),
        (json, "[]", StatusCode::UNPROCESSABLE_ENTITY, "invalid length"),
        (json, "null", StatusCode::UNPROCESSABLE_ENTITY, "invalid type"),
        ("", &*good.to_string(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json"),
        ("text/plain", &good.to_string(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json"),
        ("application/x-www-form-urlencoded", "customer=ann", StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json"),
    ] {
        wrong(post(url(), content_type, body.to_owned()).await?, expected, why)?;
    }
    wrong(post(url(), json, vec![b'"', 0xff, b'"']).await?, StatusCode::BAD_REQUEST, "unicode")?;
    let text = "customer is a text of 1 to 100 characters";
    for (field, value, why) in [
        ("customer", Value::Null, "invalid type: null"),
        ("customer", json!(7), "invalid type: integer"),
        ("customer", json!(""), text),
        ("customer", json!("  "), text),
        ("customer", json!("a\nb"), text),
        ("customer", json!("\u{0}"), text),
        ("customer", json!("x".repeat(101)), text),
        ("item", json!("é".repeat(101)), "item is a text of 1 to 100 characters"),
        ("item", json!(["lamp"]), "invalid type: sequence"),
        ("amount", json!(0), "amount is in cents, from 1 to 100000000"),
        ("amount", json!(-1), "amount is in cents"),
        ("amount", json!(100_000_001), "amount is in cents"),
        ("amount", json!(i64::MIN), "amount is in cents"),
        ("amount", json!(u64::MAX), "expected i64"),
        ("amount", json!(1.5), "invalid type: floating point"),
        ("amount", json!("1"), "invalid type: string"),
        ("status", json!("paid"), "unknown field `status`"),
    ] {
        let mut order = good.clone();
        order[field] = value;
        wrong(post(url(), json, order.to_string()).await?, StatusCode::UNPROCESSABLE_ENTITY, why)?;
    }
    let twice = r#"{"customer": "ann", "item": "lamp", "amount": 1, "amount": 2}"#;
    wrong(post(url(), json, twice).await?, StatusCode::UNPROCESSABLE_ENTITY, "duplicate field")?;
    // The proxy tells it, and a service too.
    for url in [url(), format!("{service}/orders")] {
        let long = post(url, json, vec![b' '; 16 * 1024 + 1]).await?;
        wrong(long, StatusCode::PAYLOAD_TOO_LARGE, "length limit exceeded")?;
    }
    Ok(())
}

async fn keys(shop: &Shop) -> Outcome {
    let good = json!({ "customer": "ann", "item": "lamp", "amount": 1 });
    let why = "Idempotency-Key is one text of 1 to 100 characters";
    let request = || Request::post(format!("{}/orders", shop.at)).header("content-type", "application/json");
    for key in ["", " ", "\t", &"x".repeat(101)] {
        let request = request().header("idempotency-key", key).body(good.to_string().into())?;
        wrong(ask(request).await?, StatusCode::BAD_REQUEST, why)?;
    }
    let latin = request().header("idempotency-key", &b"\xe9"[..]).body(good.to_string().into())?;
    wrong(ask(latin).await?, StatusCode::BAD_REQUEST, why)?;
    let two = request().header("idempotency-key", "a").header("idempotency-key", "b").body(good.to_string().into())?;
    wrong(ask(two).await?, StatusCode::BAD_REQUEST, why)?;

    // Many at a time are one order.
    let asked: Vec<_> = (0..16).map(|_| shop.place("one", &good)).collect();
    let answers = futures::future::try_join_all(asked).await?;
    let created = answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    let ids: std::collections::BTreeSet<_> = answers.iter().map(|(_, order)| order["id"].to_string()).collect();
    assert_eq!((created, ids.len()), (1, 1), "{answers:?}");
    for (field, value) in [("customer", json!("bob")), ("item", json!("chair")), ("amount", json!(2))] {
        let mut other = good.clone();
        other[field] = value;
        let (status, said) = shop.place("one", &other).await?;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{said}");
        assert_eq!(said, json!({ "error": "this Idempotency-Key is that of another order" }));
    }
    Ok(())
}

async fn reads(at: &str) -> Outcome {
    let unknown = "00000000-0000-7000-8000-000000000000";
    let limit = "limit is a number from 1 to 1000";
    for (path, expected, why) in [
        ("/orders/7", StatusCode::BAD_REQUEST, "the id of an order is a UUID"),
        ("/orders/%ff", StatusCode::BAD_REQUEST, "UTF-8"),
        ("/payments/x", StatusCode::BAD_REQUEST, "the id of an order is a UUID"),
        ("/notifications?order=x", StatusCode::BAD_REQUEST, "the id of an order is a UUID"),
        (&format!("/orders/{unknown}"), StatusCode::NOT_FOUND, "there is no such order"),
        (&format!("/payments/{unknown}"), StatusCode::NOT_FOUND, "there is no payment for such an order"),
        ("/orders?limit=0", StatusCode::BAD_REQUEST, limit),
        ("/orders?limit=1001", StatusCode::BAD_REQUEST, limit),
        ("/notifications?limit=0", StatusCode::BAD_REQUEST, limit),
        ("/orders?limit=-1", StatusCode::BAD_REQUEST, "invalid digit"),
        ("/orders?limit=", StatusCode::BAD_REQUEST, "empty string"),
        ("/orders?limit=1&limit=2", StatusCode::BAD_REQUEST, "duplicate field"),
        ("/orders?costumer=ann", StatusCode::BAD_REQUEST, "unknown field `costumer`"),
        ("/notifications?limits=1", StatusCode::BAD_REQUEST, "unknown field `limits`"),
        ("/orders/", StatusCode::NOT_FOUND, "there is nothing here"),
        ("/orders/1/2", StatusCode::NOT_FOUND, "there is nothing here"),
        ("/payments", StatusCode::NOT_FOUND, "there is nothing here"),
        ("/notifications/1", StatusCode::NOT_FOUND, "there is nothing here"),
        ("/ordersx", StatusCode::NOT_FOUND, "there is nothing here"),
        ("/", StatusCode::NOT_FOUND, "there is nothing here"),
        ("/health/live", StatusCode::NOT_FOUND, "there is nothing here"),
    ] {
        wrong(get(format!("{at}{path}")).await?, expected, why).map_err(|error| format!("{path}: {error}"))?;
    }
    for path in [format!("/notifications?order={unknown}"), "/orders?customer=nobody".to_owned()] {
        assert_eq!(get(format!("{at}{path}")).await?, (StatusCode::OK, "[]".to_owned()), "{path}");
    }
    for (method, path) in [
        (Method::DELETE, "/orders"),
        (Method::POST, "/orders/7"),
        (Method::PUT, "/payments/7"),
        (Method::POST, "/notifications"),
        (Method::OPTIONS, "/notifications"),
    ] {
        let request = Request::builder().method(method.clone()).uri(format!("{at}{path}")).body(Bytes::new().into())?;
        let why = "this method is not for that";
        wrong(ask(request).await?, StatusCode::METHOD_NOT_ALLOWED, why).map_err(|error| format!("{method} {error}"))?;
    }
    assert_eq!(head(format!("{at}/orders")).await?, (StatusCode::OK, String::new()));
    Ok(())
}

/// The answer has this status and says why, as JSON.
fn wrong((status, body): (StatusCode, String), expected: StatusCode, why: &str) -> Outcome {
    let said: Value = serde_json::from_str(&body).map_err(|error| format!("{status} {body}: {error}"))?;
    let said = said["error"].as_str().ok_or_else(|| format!("{status} {body}"))?;
    assert!(status == expected && said.contains(why), "{status} {said}, expected {expected} {why}");
    Ok(())
}

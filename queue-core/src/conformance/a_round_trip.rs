//! A. What is sent is what arrives.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::case::{
    CaseResult, Ctx, cases, ensure, expect_error, message, next, next_of, only_a_marker_arrives, refuses_to_send,
    within,
};
use crate::error::{ErrorKind, Outcome};
use crate::headers::{HeaderValue, Headers, Text};
use crate::message::Message;

cases! { "a_round_trip":
    a_message_sent_before_the_receiver_exists_arrives;
    a_message_sent_after_the_receiver_exists_arrives;
    an_empty_body_stays_empty;
    a_body_of_one_byte_arrives;
    the_largest_body_arrives;
    a_body_over_the_limit_is_refused_before_the_network
        ["max_message_bytes", |p| p.sender.max_message_bytes < usize::MAX, else a_body_of_two_mebibytes_arrives];
    bodies_that_are_no_text_arrive;
    bodies_that_look_like_an_envelope_arrive_as_they_are;
    odd_header_names_and_values_arrive;
    repeated_headers_keep_their_order;
    any_count_of_headers_arrives;
    every_type_of_header_value_keeps_its_type
        ["typed_headers", |p| p.sender.typed_headers, else typed_headers_are_refused];
    reserved_header_names_are_refused;
    properties_arrive;
    timestamps_arrive_to_the_nanosecond;
    keys_of_any_bytes_arrive;
    a_message_without_properties_has_none;
    a_tombstone_is_not_an_empty_body
        ["tombstones", |p| p.sender.tombstones, else tombstones_are_refused];
}

/// Largest body that is really sent.
const LARGE: usize = 1 << 20;

/// Largest body that is built to see it refused.
const HUGE: usize = 64 << 20;

/// Sends each message and fails unless it arrives as it was, one by one, acknowledged.
async fn round_trip(ctx: &Ctx, messages: Vec<Message>) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    for (index, sent) in messages.into_iter().enumerate() {
        within(format!("message {index} to be sent"), sender.send(sent.clone())).await??;
        let got = next_of(&mut receiver, &format!("message {index}")).await?;
        same(&sent, &got, index)?;
        ensure!(got.attempt() == 1, "message {index} arrived with attempt {}", got.attempt());
        got.ack();
    }
    Ok(())
}

fn same(sent: &Message, got: &Message, index: usize) -> CaseResult {
    if sent.payload() != got.payload() {
        let at = sent.payload().iter().zip(got.payload()).position(|(a, b)| a != b);
        let (s, g) = (sent.payload().len(), got.payload().len());
        ensure!(false, "body {index} of {s} bytes arrived with {g}, the first difference at {at:?}");
    }
    ensure!(sent.headers() == got.headers(), "message {index}: sent {:?}, got {:?}", sent.headers(), got.headers());
    ensure!(sent.get_key() == got.get_key(), "message {index}: key {:?} became {:?}", sent.get_key(), got.get_key());
    ensure!(sent.is_tombstone() == got.is_tombstone(), "message {index}: tombstone is {}", got.is_tombstone());
    for (name, sent, got) in [
        ("id", sent.get_id(), got.get_id()),
        ("subject", sent.get_subject(), got.get_subject()),
        ("content type", sent.get_content_type(), got.get_content_type()),
        ("correlation id", sent.get_correlation_id(), got.get_correlation_id()),
        ("reply-to", sent.get_reply_to(), got.get_reply_to()),
    ] {
        ensure!(sent.is_none() || sent == got, "message {index}: {name} {sent:?} became {got:?}");
    }
    let (sent, got) = (sent.get_timestamp(), got.get_timestamp());
    ensure!(sent.is_none() || sent == got, "message {index}: timestamp {sent:?} became {got:?}");
    Ok(())
}

async fn a_message_sent_before_the_receiver_exists_arrives(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(message(1).header("tenant", "acme"))).await??;
    let mut receiver = ctx.open(&queue).await?;
    let got = next(&mut receiver).await?;
    ensure!(got.text() == Some("m1"), "{:?} arrived", got.text());
    got.ack();
    Ok(())
}

async fn a_message_sent_after_the_receiver_exists_arrives(ctx: Ctx) -> CaseResult {
    round_trip(&ctx, vec![message(1).header("tenant", "acme")]).await
}

async fn an_empty_body_stays_empty(ctx: Ctx) -> CaseResult {
    round_trip(&ctx, vec![Message::new(""), Message::new("").header("a", "b")]).await
}

async fn a_body_of_one_byte_arrives(ctx: Ctx) -> CaseResult {
    round_trip(&ctx, [0x00, 0x01, 0x09, 0x20, 0x41, 0x7f, 0x80, 0xff].map(|b| Message::new(vec![b])).into()).await
}

async fn the_largest_body_arrives(ctx: Ctx) -> CaseResult {
    // Text: what is no text may need an encoding, and then less fits.
    let size = ctx.probe.sender.max_message_bytes.min(LARGE);
    round_trip(&ctx, vec![Message::new("x".repeat(size))]).await
}

async fn a_body_of_two_mebibytes_arrives(ctx: Ctx) -> CaseResult {
    round_trip(&ctx, vec![Message::new(vec![b'x'; 2 << 20])]).await
}

async fn a_body_over_the_limit_is_refused_before_the_network(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    let size = sender.capabilities().max_message_bytes.saturating_add(1);
    let message = if size <= HUGE {
        Message::new("x".repeat(size))
    } else {
        // One small block shared many times: counts as much as a body of that size would, and takes no memory.
        let block = HeaderValue::Bytes(Bytes::from(vec![b'x'; LARGE]));
        Message::new("x").header("blocks", vec![block; size.div_ceil(LARGE)])
    };
    let sent = within("a message over the limit to be refused", sender.send(message)).await?;
    let error = expect_error(sent, &[ErrorKind::TooLarge], "a message over the limit")?;
    ensure!(error.outcome() == Outcome::NotSent, "refused as {:?}", error.outcome());
    ensure!(!error.is_retryable(), "a message that is too large stays so, but {error:?} is retryable");
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn bodies_that_are_no_text_arrive(ctx: Ctx) -> CaseResult {
    let mut rng = ctx.rng();
    let mut random = vec![0; 4096];
    rng.fill(&mut random);
    let bodies: Vec<Vec<u8>> = vec![
        vec![0xff, 0xfe, 0x00, 0xc0, 0xaf],
        (0..=255).collect(),
        // Legal UTF-8, not legal in XML.
        b"\x00\x01\x08\x0b\x0c\x1f".to_vec(),
        "\u{fffe}\u{ffff}\u{7f}\u{85}".into(),
        b"line\r\nline\rline\n\ttab".to_vec(),
        "ünïcödé \u{1f980} \u{202e}".into(),
        b"<&>]]>\"'&amp;&#x0;".to_vec(),
        random,
    ];
    round_trip(&ctx, bodies.into_iter().map(Message::new).collect()).await
}

async fn bodies_that_look_like_an_envelope_arrive_as_they_are(ctx: Ctx) -> CaseResult {
    let bodies = [
        // A notification of SNS, a message of Celery, the base64 of something, an encoded note.
        r#"{"Type":"Notification","MessageId":"1","TopicArn":"arn:aws:sns:x","Message":"{\"a\":1}"}"#,
        r#"[[1,2],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]"#,
        r#"{"body":"e30=","content-encoding":"base64","headers":{},"properties":{"delivery_tag":"x"}}"#,
        "eyJwYXlsb2FkIjoiaGVsbG8ifQ==",
        "anyqueue-h: 0.1s;#t5.0;",
        "null",
    ];
    round_trip(&ctx, bodies.map(Message::new).into()).await
}

async fn odd_header_names_and_values_arrive(ctx: Ctx) -> CaseResult {
    let names = [
        "plain",
        "Mixed-Case",
        "mixed-case",
        "with space",
        "dots.and_underscores-",
        ".dots..",
        "AWS.Something",
        "x-custom",
        "anyqueue",
        "colon:semi;equals=percent%20",
        "ünïcödé",
        "\u{1f980}",
        "new\nline",
        "<&>\"'",
    ];
    let values = ["", " ", "plain", "ünïcödé \u{1f980}", "a\r\nb: c", "\u{1}\u{0}", "%41;<&>\"'\\}", "7", "true"];
    let mut messages: Vec<_> = names.map(|n| Message::new("x").header(n, "value")).into();
    messages.extend(values.map(|v| Message::new("x").header("name", v)));
    messages.push(Message::new("x").header("", "no name").header("name", "n"));
    messages.push(Message::new("x").header("long", "v".repeat(5000)).header("n".repeat(200), "v"));
    round_trip(&ctx, messages).await
}

async fn repeated_headers_keep_their_order(ctx: Ctx) -> CaseResult {
    let headers = [("b", "1"), ("a", "2"), ("b", "3"), ("B", "4"), ("b", "1"), ("a", ""), ("c", "5")];
    round_trip(&ctx, vec![Message::new("x").with_headers(Headers::from_iter(headers))]).await
}

async fn any_count_of_headers_arrives(ctx: Ctx) -> CaseResult {
    let with = |count: usize| {
        let headers = (0..count).map(|i| (format!("header-{:02}", (i * 7) % count), format!("value {i}")));
        Message::new("x").with_headers(headers.collect())
    };
    let limit = ctx.probe.sender.max_headers;
    let (within_limit, over): (Vec<_>, Vec<_>) = [0, 1, 10, 11, 50].into_iter().partition(|n| *n <= limit);
    round_trip(&ctx, within_limit.into_iter().map(with).collect()).await?;
    if !over.is_empty() {
        let queue = ctx.queue()?;
        let mut receiver = ctx.open(&queue).await?;
        let sender = ctx.sender(&queue).await?;
        for count in over {
            let sent = within("too many headers to be refused", sender.send(with(count))).await?;
            expect_error(sent, &[ErrorKind::TooLarge], "a message with too many headers")?;
        }
        only_a_marker_arrives(&sender, &mut receiver).await?;
    }
    Ok(())
}

fn every_type() -> Vec<HeaderValue> {
    let at = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    let map: Vec<(Text, HeaderValue)> = vec![("b".into(), 1.into()), ("a".into(), HeaderValue::Null)];
    vec![
        HeaderValue::from(vec![0_u8, 255, 10]),
        HeaderValue::from(b"text as bytes".to_vec()),
        "text".into(),
        0.into(),
        i64::MAX.into(),
        i64::MIN.into(),
        0.1.into(),
        f64::NEG_INFINITY.into(),
        (-0.0).into(),
        true.into(),
        false.into(),
        at.into(),
        UNIX_EPOCH.into(),
        vec![HeaderValue::Int(1), "two".into(), HeaderValue::Null, vec![HeaderValue::Int(3)].into()].into(),
        Vec::<HeaderValue>::new().into(),
        map.into(),
        HeaderValue::Null,
    ]
}

async fn every_type_of_header_value_keeps_its_type(ctx: Ctx) -> CaseResult {
    let values = every_type();
    let mut messages: Vec<_> = values.iter().map(|v| Message::new("x").header("value", v.clone())).collect();
    messages.push(Message::new("x").with_headers(values.into_iter().map(|v| ("value", v)).collect()));
    round_trip(&ctx, messages).await
}

async fn typed_headers_are_refused(ctx: Ctx) -> CaseResult {
    refuses_to_send(&ctx, Message::new("x").header("number", 7), "a header that is no text").await
}

async fn reserved_header_names_are_refused(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    for name in ["anyqueue-h", "anyqueue-attempt", "anyqueue-of-my-own"] {
        let sent = within("a reserved name to be refused", sender.send(Message::new("x").header(name, "1"))).await?;
        let error = expect_error(sent, &[ErrorKind::InvalidInput], name)?;
        ensure!(error.outcome() == Outcome::NotSent, "{name} was refused as {:?}", error.outcome());
    }
    only_a_marker_arrives(&sender, &mut receiver).await
}

async fn properties_arrive(ctx: Ctx) -> CaseResult {
    let all = Message::new("x")
        .id("id-1")
        .content_type("application/json; charset=utf-8")
        .correlation_id("c-1")
        .reply_to("replies")
        .key("k")
        .header("h", "v");
    let odd = Message::new("x").id("ünïque;1").content_type("").correlation_id("a b\n%").reply_to("topic:x/y");
    let each = vec![
        all,
        odd,
        Message::new("x").id("2"),
        Message::new("x").subject("orders.created"),
        Message::new("x").content_type("text/plain"),
        Message::new("x").correlation_id("3"),
        Message::new("x").reply_to("queue"),
    ];
    round_trip(&ctx, each).await
}

async fn timestamps_arrive_to_the_nanosecond(ctx: Ctx) -> CaseResult {
    let times = [
        UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
        UNIX_EPOCH + Duration::from_millis(1_700_000_000_001),
        UNIX_EPOCH + Duration::from_secs(1),
        UNIX_EPOCH,
        SystemTime::now(),
    ];
    round_trip(&ctx, times.map(|t| Message::new("x").timestamp(t)).into()).await
}

async fn keys_of_any_bytes_arrive(ctx: Ctx) -> CaseResult {
    let keys: Vec<Vec<u8>> = vec![
        b"user-7".to_vec(),
        b"with space/and:more".to_vec(),
        "ünïcödé".into(),
        vec![0, 255, 254, b';'],
        vec![b'k'; 300],
    ];
    round_trip(&ctx, keys.into_iter().map(|k| Message::new("x").key(k)).collect()).await
}

async fn a_message_without_properties_has_none(ctx: Ctx) -> CaseResult {
    let queue = ctx.queue()?;
    let mut receiver = ctx.open(&queue).await?;
    let sender = ctx.sender(&queue).await?;
    within("a send", sender.send(Message::new("x"))).await??;
    let got = next(&mut receiver).await?;
    ensure!(got.headers().is_empty(), "headers appeared: {:?}", got.headers());
    ensure!(got.get_key().is_none(), "a key appeared: {:?}", got.get_key());
    for (name, value) in [
        ("content type", got.get_content_type()),
        ("correlation id", got.get_correlation_id()),
        ("reply-to", got.get_reply_to()),
    ] {
        ensure!(value.is_none(), "a {name} appeared: {value:?}");
    }
    got.ack();
    Ok(())
}

async fn a_tombstone_is_not_an_empty_body(ctx: Ctx) -> CaseResult {
    let empty = Message::new("").key("k");
    round_trip(&ctx, vec![Message::tombstone("k"), empty, Message::tombstone("k").header("why", "gone")]).await
}

async fn tombstones_are_refused(ctx: Ctx) -> CaseResult {
    refuses_to_send(&ctx, Message::tombstone("k"), "a tombstone").await
}

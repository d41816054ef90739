use super::*;

const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:orders";
const QUEUE: &str = "arn:aws:sqs:eu-west-1:123456789012:orders--billing";

fn judged(statement: Value) -> Allows {
    judge(Some(&json!({ "Version": "2012-10-17", "Statement": statement }).to_string()), TOPIC, QUEUE).unwrap()
}

#[test]
fn a_statement_is_added_once_and_no_other_is_lost() {
    let theirs = json!({ "Sid": "theirs", "Effect": "Allow", "Principal": "*", "Action": "sqs:ReceiveMessage",
                         "Resource": QUEUE });
    // One statement without a list, and a field that is kept.
    let before = json!({ "Version": "2008-10-17", "Id": "x", "Statement": theirs }).to_string();
    assert_eq!(judge(Some(&before), TOPIC, QUEUE), Ok(Allows::No));
    let after = with_ours(Some(&before), TOPIC, QUEUE);
    assert_eq!(judge(Some(&after), TOPIC, QUEUE), Ok(Allows::Yes));
    let read: Value = serde_json::from_str(&after).unwrap();
    assert_eq!((&read["Id"], &read["Version"]), (&json!("x"), &json!("2008-10-17")));
    assert_eq!(read["Statement"].as_array().unwrap().len(), 2);
    assert_eq!(read["Statement"][0], theirs);
    assert_eq!(with_ours(Some(&after), TOPIC, QUEUE), after);
    // Another topic has a statement of its own.
    let other = TOPIC.replace("orders", "invoices");
    assert_eq!(judge(Some(&after), &other, QUEUE), Ok(Allows::No));
    let both = with_ours(Some(&after), &other, QUEUE);
    assert_eq!(judge(Some(&both), TOPIC, QUEUE), Ok(Allows::Yes));
    assert_eq!(judge(Some(&both), &other, QUEUE), Ok(Allows::Yes));
    let without: Value = serde_json::from_str(&without_ours(&both).unwrap()).unwrap();
    assert_eq!(without["Statement"], json!([theirs]));
    assert_eq!(without_ours(&with_ours(None, TOPIC, QUEUE)), None);
    // However it was written, it is the same.
    let listed = json!({ "Version": "2008-10-17", "Id": "x", "Statement": [theirs] }).to_string();
    assert_eq!(without_ours(&before), without_ours(&listed));
    assert_eq!(without_ours(r#"{"Statement":[]}"#), None);
    assert!(has_ours(Some(&both), TOPIC, QUEUE) && has_ours(Some(&both), &other, QUEUE));
    assert!(!has_ours(Some(&before), TOPIC, QUEUE) && !has_ours(None, TOPIC, QUEUE));
}

#[test]
fn what_others_wrote_is_understood() {
    let base = json!({ "Effect": "Allow", "Principal": { "Service": "sns.amazonaws.com" },
                       "Action": ["SQS:SendMessage"], "Resource": QUEUE });
    let with = |changes: Value| {
        let mut statement = base.clone();
        statement.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        judged(statement)
    };
    let source = |operator: &str, arn: &str| json!({ "Condition": { operator: { "AWS:SourceArn": arn } } });
    assert_eq!(with(json!({})), Allows::Yes);
    assert_eq!(with(source("ArnLike", "arn:aws:sns:*:123456789012:ord*")), Allows::Yes);
    assert_eq!(with(source("StringEquals", TOPIC)), Allows::Yes);
    assert_eq!(with(source("ArnEquals", "arn:aws:sns:*:123456789012:orders")), Allows::Yes);
    assert_eq!(with(source("ArnEquals", "arn:aws:sns:eu-west-1:123456789012:order")), Allows::No);
    // A part of an ARN is compared with that part, and only some operators know patterns.
    assert_eq!(with(source("ArnLike", "arn:aws:*:orders")), Allows::No);
    assert_eq!(with(source("StringLike", "arn:aws:*:orders")), Allows::Yes);
    assert_eq!(with(source("StringEquals", "arn:aws:sns:*:123456789012:orders")), Allows::No);
    assert_eq!(with(source("ArnNotEquals", TOPIC)), Allows::Perhaps);
    assert_eq!(with(json!({ "Condition": { "Bool": { "aws:SecureTransport": "true" } } })), Allows::Perhaps);
    assert_eq!(with(json!({ "Action": "sqs:*", "Principal": "*", "Resource": "*" })), Allows::Yes);
    assert_eq!(with(json!({ "Principal": { "AWS": "*" } })), Allows::Yes);
    assert_eq!(with(json!({ "Principal": { "Service": "s3.amazonaws.com" } })), Allows::No);
    assert_eq!(with(json!({ "Action": "sqs:ReceiveMessage" })), Allows::No);
    assert_eq!(with(json!({ "Resource": "arn:aws:sqs:eu-west-1:123456789012:other" })), Allows::No);
    assert_eq!(with(json!({ "Action": null, "NotAction": "sqs:ReceiveMessage" })), Allows::Perhaps);
    assert_eq!(judge(None, TOPIC, QUEUE), Ok(Allows::No));
    assert!(judge(Some("[]"), TOPIC, QUEUE).is_err() && judge(Some("x"), TOPIC, QUEUE).is_err());
}

#[test]
fn what_is_denied_counts_for_more_than_what_is_allowed() {
    let allow = json!({ "Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": "*" });
    let with = |changes: Value| {
        let mut deny = json!({ "Effect": "Deny", "Principal": "*", "Action": "sqs:SendMessage", "Resource": QUEUE });
        deny.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        judged(json!([allow, deny]))
    };
    let source = |arn: &str| json!({ "Condition": { "ArnEquals": { SOURCE: arn } } });
    assert_eq!(with(json!({})), Allows::Denied);
    assert_eq!(with(source(TOPIC)), Allows::Denied);
    assert_eq!(with(source("arn:aws:sns:eu-west-1:123456789012:invoices")), Allows::Yes);
    assert_eq!(with(json!({ "Condition": { "Bool": { "aws:SecureTransport": "false" } } })), Allows::Perhaps);
    assert_eq!(with(json!({ "Action": "sqs:DeleteQueue" })), Allows::Yes);
    assert_eq!(with(json!({ "Principal": { "AWS": "arn:aws:iam::123456789012:root" } })), Allows::Yes);
    assert_eq!(judged(json!({ "Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*" })), Allows::Denied);
    let doubt = json!({ "Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*",
                        "Condition": { "Bool": { "aws:SecureTransport": "false" } } });
    assert_eq!(judged(doubt), Allows::No);
}

//! What a real broker cannot be made to answer: an endpoint that answers as Amazon's does, word for word.

use std::time::Duration;

use queue_core::{Client, Declare, Error, ErrorKind, Events, Message, Outcome as Fate, ProducerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

mod support;
use support::{Outcome, connect_to, send};

/// Status and body for an operation and what was sent with it; status 0 closes the connection instead, and [`NEVER`] keeps it
/// without an answer.
type Answer = fn(&str, &str) -> (u16, &'static str);

const NEVER: u16 = 1;

/// Answers each operation with a status and a body until the test ends.
async fn endpoint(answer: Answer) -> Result<String, support::Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("sqs://{}?region=us-east-1&access_key=AKID&secret_key=hunter2", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, answer));
        }
    });
    Ok(url)
}

async fn serve(mut socket: TcpStream, answer: Answer) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let field = |name: &str| {
            let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with(name));
            line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned())
        };
        if body.len() < field("content-length:").and_then(|n| n.parse().ok()).unwrap_or(0) {
            continue;
        }
        let target = field("x-amz-target:").unwrap_or_default();
        let operation = target.trim_start_matches("AmazonSQS.");
        let (status, body) = answer(operation, body);
        if status == 0 {
            // Took the request and went away.
            return Ok(());
        }
        if status == NEVER {
            return std::future::pending().await;
        }
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body.as_bytes()).await?;
        bytes.clear();
    }
}

fn usual(operation: &str) -> (u16, &'static str) {
    match operation {
        "GetQueueUrl" => (200, r#"{"QueueUrl":"http://sqs.us-east-1.amazonaws.com/1/orders"}"#),
        "GetQueueAttributes" => (200, r#"{"Attributes":{"MaximumMessageSize":"1048576"}}"#),
        _ => (200, "{}"),
    }
}

async fn outcomes(answer: Answer, batch: Vec<Message>) -> Result<Vec<Result<(), Error>>, Error> {
    let url = endpoint(answer).await.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    let broker = connect_to(&url, Events::new()).await?;
    let producer = broker.producer(&"orders".parse()?, &ProducerOptions::default()).await?;
    assert_eq!(producer.capabilities().max_message_bytes, 1 << 20);
    Ok(send(&*producer, batch).await)
}

fn facts(outcome: &Result<(), Error>) -> Option<(ErrorKind, Fate, bool)> {
    outcome.as_ref().err().map(|e| (e.kind(), e.outcome(), e.is_retryable()))
}

#[tokio::test]
async fn each_entry_of_a_batch_gets_its_own_verdict() -> Outcome {
    let answer: Answer = |operation, _| match operation {
        "SendMessageBatch" => (
            200,
            r#"{"Successful":[{"Id":"3","MessageId":"m3","MD5OfMessageBody":"eccbc87e4b5ce2fe28308fd9f2a7baf3"},
                {"Id":"0","MessageId":"m0","MD5OfMessageBody":"cfcd208495d565ef66e7dff9f98764da"}],
               "Failed":[{"Id":"2","SenderFault":false,"Code":"InternalError"},
                {"Id":"1","SenderFault":true,"Code":"InvalidMessageContents","Message":"payload quoted here"},
                {"Id":"5","SenderFault":false,"Code":"RequestThrottled"}]}"#,
        ),
        other => usual(other),
    };
    let outcomes = outcomes(answer, (0..6).map(|i| Message::new(i.to_string())).collect()).await?;
    assert!(outcomes[0].is_ok() && outcomes[3].is_ok());
    assert_eq!(facts(&outcomes[1]), Some((ErrorKind::InvalidInput, Fate::Rejected, false)));
    assert_eq!(facts(&outcomes[2]), Some((ErrorKind::Throttled, Fate::NotSent, true)));
    assert_eq!(facts(&outcomes[4]), Some((ErrorKind::Internal, Fate::Unknown, true)));
    assert_eq!(facts(&outcomes[5]), Some((ErrorKind::Throttled, Fate::NotSent, true)));
    assert!(!format!("{outcomes:?}").contains("quoted"));
    Ok(())
}

#[tokio::test]
async fn an_answer_that_never_came_leaves_the_message_unknown() -> Outcome {
    let answer: Answer = |operation, _| if operation == "SendMessageBatch" { (0, "") } else { usual(operation) };
    let outcomes = outcomes(answer, vec![Message::new("x")]).await?;
    assert_eq!(facts(&outcomes[0]), Some((ErrorKind::Connection, Fate::Unknown, true)));
    Ok(())
}

#[tokio::test]
async fn a_server_that_failed_may_have_the_message() -> Outcome {
    let answer: Answer = |operation, _| match operation {
        "SendMessageBatch" => (500, r#"{"__type":"com.amazonaws.sqs#InternalError","message":"oops"}"#),
        other => usual(other),
    };
    let outcomes = outcomes(answer, vec![Message::new("x")]).await?;
    assert_eq!(facts(&outcomes[0]), Some((ErrorKind::Throttled, Fate::Unknown, true)));
    Ok(())
}

/// Verdicts are told together only as long as others come soon.
#[tokio::test]
async fn a_verdict_does_not_wait_for_requests_without_an_answer() -> Outcome {
    let answer: Answer = |operation, body| match operation {
        "SendMessageBatch" if body.contains("fast") => (200, FAST),
        "SendMessageBatch" => (NEVER, ""),
        other => usual(other),
    };
    let url = endpoint(answer).await?;
    let client = Client::connect_with(&format!("{url}&max_sends=2&request_timeout=60s"), &[queue_sqs::DRIVER]).await?;
    let sender = client.sender("orders").await?;
    let fast = timeout(Duration::from_secs(20), sender.send_batch((0..10).map(|_| "fast")));
    // Two requests of these are under way when the first has its answer, and enough wait for many more.
    let slow = sender.send_batch((0..500).map(|_| "slow"));
    tokio::select! {
        biased;
        told = fast => drop(told??),
        told = slow => return Err(format!("nobody answered: {told:?}").into()),
    }
    Ok(())
}

const FAST: &str = concat!(
    r#"{"Failed":[],"Successful":["#,
    r#"{"Id":"0","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"1","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"2","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"3","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"4","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"5","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"6","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"7","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"8","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"},"#,
    r#"{"Id":"9","MessageId":"m","MD5OfMessageBody":"31d4541b8e926a24f0c9b835b68cfdf3"}"#,
    "]}"
);

#[tokio::test]
async fn a_batch_that_is_too_long_goes_in_smaller_ones() -> Outcome {
    static SEEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let answer: Answer = |operation, _| match operation {
        "SendMessageBatch" if SEEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 => {
            (400, r#"{"__type":"com.amazonaws.sqs#BatchRequestTooLong","message":"too long"}"#)
        }
        "SendMessageBatch" => (
            200,
            r#"{"Successful":[{"Id":"0","MessageId":"m","MD5OfMessageBody":"9dd4e461268c8034f5c8564e155c67a6"}],"Failed":[]}"#,
        ),
        other => usual(other),
    };
    let outcomes = outcomes(answer, vec![Message::new("x"), Message::new("x")]).await?;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    Ok(())
}

#[tokio::test]
async fn refused_credentials_are_told_without_secrets() -> Outcome {
    for (code, kind) in [("SignatureDoesNotMatch", Some(ErrorKind::Unauthorized)), ("AccessDenied", None)] {
        let answer: Answer = match code {
            "AccessDenied" => {
                |_, _| (403, r#"{"__type":"com.amazon.coral.service#AccessDenied","message":"AKID may not"}"#)
            }
            _ => {
                |_, _| (403, r#"{"__type":"com.amazon.coral.service#SignatureDoesNotMatch","message":"token hunter2"}"#)
            }
        };
        let outcome = connect_to(&endpoint(answer).await?, Events::new()).await;
        assert_eq!(outcome.as_ref().err().map(Error::kind), kind, "{code}");
        assert!(!format!("{outcome:?}").contains("hunter2"));
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_given_up_in_time() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("sqs://{}?region=us-east-1&access_key=AKID&secret_key=x", listener.local_addr()?);
    let mut endpoint: queue_core::Endpoint = url.parse()?;
    endpoint.connect_timeout = Duration::from_millis(300);
    let began = tokio::time::Instant::now();
    let error = (queue_sqs::DRIVER.connect)(endpoint, Events::new()).await.err().ok_or("it connected")?;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.context("host").is_some() && began.elapsed() < Duration::from_secs(3));
    Ok(())
}

#[tokio::test]
async fn missing_credentials_are_told_as_such() -> Outcome {
    let provider = aws_sdk_sqs::config::Config::builder()
        .behavior_version(aws_sdk_sqs::config::BehaviorVersion::v2026_01_12())
        .region(aws_sdk_sqs::config::Region::new("us-east-1"))
        .endpoint_url("http://127.0.0.1:1")
        .build();
    let broker = queue_sqs::SqsBroker::from_client(aws_sdk_sqs::Client::from_conf(provider));
    let error = queue_core::Broker::ping(&broker).await.err().ok_or("it answered")?;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_failed_entry_of_a_fifo_queue_goes_again_before_all_others_as_the_same() -> Outcome {
    static SENT: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    let answer: Answer = |operation, body| match operation {
        "GetQueueUrl" => (200, r#"{"QueueUrl":"http://sqs.us-east-1.amazonaws.com/1/orders.fifo"}"#),
        "SendMessageBatch" => {
            let mut sent = SENT.lock().expect("nobody panicked");
            sent.push(body.to_owned());
            match sent.len() {
                1 => (200, r#"{"Successful":[],"Failed":[{"Id":"0","SenderFault":false,"Code":"InternalError"}]}"#),
                // The answer is lost.
                2 => (0, ""),
                _ => (
                    200,
                    r#"{"Successful":[{"Id":"0","MessageId":"m","MD5OfMessageBody":"x","SequenceNumber":"7"}],"Failed":[]}"#,
                ),
            }
        }
        other => usual(other),
    };
    let url = endpoint(answer).await?;
    let broker = connect_to(&url, Events::new()).await?;
    let producer = broker.producer(&"orders.fifo".parse()?, &ProducerOptions::default()).await?;
    let big = |text: &str| Message::new(text.repeat(600_000)).key("k");
    let outcomes = send(&*producer, vec![big("a"), big("b")]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let sent = SENT.lock().expect("nobody panicked");
    let id = |body: &str| {
        let (_, rest) = body.split_once(r#""MessageDeduplicationId":""#)?;
        rest.split_once('"').map(|(id, _)| id.to_owned())
    };
    let ids: Vec<_> = sent.iter().map(|b| id(b)).collect();
    assert_eq!(ids.len(), 4);
    assert!(ids[0].is_some() && ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");
    assert!(sent[3].contains("bbb"));
    Ok(())
}

/// What the broker of the tests does not know, and so cannot show.
#[tokio::test]
async fn queues_are_created_with_everything_that_was_asked_for() -> Outcome {
    static MADE: std::sync::Mutex<Vec<serde_json::Value>> = std::sync::Mutex::new(Vec::new());
    let answer: Answer = |operation, body| match operation {
        "GetQueueUrl" if MADE.lock().is_ok_and(|made| made.len() < 2) => {
            (400, r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"none"}"#)
        }
        "GetQueueAttributes" => (200, r#"{"Attributes":{"QueueArn":"arn:aws:sqs:us-east-1:1:grave"}}"#),
        "CreateQueue" => {
            MADE.lock().expect("nobody panicked").push(serde_json::from_str(body).expect("JSON"));
            (200, r#"{"QueueUrl":"http://sqs.us-east-1.amazonaws.com/1/orders"}"#)
        }
        other => usual(other),
    };
    let url = format!("{}&sqs.SqsManagedSseEnabled=true&sqs.tag.team=all", endpoint(answer).await?);
    let client = Client::connect_with(&url, &[queue_sqs::DRIVER]).await?;
    let receiver = client.receiver("orders.fifo").native("KmsMasterKeyId", "alias/key");
    let receiver = receiver.native("KmsDataKeyReusePeriodSeconds", "600").native("MaximumMessageSize", "262144");
    let receiver = receiver.native("DeduplicationScope", "messageGroup");
    let receiver = receiver.native("FifoThroughputLimit", "perMessageGroupId").native("Policy", "{}");
    drop(receiver.native("RedriveAllowPolicy", r#"{"redrivePermission":"denyAll"}"#).await?);
    let made = MADE.lock().expect("nobody panicked").clone();
    let grave = serde_json::json!({
        "QueueName": "orders-dlq.fifo",
        "Attributes": {
            "FifoQueue": "true",
            "ContentBasedDeduplication": "false",
            "MessageRetentionPeriod": "1209600",
            "SqsManagedSseEnabled": "true",
        },
        "tags": {"team": "all"},
    });
    let orders = serde_json::json!({
        "QueueName": "orders.fifo",
        "Attributes": {
            "FifoQueue": "true",
            "ContentBasedDeduplication": "false",
            "KmsMasterKeyId": "alias/key",
            "KmsDataKeyReusePeriodSeconds": "600",
            "MaximumMessageSize": "262144",
            "DeduplicationScope": "messageGroup",
            "FifoThroughputLimit": "perMessageGroupId",
            "Policy": "{}",
            "RedriveAllowPolicy": r#"{"redrivePermission":"denyAll"}"#,
            "RedrivePolicy": r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:1:grave","maxReceiveCount":"15"}"#,
        },
        "tags": {"team": "all"},
    });
    assert_eq!(made, [grave, orders]);
    Ok(())
}

/// The table on the page about SQS says so.
#[tokio::test]
async fn opening_takes_the_requests_that_the_page_names() -> Outcome {
    static SEEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    let answer: Answer = |operation, _| {
        SEEN.lock().expect("nobody panicked").push(operation.to_owned());
        usual(operation)
    };
    let url = endpoint(answer).await?;
    let taken = || {
        let mut seen = std::mem::take(&mut *SEEN.lock().expect("nobody panicked"));
        // Its first poll may have begun.
        seen.retain(|operation| operation != "ReceiveMessage");
        seen
    };
    let connect = async || Client::connect_with(&url, &[queue_sqs::DRIVER]).await;
    let client = connect().await?;
    assert_eq!(taken(), ["ListQueues"]);
    let _sender = client.sender("orders").await?;
    assert_eq!(taken(), ["GetQueueUrl", "GetQueueAttributes"]);
    let _others = connect().await?.sender("orders").declare(Declare::Assume).await?;
    assert_eq!(taken(), ["ListQueues", "GetQueueUrl", "GetQueueAttributes"]);
    let _receiver = connect().await?.receiver("orders").await?;
    assert_eq!(taken(), ["ListQueues", "GetQueueUrl", "GetQueueUrl", "GetQueueUrl", "GetQueueAttributes"]);
    let _others = connect().await?.receiver("orders").declare(Declare::Assume).await?;
    assert_eq!(taken(), ["ListQueues", "GetQueueUrl", "GetQueueUrl", "GetQueueAttributes"]);
    Ok(())
}

#[tokio::test]
async fn an_account_that_is_named_is_the_one_that_is_looked_in() -> Outcome {
    let answer: Answer = |operation, body| match operation {
        "GetQueueUrl" if !body.contains(r#""QueueOwnerAWSAccountId":"123456789012""#) => {
            (400, r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"no such queue"}"#)
        }
        other => usual(other),
    };
    let url = endpoint(answer).await?;
    for (options, address, found) in [
        ("", "arn:aws:sqs:us-east-1:123456789012:orders", true),
        ("&account=123456789012", "orders", true),
        ("", "orders", false),
    ] {
        let broker = connect_to(&format!("{url}{options}"), Events::new()).await?;
        let opened = broker.producer(&address.parse()?, &ProducerOptions::default()).await;
        let expected = if found { None } else { Some(ErrorKind::NotFound) };
        assert_eq!(opened.err().map(|error| error.kind()), expected, "{options} {address}");
    }
    Ok(())
}

//! Questions and answers between pika and this library.

use std::collections::BTreeMap;

use queue_core::{Address, ErrorKind, Message};
use queue_worker::{Payload, Worker};

use crate::common::{PATIENCE, soon, unique};
use crate::{client, python};

/// Answers pika's questions by a worker; pika waits for the answers in its own way.
async fn answer(url: &str, way: &str) {
    let client = client(url).await;
    let name = unique("questions");
    let worker = Worker::new(client.receiver(name.as_str()).await.unwrap());
    let control = worker.control();
    let answering =
        tokio::spawn(worker.serve(|Payload(text): Payload<String>| async move { Payload(text.to_uppercase()) }));
    let answers = python::run("rpc_client.py", &[url, &name, way, "one", "two", "three"]).await;
    assert_eq!(answers, ["ONE", "TWO", "THREE"]);
    control.stop();
    let report = answering.await.unwrap();
    assert!(report.is_clean() && report.counts.processed == 3, "{report:?}");
    client.delete(name.as_str()).await.unwrap();
    client.delete(Address::queue(&name).unwrap().dead_letter()).await.unwrap();
}

pub(crate) async fn a_worker_answers_pika_in_its_exclusive_queue(url: String) {
    answer(&url, "own").await;
}

pub(crate) async fn a_worker_answers_pika_directly(url: String) {
    answer(&url, "direct").await;
}

pub(crate) async fn pika_answers_questions_from_here(url: String) {
    let client = client(&url).await;
    let (questions, answers) = (unique("questions"), unique("answers"));
    let mut receiver = client.receiver(answers.as_str()).discard_dead_letters().await.unwrap();
    let sender = client.sender(questions.as_str()).await.unwrap();
    for text in ["one", "two", "three"] {
        let question = Message::new(text).reply_to(answers.clone()).correlation_id(format!("to {text}"));
        sender.send(question.content_type("text/plain")).await.unwrap();
    }
    python::run("rpc_server.py", &[&url, &questions, "3"]).await;
    let mut got = BTreeMap::new();
    while got.len() < 3 {
        let answer = soon(receiver.receive()).await.unwrap();
        assert_eq!(answer.get_content_type(), Some("text/plain"));
        got.insert(answer.get_correlation_id().unwrap().to_owned(), answer.text().unwrap().to_owned());
        answer.ack();
    }
    let expected = [("to one", "ONE"), ("to two", "TWO"), ("to three", "THREE")];
    assert_eq!(got, expected.map(|(id, text)| (id.to_owned(), text.to_owned())).into());
    receiver.close(PATIENCE).await;
    for name in [questions, answers] {
        client.delete(name.as_str()).await.unwrap();
    }
}

pub(crate) async fn pika_answers_a_request_of_the_client(url: String) {
    let client = client(&url).await;
    let questions = unique("questions");
    client.sender(questions.as_str()).await.unwrap();
    let arguments = [url.as_str(), questions.as_str(), "1"];
    let answering = python::run("rpc_server.py", &arguments);
    let asking = client.request(questions.as_str(), "one").timeout(PATIENCE).into_future();
    let (_, answer) = tokio::join!(answering, asking);
    assert_eq!(answer.unwrap().text(), Some("ONE"));
    client.delete(questions.as_str()).await.unwrap();
    let gone = client.request(questions.as_str(), "two").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Unroutable);
}

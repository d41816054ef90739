//! Questions and answers between pika and this library.

use std::collections::BTreeMap;

use queue_core::{Address, Message};

use crate::common::{PATIENCE, soon, unique};
use crate::{client, python};

/// Answers pika's questions from a receiver; pika waits for them in its own way.
async fn answer(url: &str, way: &str) {
    let client = client(url).await;
    let name = unique("questions");
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let sender = client.sender(name.as_str()).await.unwrap();
    let arguments = [url, &name, way, "one", "two", "three"];
    let asking = python::run("rpc_client.py", &arguments);
    let answering = async {
        for _ in 0..3 {
            let question = soon(receiver.receive()).await.unwrap();
            let address = Address::queue(question.get_reply_to().unwrap()).unwrap();
            let answer = Message::new(question.text().unwrap().to_uppercase()).to(address);
            let correlation_id = question.get_correlation_id().unwrap().to_owned();
            sender.send(answer.correlation_id(correlation_id)).await.unwrap();
            question.ack();
        }
    };
    let (answers, ()) = tokio::join!(asking, answering);
    assert_eq!(answers, ["ONE", "TWO", "THREE"]);
    receiver.close(PATIENCE).await;
    client.delete(name.as_str()).await.unwrap();
    client.delete(Address::queue(&name).unwrap().dead_letter()).await.unwrap();
}

pub(crate) async fn a_receiver_answers_pika_in_its_exclusive_queue(url: String) {
    answer(&url, "own").await;
}

pub(crate) async fn a_receiver_answers_pika_directly(url: String) {
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

//! The loop of the README and a worker beside it under faults: a broker that is killed and comes back, an endpoint that freezes or is cut off.
//!
//! These tests start brokers of their own and do them harm, so plain `cargo test` leaves them out;
//! `scripts/test` runs them (`FAULTS` sets how many faults each sees, 3 by default).

#[cfg(all(feature = "amqp", feature = "kafka", feature = "sqs", feature = "worker"))]
mod support;

/// Tells a run without the features what it leaves out.
#[cfg(not(all(feature = "amqp", feature = "kafka", feature = "sqs")))]
#[test]
#[ignore = "brokers killed, frozen and cut off: needs --features full; run by scripts/test"]
fn faults_of_brokers() {}

#[cfg(all(feature = "amqp", feature = "kafka", feature = "sqs", feature = "worker"))]
mod with_brokers {

    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use anyqueue::worker::{Job, Report, Worker};
    use anyqueue::{Client, Delivery, ErrorKind, Message, Result};
    use parking_lot::Mutex;
    use tokio::time::{Instant, sleep, timeout};

    use super::support::brokers::Brokers;
    use super::support::proxy::Proxy;

    const MESSAGES: usize = 10_000;
    /// Everything is there well before; a test that hangs ends here.
    const PATIENCE: Duration = Duration::from_secs(240);

    fn faults() -> usize {
        std::env::var("FAULTS").ok().and_then(|v| v.parse().ok()).unwrap_or(3)
    }

    /// How often each message was processed.
    #[derive(Default)]
    struct Ledger {
        processed: Mutex<HashMap<String, usize>>,
        sent: AtomicUsize,
        /// By the worker, of those that were processed.
        worked: AtomicUsize,
    }

    impl Ledger {
        async fn work(&self, delivery: &Delivery) -> Result<()> {
            self.note(delivery.text().unwrap_or_default());
            Ok(())
        }

        fn note(&self, name: &str) {
            *self.processed.lock().entry(name.to_owned()).or_default() += 1;
        }
    }

    /// The loop of the README, to the letter but for what `work` writes down.
    async fn receive(client: Client, ledger: Arc<Ledger>) -> Result<()> {
        let mut inbox = client.receiver("orders").await?;
        while let Some(delivery) = inbox.next().await {
            let delivery = delivery?;
            match ledger.work(&delivery).await {
                Ok(()) => delivery.ack(),
                Err(e) if e.is_retryable() => delivery.retry_after(Duration::from_secs(5)),
                Err(e) => delivery.reject(e),
            };
        }
        Ok(())
    }

    /// A worker on the same queue.
    async fn work(client: Client, ledger: Arc<Ledger>) -> Report {
        let worker = Worker::new(client.receiver("orders").await.unwrap()).concurrency(16);
        let serve = worker.serve(move |job: Job| {
            ledger.worked.fetch_add(1, Ordering::Relaxed);
            ledger.note(job.text().unwrap_or_default());
            async {}
        });
        serve.await
    }

    /// Sends every message, those that failed again under a new name; gives the names that were confirmed.
    async fn send(client: Client, ledger: Arc<Ledger>) -> Vec<String> {
        let orders = client.sender("orders").await.unwrap();
        let mut confirmed = Vec::new();
        let mut serial = 0;
        while confirmed.len() < MESSAGES {
            let names: Vec<String> = (0..50).map(|i| format!("m-{}", serial + i)).collect();
            serial += names.len();
            match orders.send_batch(names.iter().map(|n| Message::new(n.clone()))).await {
                Ok(_) => confirmed.extend(names),
                Err(error) => {
                    let failed: Vec<usize> = error.failures().iter().map(|(i, _)| *i).collect();
                    confirmed
                        .extend(names.into_iter().enumerate().filter(|(i, _)| !failed.contains(i)).map(|(_, n)| n));
                }
            }
            ledger.sent.store(confirmed.len(), Ordering::Release);
            // Leaves time for the faults to come in the middle.
            sleep(Duration::from_millis(10)).await;
        }
        confirmed
    }

    /// Runs the loop, harms the broker at even distances, and checks that nothing confirmed is missing.
    async fn survives(url: &str, harm: impl AsyncFn(usize)) {
        let ledger = Arc::new(Ledger::default());
        let client = anyqueue::connect(url).await.unwrap();
        let receiver = tokio::spawn(receive(anyqueue::connect(url).await.unwrap(), ledger.clone()));
        let worker = tokio::spawn(work(anyqueue::connect(url).await.unwrap(), ledger.clone()));
        let sender = tokio::spawn(send(client.clone(), ledger.clone()));
        // RabbitMQ 3.10 can lose a quorum queue that is killed right after it was declared.
        let declared = Instant::now();
        for fault in 0..faults() {
            let due = MESSAGES * (fault + 1) / (faults() + 2);
            let since = Instant::now();
            while ledger.sent.load(Ordering::Acquire) < due || declared.elapsed() < Duration::from_secs(3) {
                assert!(since.elapsed() < PATIENCE, "the sender hangs at {}", ledger.sent.load(Ordering::Acquire));
                sleep(Duration::from_millis(5)).await;
            }
            harm(fault).await;
        }
        let confirmed = timeout(PATIENCE, sender).await.expect("the sender hangs").unwrap();
        let missing = || {
            let processed = ledger.processed.lock();
            confirmed.iter().filter(|name| !processed.contains_key(*name)).cloned().collect::<Vec<_>>()
        };
        let started = Instant::now();
        while !missing().is_empty() {
            if receiver.is_finished() {
                panic!("the receiver gave up: {:?}", receiver.await);
            }
            if worker.is_finished() {
                panic!("the worker gave up: {:?}", worker.await);
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{} confirmed messages never came, such as {:?}",
                missing().len(),
                missing()[0]
            );
            sleep(Duration::from_millis(50)).await;
        }
        let repeats: usize = ledger.processed.lock().values().map(|n| n - 1).sum();
        let worked = ledger.worked.load(Ordering::Relaxed);
        println!("{} confirmed, all processed, {worked} by the worker; {repeats} more than once", confirmed.len());
        assert!(worked > 0, "the worker had nothing to do");
        let dead = client
            .receiver("orders-dlq")
            .discard_dead_letters()
            .await
            .unwrap()
            .receive_batch_within(1, Duration::from_secs(2))
            .await;
        assert!(dead.unwrap().is_empty(), "nothing was rejected, so nothing is a dead letter");
        receiver.abort();
        worker.abort();
        client.close(Duration::from_secs(5)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "kills RabbitMQ; run by scripts/test"]
    async fn rabbitmq_killed_under_load_loses_nothing_confirmed() {
        let brokers = Brokers::start("rabbitmq", 5772);
        survives("amqp://guest:guest@127.0.0.1:5772", async |_| {
            brokers.run("kill");
            brokers.run("start");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "kills Kafka; run by scripts/test"]
    async fn kafka_killed_under_load_loses_nothing_confirmed() {
        let brokers = Brokers::start("kafka", 9192);
        survives("kafka://127.0.0.1:9192", async |_| {
            brokers.run("kill");
            brokers.run("start");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "freezes and cuts off an SQS endpoint; run by scripts/test"]
    async fn sqs_frozen_and_cut_off_under_load_loses_nothing_confirmed() {
        // ElasticMQ keeps its messages in memory, so a kill would prove nothing.
        let brokers = Brokers::start("sqs", 9424);
        let proxy = Proxy::to("127.0.0.1:9424".parse().unwrap()).await;
        let url = format!("sqs://127.0.0.1:{}?region=us-east-1&access_key=test&secret_key=test", proxy.port());
        survives(&url, async |fault| {
            if fault % 2 == 0 {
                brokers.run("freeze");
                sleep(Duration::from_secs(8)).await;
                brokers.run("thaw");
            } else {
                proxy.cut();
                sleep(Duration::from_secs(5)).await;
                proxy.mend();
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_unreachable_broker_is_an_error_that_names_the_host() {
        for url in ["amqp://127.0.0.1:1", "kafka://127.0.0.1:1", "sqs://127.0.0.1:1?region=x&access_key=a&secret_key=b"]
        {
            let started = Instant::now();
            let error =
                anyqueue::connect(&format!("{url}{}connect_timeout=3s", if url.contains('?') { "&" } else { "?" }))
                    .await
                    .expect_err(url);
            assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout), "{url}: {error:?}");
            assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
            assert!(started.elapsed() < Duration::from_secs(6), "{url} took {:?}", started.elapsed());
        }
    }
}

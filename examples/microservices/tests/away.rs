//! The broker is away: at the start, and later. Or a database is.

use std::fs::{self, File};
use std::net::ToSocketAddrs;
use std::thread;
use std::time::{Duration, Instant};

use anyqueue::Source;
use axum::http::StatusCode;
use serde_json::json;
use tokio::time::sleep;

use crate::http::get;
use crate::link::Proxy;
use crate::process::{Running, failed};
use crate::shop::{Folder, SERVICES, Shop, alone, clean, program, until};
use crate::{Outcome, block_on};

/// Longer than the five attempts of a message take, with pauses of about 1, 2, 4 and 8 s between them.
const ATTEMPTS: Duration = Duration::from_secs(20);

/// More than a service takes to end.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn refused(_: &str) -> Outcome {
    let folder = Folder::new()?;
    let urls = [
        "amqp://user:secret@127.0.0.1:1?connect_timeout=2s",
        "kafka://127.0.0.1:1?connect_timeout=2s",
        "sqs://127.0.0.1:1?region=us-east-1&access_key=key&secret_key=secret&connect_timeout=2s",
    ];
    for name in SERVICES {
        for url in urls {
            let (printed, said) = failed(program(&[name], &[("QUEUE_URL", url), ("DATABASE", &folder.file(name))]))?;
            assert!(printed.is_empty() && said.lines().count() == 1 && said.contains("127.0.0.1:1"), "{url}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
    Ok(())
}

/// A service whose queue is deleted ends, for whoever runs it to start it anew.
pub(crate) fn deleted(url: &str) -> Outcome {
    let _alone = alone(url);
    clean(url)?;
    let folder = Folder::new()?;
    let log = folder.file("said.log");
    let mut service = program(&["notifications"], &[("QUEUE_URL", url), ("DATABASE", &folder.file("notifications"))]);
    service.stderr(File::create(&log)?);
    let mut service = Running::start(service)?;
    // From here on it is no failure of its start.
    assert!(service.line()?.starts_with("http://"));
    block_on(async {
        let client = anyqueue::connect(url).await?;
        let source = Source::new("notices".parse()?);
        let consumed = async || Ok(client.stats(&source).await.is_ok_and(|stats| stats.consumers > Some(0)));
        until("it consumes", consumed).await?;
        client.delete("notices").await?;
        client.close(Duration::from_secs(5)).await;
        Ok(())
    })?;
    let deleted = Instant::now();
    let status = loop {
        if let Some(status) = service.child.try_wait()? {
            break status;
        }
        assert!(deleted.elapsed() < PATIENCE, "it goes on without its queue");
        thread::sleep(Duration::from_millis(10));
    };
    let said = fs::read_to_string(log)?;
    assert!(status.code() == Some(1) && said.lines().count() == 1 && said.contains("notices"), "{status}: {said}");
    clean(url)
}

/// A database that fails costs a message no attempt, and the service goes on when it is back.
pub(crate) fn database(url: &str) -> Outcome {
    let shop = Shop::open(url)?;
    block_on(async {
        let mut payments = shop.database("payments").await?;
        // Ends the transaction without the service, as a full disk does.
        let away = "CREATE TRIGGER away BEFORE INSERT ON seen BEGIN SELECT RAISE(ROLLBACK, 'away'); END";
        sqlx::raw_sql(away).execute(&mut payments).await?;
        let asked = json!({ "customer": "ann", "item": "lamp", "amount": 7 });
        let (status, order) = shop.place("ann", &asked).await?;
        assert_eq!(status, StatusCode::CREATED, "{order}");
        sleep(ATTEMPTS).await;
        assert_eq!(shop.count("payments", "payments").await?, 0);
        sqlx::raw_sql("DROP TRIGGER away").execute(&mut payments).await?;
        shop.settled(1).await?;
        shop.is_exact(&order).await
    })?;
    shop.close(1, 0)
}

/// Orders are taken while the broker cannot be reached, and wait in the outbox.
pub(crate) fn cut_off(url: &str) -> Outcome {
    let address = url.split(['@', '/', '?']).find(|part| part.contains("localhost:") || part.contains("127.0.0.1:"));
    let address = address.ok_or("no address")?;
    let upstream = address.to_socket_addrs()?.next().ok_or("no address")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let link = runtime.block_on(Proxy::to(upstream));
    let mut shop = Shop::open(url)?;
    shop.take("orders")?.interrupt()?;
    shop.start_with("orders", &url.replace(address, &format!("127.0.0.1:{}", link.port())))?;
    let orders = shop.address("orders").to_owned();
    let place = async |customer: &str| {
        let order = json!({ "customer": customer, "item": "lamp", "amount": 7 });
        let (status, order) = shop.place(customer, &order).await?;
        assert_eq!(status, StatusCode::CREATED, "{order}");
        Outcome::Ok(order)
    };
    block_on(async {
        let ready = || get(format!("{orders}/health/ready"));
        let mut taken = vec![place("ann").await?];
        shop.settled(1).await?;
        link.cut();
        until("it is not ready", async || Ok(ready().await?.0 == StatusCode::SERVICE_UNAVAILABLE)).await?;
        assert_eq!(get(format!("{orders}/health/live")).await?.0, StatusCode::OK);
        taken.extend([place("bob").await?, place("eve").await?]);
        // Longer than one send is tried.
        until("a send is given up", async || Ok(shop.said("orders")?.contains("the outbox waits"))).await?;
        assert_eq!(shop.count("orders", "outbox").await?, 2);
        link.mend();
        until("it is ready", async || Ok(ready().await?.0 == StatusCode::OK)).await?;
        shop.settled(3).await?;
        for order in &taken {
            shop.is_exact(order).await?;
        }
        Ok(())
    })?;
    shop.close(3, 0)
}

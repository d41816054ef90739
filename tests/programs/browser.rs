//! The page of the web service, in a real browser.

use std::time::Duration;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::Outcome;
use crate::process::{Running, browser};
use crate::web::served;

/// More than all of it takes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn page(urls: &[String]) -> Outcome {
    let mut command = browser()?;
    command.arg("--port=0");
    let driver = Running::start(command)?;
    let port = loop {
        if let Some((_, port)) = driver.line()?.split_once("started successfully on port ") {
            break port.trim_end_matches('.').to_owned();
        }
    };
    served(&urls[0], |at, _| async move {
        // A sandbox needs more rights than containers have, and shared memory.
        let options = json!({ "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });
        let mut wanted = serde_json::Map::<String, Value>::new();
        wanted.insert("goog:chromeOptions".to_owned(), options);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let page = builder.capabilities(wanted).connect(&format!("http://127.0.0.1:{port}")).await?;
        let used = timeout(PATIENCE, used(&page, &at)).await;
        // Also after a failure, or the browser stays.
        let closed = timeout(PATIENCE, page.close()).await;
        used??;
        Ok(closed??)
    })
}

/// As somebody does who sees the page for the first time.
async fn used(page: &Client, at: &str) -> Outcome {
    page.goto(at).await?;
    shows(page, "strong[@id='depth']", "0").await?;
    let text = "grüße <b>& all</b>";
    page.find(Locator::Css("input")).await?.send_keys(text).await?;
    page.find(Locator::XPath("//button[.='Produce']")).await?.click().await?;
    shows(page, "ol/li[1]", &format!("produce: {text}")).await?;
    shows(page, "strong[@id='depth']", "1").await?;
    let consume = page.find(Locator::XPath("//button[.='Consume']")).await?;
    consume.click().await?;
    shows(page, "ol/li[1]", &format!("consume: {text}")).await?;
    shows(page, "strong[@id='depth']", "0").await?;
    consume.click().await?;
    shows(page, "ol/li[1]", "consume: there is none").await?;
    // Without a text nothing is sent: the browser asks for one. What is sent next is the next that is shown.
    let produce = page.find(Locator::XPath("//button[.='Produce']")).await?;
    produce.click().await?;
    page.find(Locator::Css("input")).await?.send_keys("next").await?;
    produce.click().await?;
    shows(page, "ol/li[1]", "produce: next").await?;
    let lines = page.find_all(Locator::Css("li")).await?.len();
    if lines == 4 { Ok(()) } else { Err(format!("{lines} lines").into()) }
}

/// Waits until there is an element with this text.
async fn shows(page: &Client, element: &str, text: &str) -> Outcome {
    let found = page.wait().for_element(Locator::XPath(&format!("//{element}[.='{text}']"))).await;
    found.map(drop).map_err(|error| format!("{element} with '{text}': {error}").into())
}

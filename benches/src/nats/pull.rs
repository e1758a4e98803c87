//! The fastest way to pull: requests on an inbox of one's own, renewed before they are used up.

use std::time::Duration;

use anyhow::{Result, bail};
use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt as _;
use serde::Serialize;

/// Messages a request.
const BATCH: usize = 500;
const EXPIRES: Duration = Duration::from_secs(30);
/// The priority group of postrider's consumers, which pin one client.
pub(super) const GROUP: &str = "postrider";

#[derive(Serialize)]
struct Request<'a> {
    batch: usize,
    expires: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

/// Pulls from one consumer.
pub(super) struct Pull {
    client: Client,
    messages: Subscriber,
    inbox: String,
    next: String,
    pinned: bool,
    pin: Option<String>,
    asked: usize,
}

impl Pull {
    pub(super) async fn open(client: &Client, stream: &str, consumer: &str, pinned: bool) -> Result<Self> {
        let inbox = client.new_inbox();
        Ok(Self {
            messages: client.subscribe(inbox.clone()).await?,
            client: client.clone(),
            inbox,
            next: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            pinned,
            pin: None,
            asked: 0,
        })
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Result<Message> {
        loop {
            // a second request before the pin is known would be another client's
            let most = if self.pinned && self.pin.is_none() { 0 } else { BATCH };
            if self.asked <= most {
                let request = Request {
                    batch: BATCH,
                    expires: EXPIRES.as_nanos() as u64,
                    group: self.pinned.then_some(GROUP),
                    id: self.pin.as_deref(),
                };
                let request = serde_json::to_vec(&request)?.into();
                self.client.publish_with_reply(self.next.clone(), self.inbox.clone(), request).await?;
                self.asked += BATCH;
            }
            let Some(message) = self.messages.next().await else {
                bail!("the connection is closed");
            };
            if let Some(status) = message.status {
                let header =
                    |name| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
                match (status.as_u16(), header("Nats-Pending-Messages")) {
                    (100, _) => {}
                    (404 | 408 | 409, Some(left)) => self.asked -= left.parse::<usize>()?.min(self.asked),
                    (code, _) => bail!("a request was answered with {code} {:?}", message.description),
                }
                continue;
            }
            self.asked = self.asked.saturating_sub(1);
            if self.pinned && self.pin.is_none() {
                let pin = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pin-Id"));
                self.pin = pin.map(|pin| pin.as_str().to_owned());
            }
            return Ok(message);
        }
    }
}

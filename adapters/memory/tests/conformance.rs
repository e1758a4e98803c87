//! The conformance suite on the embedded broker.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use postrider_conformance::{Factory, Settings};
use postrider_core::{BoxFuture, Broker, Bytes, Env, Publisher, PublisherExt, WireReader};
use postrider_memory::{MemoryBroker, MemoryConfig};

/// Two connects with one tenant reach one broker: the embedded broker itself has no address to share it by.
static BROKERS: OnceLock<Mutex<HashMap<String, Broker>>> = OnceLock::new();

struct Memory;

impl Factory for Memory {
    fn adapter(&self) -> &'static str {
        "memory"
    }

    fn has_processes(&self) -> bool {
        false
    }

    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let brokers = BROKERS.get_or_init(Mutex::default);
            let make = || {
                Broker::new(MemoryBroker::with(MemoryConfig::default().max_messages(20_000), Env::system()))
            };
            brokers.lock().unwrap().entry(settings.tenant).or_insert_with(make).clone()
        })
    }

    fn write_foreign<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: Bytes,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // there is no wire here; what an adapter would read off one is read by the same reader
            let broker = self.connect(settings.clone()).await;
            let mut reader = WireReader::new(Some(body));
            for (name, value) in headers {
                match name.strip_prefix("ce-") {
                    _ if *name == "content-type" => reader.content_type(*value),
                    Some(attribute) if reader.attribute(attribute, *value) => {}
                    _ => reader.header(name, *value),
                }
            }
            reader.id_or(|| broker.env().new_id(broker.env().wall_ms()));
            broker.publish(channel, reader.finish()).await.expect("it is confirmed");
        })
    }
}

postrider_conformance::conformance!(Memory);

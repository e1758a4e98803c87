//! Stands in for the API where RabbitMQ isn't compiled in, so that nobody asks for it.

use std::future::{Future, ready};

use postrider::{BrokerUrl, Error, ErrorKind, Inventory, Result};

fn refused<T>() -> Result<T> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "list",
        "RabbitMQ is not compiled in; build with the feature `rabbitmq`",
    ))
}

pub(crate) fn inventory(
    _url: &BrokerUrl,
    _given: Option<&str>,
) -> impl Future<Output = Result<Inventory>> + use<> {
    ready(refused())
}

pub(crate) fn version(
    _url: &BrokerUrl,
    _given: Option<&str>,
) -> impl Future<Output = Result<String>> + use<> {
    ready(refused())
}

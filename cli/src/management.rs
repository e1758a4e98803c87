//! RabbitMQ's management API, which can list what AMQP can't. Plain HTTP only; without the feature `rabbitmq` there is nothing to ask.

#[cfg(feature = "rabbitmq")]
mod api;
#[cfg(not(feature = "rabbitmq"))]
mod missing;

#[cfg(feature = "rabbitmq")]
pub(crate) use api::{inventory, version};
#[cfg(not(feature = "rabbitmq"))]
pub(crate) use missing::{inventory, version};

//! Targets for hostile input: each takes any bytes, makes of them what could come from outside, and holds what the library makes of it
//! against what is promised. They run under libFuzzer by `cargo xtask fuzz`, and over the inputs that are kept by `cargo test`.

#![forbid(unsafe_code)]

mod amqp;
mod copies;
mod envelope;
mod feed;
mod headers;
mod kafka;
mod nats;
mod url;

/// Takes any bytes, and panics where something doesn't hold.
pub type Target = fn(&[u8]);

/// Every target with its name. Inputs for it are kept in `corpus/NAME`.
pub const TARGETS: [(&str, Target); 8] = [
    ("amqp", amqp::target),
    ("copies", copies::target),
    ("envelope", envelope::target),
    ("headers", headers::target),
    ("kafka_mark", kafka::mark_target),
    ("kafka_record", kafka::record_target),
    ("nats", nats::target),
    ("url", url::target),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(other, _)| *other == name).map(|(_, target)| *target)
}

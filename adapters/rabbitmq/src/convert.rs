//! Envelopes as AMQP messages and back: the wire format's column for RabbitMQ.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use postrider_core::{Attribute, Envelope, HeaderValue, Headers, MessageId, WireReader, rfc3339};

use crate::field;

const PREFIX: &str = "cloudEvents:";
/// How others write the attributes' names.
const OTHERS: [&str; 2] = ["cloudEvents_", "ce-"];
const NULL: &str = "postrider-null";
/// Which send a returned message was.
const SEND: &str = "postrider-send";
/// What every copy that waits for its retry carries.
const RETRIED: &str = "postrider-retry-attempts";
/// Where headers go that would act on the broker.
const MOVED: &str = "postrider-orig-";
/// Properties that are no attributes are carried as headers of these names, and become properties again.
const PROPERTY: &str = "amqp-";
const ENCODING: &str = "amqp-content-encoding";
const PRIORITY: &str = "amqp-priority";
const TYPE: &str = "amqp-type";
const APP: &str = "amqp-app-id";
const CONTENT_TYPE: &str = Attribute::ContentType.as_str();
const PERSISTENT: u8 = 2;

/// Whether the broker would act on a header of that name, or take it for its own.
fn acts(name: &str) -> bool {
    matches!(name, "CC" | "BCC" | "x-delivery-count" | "x-acquired-count") || is_death(name)
}

/// Whether the broker writes down under that name how the message died.
fn is_death(name: &str) -> bool {
    name == "x-death" || name.starts_with("x-first-death-") || name.starts_with("x-last-death-")
}

/// A text for a property, whose room is 255 bytes.
fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// The same of two texts, one behind the other. (`concat` takes three times as long for two that are short, and each message has eight.)
fn prefixed(prefix: &str, text: &str) -> Option<ShortString> {
    let mut name = String::with_capacity(prefix.len() + text.len());
    name.push_str(prefix);
    name.push_str(text);
    ShortString::try_new(name).ok()
}

/// The properties of a message; `send` tells it apart when it is returned.
pub(crate) fn properties(envelope: &Envelope, send: u64) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let mut table = FieldTable::default();
    // longer names than AMQP has room for can't have come from AMQP, and no user's are that long
    let mut put = |name: Option<ShortString>, value: AMQPValue| {
        if let Some(name) = name {
            table.insert(name, value);
        }
    };
    put(short(SEND), AMQPValue::LongLongInt(send as i64));
    let mut content_type = None;
    envelope.write_attributes(|attribute, text| {
        if attribute == CONTENT_TYPE
            && let Some(text) = std::str::from_utf8(text).ok().and_then(short)
        {
            content_type = Some(text);
            return;
        }
        put(prefixed(PREFIX, attribute), AMQPValue::LongString(text.into()));
    });
    if let Some(text) = content_type {
        properties = properties.with_content_type(text);
    }
    if envelope.is_null() {
        put(short(NULL), AMQPValue::LongString("1".into()));
    }
    if let Some(id) = short(envelope.id().text(&mut [0; 36])) {
        properties = properties.with_message_id(id);
    }
    if let Some(id) = envelope.correlation_id().and_then(short) {
        properties = properties.with_correlation_id(id);
    }
    if let Some(address) = envelope.reply_to().and_then(short) {
        properties = properties.with_reply_to(address);
    }
    if envelope.time_ms() > 0 {
        properties = properties.with_timestamp(envelope.time_ms() / 1000);
    }
    let headers = envelope.headers();
    let mut many = Many::of(headers);
    for (index, (name, value)) in headers.iter().enumerate() {
        let earlier = many.as_mut().map(|many| !many.written.insert(name));
        let text = if name.starts_with(PROPERTY) { value.as_text().and_then(short) } else { None };
        match (name, text, value) {
            (ENCODING, Some(text), _) => properties = properties.with_content_encoding(text),
            (TYPE, Some(text), _) => properties = properties.with_type(text),
            (APP, Some(text), _) => properties = properties.with_app_id(text),
            (PRIORITY, _, HeaderValue::Int(n @ 0..=255)) => properties = properties.with_priority(n as u8),
            _ => {
                let wire = if acts(name) { prefixed(MOVED, name) } else { short(name) };
                if earlier.unwrap_or_else(|| headers.iter().take(index).any(|(earlier, _)| earlier == name)) {
                    continue; // an AMQP table has each name once: all its values went with the first
                }
                let all = match &mut many {
                    Some(many) => many.values.remove(name).unwrap_or_default(),
                    None if headers.iter().skip(index + 1).any(|(later, _)| later == name) => {
                        headers.get_all(name).collect()
                    }
                    None => Vec::new(),
                };
                if all.len() > 1 {
                    put(wire, field::array(all.into_iter().map(field::value)));
                } else {
                    put(wire, field::value(value));
                }
            }
        }
    }
    properties.with_headers(table)
}

/// So many headers that looking for a name each time would take long.
struct Many<'a> {
    values: HashMap<&'a str, Vec<HeaderValue<'a>>>,
    /// Names that were come to.
    written: HashSet<&'a str>,
}

impl<'a> Many<'a> {
    const FEW: usize = 16;

    fn of(headers: &'a Headers) -> Option<Self> {
        if headers.len() <= Self::FEW {
            return None;
        }
        let mut values: HashMap<_, Vec<_>> = HashMap::new();
        headers.iter().for_each(|(name, value)| values.entry(name).or_default().push(value));
        Some(Self { values, written: HashSet::new() })
    }
}

/// How many bytes the frame of a message's properties has, headers included. It isn't split, as bodies are.
pub(crate) fn frame_len(envelope: &Envelope) -> usize {
    /// Around it 8; class, weight, length of the body and flags; delivery mode, priority and timestamp.
    const FIXED: usize = 8 + 14 + 10;
    let properties = properties(envelope, 0);
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.message_id(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.kind(),
        properties.app_id(),
    ];
    let texts = texts.into_iter().flatten().map(|text| 1 + text.as_str().len());
    let table = properties.headers().clone().unwrap_or_default();
    let mut written = Vec::new();
    field::encode(&AMQPValue::FieldTable(table), &mut written);
    FIXED + texts.sum::<usize>() + written.len()
}

/// Which send a message was that the broker returned.
pub(crate) fn returned(properties: &BasicProperties) -> Option<u64> {
    match properties.headers().as_ref()?.inner().get(SEND) {
        Some(AMQPValue::LongLongInt(send)) => Some(*send as u64),
        _ => None,
    }
}

/// How often the broker has delivered the message, this time included.
pub(crate) fn deliveries(properties: &BasicProperties, redelivered: bool) -> u32 {
    let table = properties.headers().as_ref().map(FieldTable::inner).filter(|table| is_told_of(table));
    let count = |name: &str| {
        let value = table?.get(name)?;
        let mut count = None;
        field::each(value, |value| count = value.as_int());
        count
    };
    // 4.3 counts by the second name; before, and in classic queues, the first or a flag alone
    let before = count("x-acquired-count").max(count("x-delivery-count")).unwrap_or(i64::from(redelivered));
    u32::try_from(before).unwrap_or(0).saturating_add(1)
}

/// The envelope of a message that came; `origin` is the id it gets if it brought none.
pub(crate) fn envelope(
    properties: &BasicProperties,
    body: Bytes,
    origin: impl FnOnce() -> String,
) -> Envelope {
    static EMPTY: BTreeMap<ShortString, AMQPValue> = BTreeMap::new();
    let table = properties.headers().as_ref().map_or(&EMPTY, FieldTable::inner);
    let is = |name: &str| table.get(name).and_then(field::text);
    let null = body.is_empty() && is(NULL).is_some_and(|text| text == "1");
    let death = death(table);
    let waited = death.is_some_and(|death| waited(table, death));
    let mut ours = false;
    let mut reader = WireReader::new((!null).then_some(body));
    for (name, value) in table {
        let name = name.as_str();
        if let Some(attribute) = name.strip_prefix(PREFIX) {
            ours |= attribute == "specversion";
            if is_attribute(&mut reader, attribute, value) {
                continue;
            }
        } else if let Some(attribute) = OTHERS.iter().find_map(|prefix| name.strip_prefix(prefix))
            && is_attribute(&mut reader, attribute, value)
        {
            continue;
        }
        // said by the envelope itself, or by the broker for this delivery alone
        let told = matches!(name, NULL | SEND | "x-delivery-count" | "x-acquired-count");
        if !(told || waited && is_death(name)) {
            field::each(value, |value| reader.header(name, value));
        }
    }
    if let Some(text) = properties.content_type() {
        reader.content_type(text.as_str());
    }
    for (name, text) in [
        (ENCODING, properties.content_encoding()),
        (TYPE, properties.kind()),
        (APP, properties.app_id()),
        ("postrider-orig-user-id", properties.user_id()),
        ("postrider-orig-expiration", properties.expiration()),
    ] {
        if let Some(text) = text {
            reader.header(name, text.as_str());
        }
    }
    if let Some(priority) = properties.priority() {
        reader.header(PRIORITY, i64::from(*priority));
    }
    if !ours {
        for (attribute, text) in
            [("correlationid", properties.correlation_id()), ("replyto", properties.reply_to())]
        {
            if let Some(text) = text {
                reader.attribute(attribute, text.as_str());
            }
        }
    }
    if let Some(death) = death
        && !waited
        && !table.contains_key("postrider-dlq-reason")
    {
        broker_made(death, &mut reader);
    }
    match properties.message_id() {
        Some(id) if !id.as_str().is_empty() => reader.id_or(|| MessageId::parse(id.as_str())),
        _ => reader.made_up_id_or(|| MessageId::Text(origin().into())),
    }
    if let Some(seconds) = properties.timestamp() {
        reader.time_or(seconds.saturating_mul(1000));
    }
    reader.finish()
}

fn is_attribute<'a>(reader: &mut WireReader<'a>, attribute: &str, value: &'a AMQPValue) -> bool {
    field::text(value).is_some_and(|text| reader.attribute(attribute, text))
}

/// Whether the broker may have written something about the message into its headers. Each such name begins with `x-`, and the table is
/// sorted: where the last name is before that, none need be looked for.
fn is_told_of(table: &BTreeMap<ShortString, AMQPValue>) -> bool {
    table.last_key_value().is_some_and(|(last, _)| last.as_str() >= "x-")
}

/// What the broker wrote down last about how the message died.
fn death(table: &BTreeMap<ShortString, AMQPValue>) -> Option<&FieldTable> {
    if !is_told_of(table) {
        return None;
    }
    match table.get("x-death") {
        Some(AMQPValue::FieldArray(deaths)) => match deaths.as_slice().first() {
            Some(AMQPValue::FieldTable(death)) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the message comes from where it waited for its retry: to the broker that is an expired message.
fn waited(table: &BTreeMap<ShortString, AMQPValue>, death: &FieldTable) -> bool {
    let exchange = death.inner().get("exchange").and_then(field::text).unwrap_or_default();
    table.contains_key(RETRIED) && exchange.contains("--retry-")
}

/// A dead letter that the broker itself made says so in its own way; it is put into the words of ours.
fn broker_made(death: &FieldTable, reader: &mut WireReader<'_>) {
    let text = |name: &str| death.inner().get(name).and_then(field::text).unwrap_or_default();
    let reason = match &*text("reason") {
        "delivery_limit" => "crash-loop",
        "expired" => "expired",
        "rejected" => "rejected",
        _ => "exhausted",
    };
    let queue = text("queue");
    // `TENANT~CHANNEL--GROUP--PARTITION`; a queue that isn't ours says only where it was published to
    let own = queue.rsplit_once('~').map_or(&*queue, |(_, own)| own);
    let mut parts = own.split(postrider_core::SEPARATOR);
    let (channel, group) = (parts.next().unwrap_or_default(), parts.next());
    let exchange = text("exchange");
    reader.header("postrider-dlq-reason", reason);
    reader.header("postrider-dlq-error", &*format!("the broker gave it up: {}", text("reason")));
    reader.header("postrider-dlq-channel", if group.is_some() { channel } else { &*exchange });
    if let Some(group) = group {
        reader.header("postrider-dlq-group", group);
    }
    reader.header("postrider-dlq-origin", &*format!("rabbitmq:{queue}"));
    if let Some(AMQPValue::Timestamp(seconds)) = death.inner().get("time") {
        let at = rfc3339(seconds.saturating_mul(1000) as i64);
        reader.header("postrider-dlq-last-failed-at", &*at);
    }
}

#[cfg(test)]
mod tests;

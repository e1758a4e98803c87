//! What is written is read, of every type that a field can have.

use postrider_core::{Attribute, Env};

use super::*;

fn through(envelope: &Envelope) -> Envelope {
    super::envelope(&properties(envelope, 7), envelope.payload().clone(), || "q/1".into())
}

#[test]
fn what_is_written_is_read() {
    postrider_conformance::round_trip(through, |name| !acts(name));
}

#[test]
fn a_foreign_message_says_what_it_can_and_nothing_of_it_acts_again() {
    let mut table = FieldTable::default();
    for (name, value) in [("CC", "elsewhere"), ("cloudEvents_type", "order"), ("ce-subject", "s")] {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    table.insert("cloudEvents:time".into(), AMQPValue::Timestamp(9));
    let foreign = BasicProperties::default()
        .with_headers(table)
        .with_message_id("theirs".into())
        .with_correlation_id("c".into())
        .with_user_id("guest".into())
        .with_expiration("60000".into())
        .with_content_encoding("gzip".into())
        .with_priority(3);
    let read = super::envelope(&foreign, Bytes::from_static(b"x"), || "q/1".into());
    assert_eq!(
        (read.id().to_string().as_str(), read.type_name(), read.subject()),
        ("theirs", "order", Some("s"))
    );
    assert_eq!((read.time_ms(), read.correlation_id()), (9000, Some("c")));
    let again = properties(&read, 8);
    let headers = again.headers().as_ref().unwrap().inner();
    assert!(!headers.contains_key("CC") && headers.contains_key("postrider-orig-CC"));
    assert!(headers.contains_key("postrider-orig-user-id") && again.user_id().is_none());
    assert!(headers.contains_key("postrider-orig-expiration") && again.expiration().is_none());
    assert_eq!(
        (again.content_encoding().as_ref().map(ShortString::as_str), *again.priority()),
        (Some("gzip"), Some(3))
    );
    assert_eq!(returned(&again), Some(8));
}

#[test]
fn a_dead_letter_of_the_broker_is_readable() {
    let mut death = FieldTable::default();
    for (name, value) in
        [("reason", "delivery_limit"), ("queue", "a~orders.eu--g--2"), ("exchange", "a~orders.eu")]
    {
        death.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    death.insert("time".into(), AMQPValue::Timestamp(9));
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    let mut table = FieldTable::default();
    table.insert("x-death".into(), field::array([AMQPValue::FieldTable(death)].into_iter()));
    let read =
        super::envelope(&BasicProperties::default().with_headers(table), Bytes::new(), || "q/1".into());
    let failure = postrider_core::Failure::of(&read);
    assert_eq!(failure.reason, Some(postrider_core::Reason::CrashLoop));
    assert_eq!(failure.channel.as_deref(), Some("orders.eu"));
    assert_eq!(failure.group.as_deref(), Some("g"));
    assert_eq!(failure.last_failed_ms, Some(9000));
    assert_eq!(failure.origin.as_deref(), Some("rabbitmq:a~orders.eu--g--2"));
    assert!(matches!(read.headers().get("x-death"), Some(HeaderValue::Native(b'A', _))));
}

#[test]
fn every_byte_of_the_one_frame_is_counted() {
    let built = || Envelope::builder(Bytes::from_static(b"x")).type_name("t");
    let len = |builder: postrider_core::EnvelopeBuilder| frame_len(&builder.build(&Env::seeded(1)).unwrap());
    let bare = len(built());
    // a header has a length of one byte, its name, a letter, a length of four bytes, its value
    assert_eq!(len(built().header("mine", "value")), bare + 1 + 4 + 1 + 4 + 5);
    // an attribute's header, and the property that says it too
    assert_eq!(len(built().correlation_id("c")), bare + (1 + 25 + 1 + 4 + 1) + (1 + 1));
    let typed = built().attribute(Attribute::ContentType, "a/b");
    assert_eq!(len(typed), bare + 1 + 3);
}

#[test]
fn null_is_not_empty_and_deliveries_are_counted() {
    let null = postrider_core::EnvelopeBuilder::null().build(&Env::seeded(1)).unwrap();
    assert!(through(&null).is_null());
    let empty = Envelope::builder(Bytes::new()).build(&Env::seeded(1)).unwrap();
    assert!(!through(&empty).is_null());
    let mut table = FieldTable::default();
    table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(4));
    let counted = BasicProperties::default().with_headers(table);
    assert_eq!((deliveries(&counted, true), deliveries(&BasicProperties::default(), true)), (5, 2));
}

/// Whatever stands before and behind them in the table.
#[test]
fn what_the_broker_says_is_found_among_all_that_a_message_says() {
    let full = || Envelope::builder(Bytes::new()).type_name("t").key("k").header("a", "1");
    for builder in [full(), full().header("zone", "eu")] {
        let written = properties(&builder.build(&Env::seeded(1)).unwrap(), 7);
        assert_eq!(deliveries(&written, false), 1);
        for name in ["x-delivery-count", "x-acquired-count"] {
            let mut table = written.headers().clone().unwrap();
            table.insert(name.into(), AMQPValue::LongLongInt(4));
            assert_eq!(deliveries(&written.clone().with_headers(table), true), 5, "{name}");
        }
        let mut death = FieldTable::default();
        death.insert("reason".into(), AMQPValue::LongString("expired".into()));
        let mut table = written.headers().clone().unwrap();
        table.insert("x-death".into(), field::array([AMQPValue::FieldTable(death)].into_iter()));
        let dead = written.with_headers(table);
        let read = super::envelope(&dead, Bytes::new(), || "q/1".into());
        assert_eq!(read.headers().get("postrider-dlq-reason"), Some(HeaderValue::Text("expired")));
    }
}

#[test]
fn the_wire_format_s_vectors_hold() {
    use postrider_conformance::vectors::{self, Record};
    let write = |envelope: &Envelope, _: &str| {
        let properties = properties(envelope, 7);
        let header = |(name, value): (&ShortString, &AMQPValue)| {
            let mut bytes = vec![field::letter(value)];
            field::encode(value, &mut bytes);
            (name.as_str().to_owned(), Some(bytes[..].into()))
        };
        let table = properties.headers().clone().unwrap_or_default();
        let headers = table.inner().iter().map(header).collect();
        let texts = [
            ("content-type", properties.content_type()),
            ("message-id", properties.message_id()),
            ("correlation-id", properties.correlation_id()),
            ("reply-to", properties.reply_to()),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?.to_string())));
        let numbers = [
            ("delivery-mode", properties.delivery_mode().map(u64::from)),
            ("timestamp", *properties.timestamp()),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string())));
        let properties = texts.chain(numbers).map(|(name, text)| (name.to_owned(), text)).collect();
        Record { properties, headers, body: Some(envelope.payload()[..].into()), ..Record::default() }
    };
    let read = |record: &Record| {
        let mut table = FieldTable::default();
        for (name, value) in &record.headers {
            let bytes = &value.as_ref().expect("a field has a value").0;
            let (letter, mut rest) = bytes.split_first().expect("a type octet");
            let value = field::decode(*letter, &mut rest, 0).expect("a field value");
            assert!(rest.is_empty(), "{name}");
            table.insert(name.as_str().into(), value);
        }
        let mut properties = BasicProperties::default().with_headers(table);
        for (name, text) in &record.properties {
            let text = || text.as_str().into();
            properties = match name.as_str() {
                "content-type" => properties.with_content_type(text()),
                "message-id" => properties.with_message_id(text()),
                "correlation-id" => properties.with_correlation_id(text()),
                "reply-to" => properties.with_reply_to(text()),
                "timestamp" => properties.with_timestamp(record.properties[name].parse().expect("a number")),
                "delivery-mode" => properties,
                other => panic!("a property that is none: {other}"),
            };
        }
        let body = record.body.as_ref().expect("AMQP has no null bodies");
        super::envelope(&properties, Bytes::copy_from_slice(&body.0), || "orders/7".into())
    };
    vectors::check("rabbitmq", write, read);
}

#[test]
fn many_headers_are_written_as_few_are_and_each_name_is_looked_up_once() {
    let envelope = |names: &dyn Fn(usize) -> String, count: usize| {
        let mut headers = postrider_core::HeadersMut::new();
        for n in 0..count {
            headers.insert_foreign(&names(n), HeaderValue::Int(n as i64));
        }
        Envelope::builder(Bytes::new())
            .build(&postrider_core::Env::seeded(1))
            .unwrap()
            .with_headers(headers.freeze())
    };
    let table = |envelope: &Envelope| properties(envelope, 0).headers().clone().unwrap_or_default();
    // each name twice
    let few = table(&envelope(&|n| format!("h{}", n / 2), 16));
    let many = table(&envelope(&|n| format!("h{}", n / 2), 18));
    assert_eq!(few.inner().get("h7"), many.inner().get("h7"));
    assert!(matches!(many.inner().get("h8"), Some(AMQPValue::FieldArray(_))), "{many:?}");
    let hostile = envelope(&|n| format!("{n}"), 15_000);
    assert!(table(&hostile).inner().contains_key("14999"));
    // the names are grouped first: a look through all headers for each name would be 15,000 times 15,000 comparisons
    assert!(super::Many::of(hostile.headers()).is_some_and(|many| many.values.len() == 15_000));
    assert!(super::Many::of(envelope(&|n| format!("{n}"), 16).headers()).is_none());
}

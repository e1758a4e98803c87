//! What an adapter writes it reads again, whatever stands in an envelope: for the tests of its conversion, without a broker.

use postrider_core::{Attribute, Bytes, Env, Envelope, HeaderValue};
use proptest::prelude::*;

/// Holds any envelope against what comes of it when it is written and read again. `named` says which names of headers are carried as
/// they are.
pub fn round_trip(through: impl Fn(&Envelope) -> Envelope, named: impl Fn(&str) -> bool) {
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    proptest!(|(
        key in prop::option::of(bytes()),
        subject in "\\PC{0,12}",
        name in "[ -~]{1,20}",
        text in "(?s).{0,30}",
        bytes in bytes(),
        number in any::<i64>(),
        flag in any::<bool>(),
    )| {
        prop_assume!(named(&name));
        let mut builder = Envelope::builder(Bytes::from_static(b"x"))
            .type_name("t")
            .version(2)
            .attribute(Attribute::Subject, &*subject);
        if let Some(key) = &key {
            builder = builder.key(key);
        }
        let values = [
            HeaderValue::Text(&text),
            HeaderValue::Bytes(&bytes),
            HeaderValue::Int(number),
            HeaderValue::Bool(flag),
            HeaderValue::Time(number),
            HeaderValue::Null,
        ];
        let expected: Vec<_> =
            values.into_iter().filter(|value| builder.headers_mut().insert(&name, *value).is_ok()).collect();
        let envelope = builder.build(&Env::seeded(1)).unwrap();
        let read = through(&envelope);
        prop_assert_eq!(read.id(), envelope.id());
        prop_assert_eq!(
            (read.type_name(), read.version(), read.time_ms()),
            ("t", 2, envelope.time_ms())
        );
        prop_assert_eq!(read.key(), key.as_deref());
        prop_assert_eq!(read.subject(), Some(&*subject));
        prop_assert_eq!(read.headers().get_all(&name).collect::<Vec<_>>(), expected);
    });
}

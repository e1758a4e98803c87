//! AMQP field values as header values and back. What only AMQP has (floats, decimals, arrays, tables) is carried along in AMQP's
//! own encoding, by the type letters of [RabbitMQ's errata].
//!
//! [RabbitMQ's errata]: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3

use std::borrow::Cow;

use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use postrider_core::HeaderValue;

/// A time with milliseconds, which AMQP has no type for, goes as a table with this one entry.
const MILLISECONDS: &str = "postrider-time-ms";
/// How deep tables and arrays may be nested to be sent again.
const DEPTH: usize = 32;

/// The values of one header of the table: more than one where an array stands for a repeated header.
pub(crate) fn each(value: &AMQPValue, mut give: impl FnMut(HeaderValue<'_>)) {
    if let AMQPValue::FieldArray(array) = value
        && array.as_slice().len() > 1
        && array.as_slice().iter().all(is_plain)
    {
        for value in array.as_slice() {
            one(value, &mut give);
        }
        return;
    }
    one(value, &mut give);
}

/// Whether a value is one that a header can have in any broker.
fn is_plain(value: &AMQPValue) -> bool {
    match value {
        AMQPValue::FieldTable(table) => milliseconds(table).is_some(),
        AMQPValue::FieldArray(_)
        | AMQPValue::Float(_)
        | AMQPValue::Double(_)
        | AMQPValue::DecimalValue(_) => false,
        _ => true,
    }
}

fn milliseconds(table: &FieldTable) -> Option<i64> {
    match table.inner().get(MILLISECONDS) {
        Some(AMQPValue::LongLongInt(ms)) if table.inner().len() == 1 => Some(*ms),
        _ => None,
    }
}

fn one(value: &AMQPValue, give: &mut impl FnMut(HeaderValue<'_>)) {
    let seconds = |s: u64| i64::try_from(s).ok().and_then(|s| s.checked_mul(1000));
    match value {
        AMQPValue::Boolean(b) => give(HeaderValue::Bool(*b)),
        AMQPValue::ShortShortInt(n) => give(HeaderValue::Int((*n).into())),
        AMQPValue::ShortShortUInt(n) => give(HeaderValue::Int((*n).into())),
        AMQPValue::ShortInt(n) => give(HeaderValue::Int((*n).into())),
        AMQPValue::ShortUInt(n) => give(HeaderValue::Int((*n).into())),
        AMQPValue::LongInt(n) => give(HeaderValue::Int((*n).into())),
        AMQPValue::LongUInt(n) => give(HeaderValue::Int((*n).into())),
        AMQPValue::LongLongInt(n) => give(HeaderValue::Int(*n)),
        AMQPValue::ShortString(text) => give(HeaderValue::Text(text.as_str())),
        AMQPValue::LongString(text) => {
            give(
                std::str::from_utf8(text.as_bytes())
                    .map_or(HeaderValue::Bytes(text.as_bytes()), HeaderValue::Text),
            );
        }
        AMQPValue::ByteArray(bytes) => give(HeaderValue::Bytes(bytes.as_slice())),
        AMQPValue::Void => give(HeaderValue::Null),
        AMQPValue::Timestamp(s) if seconds(*s).is_some() => {
            give(HeaderValue::Time(seconds(*s).unwrap_or_default()));
        }
        AMQPValue::FieldTable(table) if milliseconds(table).is_some() => {
            give(HeaderValue::Time(milliseconds(table).unwrap_or_default()));
        }
        other => {
            let mut bytes = Vec::new();
            encode(other, &mut bytes);
            give(HeaderValue::Native(letter(other), &bytes));
        }
    }
}

/// A value for the table.
pub(crate) fn value(value: HeaderValue<'_>) -> AMQPValue {
    match value {
        HeaderValue::Text(text) => AMQPValue::LongString(text.into()),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(bytes.to_vec().into()),
        HeaderValue::Int(n) => AMQPValue::LongLongInt(n),
        HeaderValue::Bool(b) => AMQPValue::Boolean(b),
        HeaderValue::Time(ms) if ms >= 0 && ms % 1000 == 0 => AMQPValue::Timestamp((ms / 1000) as u64),
        HeaderValue::Time(ms) => {
            let mut table = FieldTable::default();
            table.insert(MILLISECONDS.into(), AMQPValue::LongLongInt(ms));
            AMQPValue::FieldTable(table)
        }
        HeaderValue::Native(letter, mut bytes) => {
            let all = bytes;
            decode(letter, &mut bytes, 0)
                .filter(|_| bytes.is_empty())
                // another broker's own value: its bytes are carried
                .unwrap_or_else(|| AMQPValue::ByteArray(all.to_vec().into()))
        }
        _ => AMQPValue::Void,
    }
}

/// The values of a repeated header.
pub(crate) fn array(values: impl Iterator<Item = AMQPValue>) -> AMQPValue {
    let mut array = FieldArray::default();
    values.for_each(|value| array.push(value));
    AMQPValue::FieldArray(array)
}

/// A value as text, for an attribute; `None` where it has no sensible one.
pub(crate) fn text(value: &AMQPValue) -> Option<Cow<'_, str>> {
    if let AMQPValue::LongString(text) = value {
        return std::str::from_utf8(text.as_bytes()).ok().map(Cow::Borrowed);
    }
    if let AMQPValue::ByteArray(bytes) = value {
        // not in hex, as bytes are shown: a key would come back as another
        return std::str::from_utf8(bytes.as_slice()).ok().map(Cow::Borrowed);
    }
    let mut found = None;
    if is_plain(value) && !matches!(value, AMQPValue::Void) {
        one(value, &mut |value| found = Some(Cow::Owned(value.to_string())));
    }
    found
}

pub(crate) fn letter(value: &AMQPValue) -> u8 {
    match value {
        AMQPValue::Boolean(_) => b't',
        AMQPValue::ShortShortInt(_) => b'b',
        AMQPValue::ShortShortUInt(_) => b'B',
        AMQPValue::ShortInt(_) => b's',
        AMQPValue::ShortUInt(_) => b'u',
        AMQPValue::LongInt(_) => b'I',
        AMQPValue::LongUInt(_) => b'i',
        AMQPValue::LongLongInt(_) => b'l',
        AMQPValue::Float(_) => b'f',
        AMQPValue::Double(_) => b'd',
        AMQPValue::DecimalValue(_) => b'D',
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) => b'S',
        AMQPValue::FieldArray(_) => b'A',
        AMQPValue::Timestamp(_) => b'T',
        AMQPValue::FieldTable(_) => b'F',
        AMQPValue::ByteArray(_) => b'x',
        AMQPValue::Void => b'V',
    }
}

pub(crate) fn encode(value: &AMQPValue, out: &mut Vec<u8>) {
    let long = |bytes: &[u8], out: &mut Vec<u8>| {
        out.extend((bytes.len() as u32).to_be_bytes());
        out.extend(bytes);
    };
    match value {
        AMQPValue::Boolean(b) => out.push((*b).into()),
        AMQPValue::ShortShortInt(n) => out.extend(n.to_be_bytes()),
        AMQPValue::ShortShortUInt(n) => out.push(*n),
        AMQPValue::ShortInt(n) => out.extend(n.to_be_bytes()),
        AMQPValue::ShortUInt(n) => out.extend(n.to_be_bytes()),
        AMQPValue::LongInt(n) => out.extend(n.to_be_bytes()),
        AMQPValue::LongUInt(n) => out.extend(n.to_be_bytes()),
        AMQPValue::LongLongInt(n) => out.extend(n.to_be_bytes()),
        AMQPValue::Float(n) => out.extend(n.to_be_bytes()),
        AMQPValue::Double(n) => out.extend(n.to_be_bytes()),
        AMQPValue::DecimalValue(n) => {
            out.push(n.scale);
            out.extend(n.value.to_be_bytes());
        }
        AMQPValue::ShortString(text) => long(text.as_str().as_bytes(), out),
        AMQPValue::LongString(text) => long(text.as_bytes(), out),
        AMQPValue::ByteArray(bytes) => long(bytes.as_slice(), out),
        AMQPValue::Timestamp(s) => out.extend(s.to_be_bytes()),
        AMQPValue::FieldArray(array) => with_length(out, |out| {
            for value in array.as_slice() {
                out.push(letter(value));
                encode(value, out);
            }
        }),
        AMQPValue::FieldTable(table) => with_length(out, |out| {
            for (name, value) in table.inner() {
                // the client holds names to AMQP's 255 bytes
                out.push(name.as_str().len() as u8);
                out.extend(name.as_str().as_bytes());
                out.push(letter(value));
                encode(value, out);
            }
        }),
        AMQPValue::Void => {}
    }
}

/// Four bytes of length, then what `write` writes.
fn with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    write(out);
    let length = ((out.len() - start - 4) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&length);
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(head)
}

fn long<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(*take(from)?) as usize;
    let (head, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(head)
}

pub(crate) fn decode(letter: u8, from: &mut &[u8], depth: usize) -> Option<AMQPValue> {
    Some(match letter {
        b't' => AMQPValue::Boolean(take::<1>(from)?[0] != 0),
        b'b' => AMQPValue::ShortShortInt(i8::from_be_bytes(*take(from)?)),
        b'B' => AMQPValue::ShortShortUInt(take::<1>(from)?[0]),
        b's' => AMQPValue::ShortInt(i16::from_be_bytes(*take(from)?)),
        b'u' => AMQPValue::ShortUInt(u16::from_be_bytes(*take(from)?)),
        b'I' => AMQPValue::LongInt(i32::from_be_bytes(*take(from)?)),
        b'i' => AMQPValue::LongUInt(u32::from_be_bytes(*take(from)?)),
        b'l' => AMQPValue::LongLongInt(i64::from_be_bytes(*take(from)?)),
        b'f' => AMQPValue::Float(f32::from_be_bytes(*take(from)?)),
        b'd' => AMQPValue::Double(f64::from_be_bytes(*take(from)?)),
        b'D' => {
            let scale = take::<1>(from)?[0];
            AMQPValue::DecimalValue(DecimalValue { scale, value: u32::from_be_bytes(*take(from)?) })
        }
        b'S' => AMQPValue::LongString(long(from)?.to_vec().into()),
        b'x' => AMQPValue::ByteArray(long(from)?.to_vec().into()),
        b'T' => AMQPValue::Timestamp(u64::from_be_bytes(*take(from)?)),
        b'A' if depth < DEPTH => {
            let (mut inner, mut array) = (long(from)?, FieldArray::default());
            while !inner.is_empty() {
                let letter = take::<1>(&mut inner)?[0];
                array.push(decode(letter, &mut inner, depth + 1)?);
            }
            AMQPValue::FieldArray(array)
        }
        b'F' if depth < DEPTH => {
            let (mut inner, mut table) = (long(from)?, FieldTable::default());
            while !inner.is_empty() {
                let length = usize::from(take::<1>(&mut inner)?[0]);
                let (name, rest) = inner.split_at_checked(length)?;
                inner = rest;
                let name = ShortString::try_new(std::str::from_utf8(name).ok()?).ok()?;
                let letter = take::<1>(&mut inner)?[0];
                table.insert(name, decode(letter, &mut inner, depth + 1)?);
            }
            AMQPValue::FieldTable(table)
        }
        b'V' => AMQPValue::Void,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            (-1e9_f32..1e9).prop_map(AMQPValue::Float),
            (-1e9_f64..1e9).prop_map(AMQPValue::Double),
            any::<(u8, u32)>()
                .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|b| AMQPValue::LongString(b.into())),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|b| AMQPValue::ByteArray(b.into())),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(|v| array(v.into_iter())),
                prop::collection::btree_map("[a-z]{0,9}", inner, 0..5).prop_map(|map| {
                    let mut table = FieldTable::default();
                    for (name, value) in map {
                        table.insert(name.into(), value);
                    }
                    AMQPValue::FieldTable(table)
                }),
            ]
        })
    }

    /// What a value becomes when it is read and written again.
    fn again(from: &AMQPValue) -> Vec<AMQPValue> {
        let mut out = Vec::new();
        each(from, |header| out.push(value(header)));
        out
    }

    proptest! {
        #[test]
        fn every_field_type_is_carried(from in any_value()) {
            // integers come back wider and non-text strings as bytes; what they say is the same
            let mut said = Vec::new();
            each(&from, |header| said.push(format!("{header:?}")));
            let mut said_again = Vec::new();
            for written in again(&from) {
                each(&written, |header| said_again.push(format!("{header:?}")));
            }
            prop_assert_eq!(said, said_again);
        }

        #[test]
        fn what_only_amqp_has_comes_back_the_same(from in any_value()) {
            let mut bytes = Vec::new();
            encode(&from, &mut bytes);
            let mut rest = &bytes[..];
            prop_assert_eq!(decode(letter(&from), &mut rest, 0), Some(from));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn hostile_bytes_are_no_panic(letter in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = value(HeaderValue::Native(letter, &bytes));
        }
    }

    #[test]
    fn an_array_of_plain_values_is_a_repeated_header_and_times_keep_their_milliseconds() {
        let times = [HeaderValue::Time(1_700_000_000_123), HeaderValue::Time(2000), HeaderValue::Time(-1)];
        let mut read = Vec::new();
        each(&array(times.into_iter().map(value)), |header| read.push(format!("{header:?}")));
        assert_eq!(read, times.map(|time| format!("{time:?}")));
        assert_eq!(value(HeaderValue::Time(2000)), AMQPValue::Timestamp(2));
        assert_eq!(text(&AMQPValue::Timestamp(0)).as_deref(), Some("1970-01-01T00:00:00Z"));
    }
}

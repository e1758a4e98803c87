//! The options of a URL, read into a struct by serde. The struct's fields are the options; an unknown one is an error that
//! names the nearest.

use std::fmt;

use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::nearest;
use crate::error::{Error, Result};

pub(super) fn read<T: DeserializeOwned>(pairs: &[(String, String)]) -> Result<T> {
    T::deserialize(Options(pairs)).map_err(|OptionsError(message)| Error::config("connect", message))
}

/// Why options could not be read.
#[derive(Debug)]
pub struct OptionsError(String);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionsError {}

impl de::Error for OptionsError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct Options<'a>(&'a [(String, String)]);

impl<'de> Deserializer<'de> for Options<'_> {
    type Error = OptionsError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
        let entries = self.0.iter().map(|(name, value)| (name.as_str(), Value { name, value }));
        visitor.visit_map(MapDeserializer::new(entries))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionsError> {
        for (i, (name, _)) in self.0.iter().enumerate() {
            if !fields.contains(&name.as_str()) {
                let near = nearest(name, fields.iter().copied())
                    .map_or(String::new(), |n| format!(" did you mean `{n}`?"));
                let all = fields.iter().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", ");
                return Err(OptionsError(format!(
                    "the URL's option `{name}` is unknown;{near} (known: {all})"
                )));
            }
            if self.0[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(OptionsError(format!("the URL's option `{name}` stands twice")));
            }
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// One value. Errors name the option and what it takes, but not the value: it may be a secret.
struct Value<'a> {
    name: &'a str,
    value: &'a str,
}

impl Value<'_> {
    fn bad(&self, expected: &str) -> OptionsError {
        OptionsError(format!("the URL's option `{}` must be {expected}", self.name))
    }
}

impl IntoDeserializer<'_, OptionsError> for Value<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A whole number, with or without one of the units that people write sizes in.
fn whole_or_size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (digits, bytes) = unit.unwrap_or((text, 1));
    digits.parse::<u64>().ok()?.checked_mul(bytes)
}

macro_rules! numbers {
    ($($method:ident $visit:ident $expected:literal)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
            visitor.$visit(self.value.parse().map_err(|_| self.bad($expected))?)
        }
    )* };
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = OptionsError;

    numbers! {
        deserialize_bool visit_bool "`true` or `false`"
        deserialize_u8 visit_u8 "a whole number from 0 to 255"
        deserialize_u16 visit_u16 "a whole number from 0 to 65535"
        deserialize_u32 visit_u32 "a whole number from 0"
        deserialize_i32 visit_i32 "a whole number"
        deserialize_i64 visit_i64 "a whole number"
        deserialize_f64 visit_f64 "a number"
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
        let expected = "a whole number from 0, or a size such as `64MiB`";
        visitor.visit_u64(whole_or_size(self.value).ok_or_else(|| self.bad(expected))?)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
        visitor.visit_str(self.value)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, OptionsError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionsError> {
        if !variants.contains(&self.value) {
            let all = variants.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(" or ");
            return Err(self.bad(&all));
        }
        visitor.visit_enum(StrDeserializer::<OptionsError>::new(self.value))
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use crate::BrokerUrl;

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Create,
        Check,
    }

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(default)]
    struct Config {
        #[serde(with = "crate::duration::option")]
        connect_timeout: Option<Duration>,
        max_messages: usize,
        verify: bool,
        declare: Mode,
    }

    fn read(query: &str) -> Result<Config, String> {
        BrokerUrl::parse(&format!("memory:?{query}"))
            .unwrap()
            .options()
            .map_err(|e: crate::Error| e.to_string())
    }

    #[test]
    fn options_become_fields() {
        let config = read("connect_timeout=250ms&max_messages=7&verify=true&declare=check").unwrap();
        assert_eq!(
            config,
            Config {
                connect_timeout: Some(Duration::from_millis(250)),
                max_messages: 7,
                verify: true,
                declare: Mode::Check
            }
        );
        assert_eq!(read("").unwrap(), Config::default());
    }

    #[test]
    fn sizes_may_have_units() {
        for (query, expected) in [("512", 512), ("2KiB", 2 << 10), ("64MiB", 64 << 20), ("3GiB", 3 << 30)] {
            assert_eq!(read(&format!("max_messages={query}")).unwrap().max_messages, expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_its_value() {
        for (query, says) in [
            ("max_mesages=1", "did you mean `max_messages`?"),
            ("zzz=1", "known: `connect_timeout`"),
            ("verify=s3cret", "`verify` must be `true` or `false`"),
            ("max_messages=-1", "`max_messages` must be a whole number"),
            ("max_messages=7MB", "a size such as `64MiB`"),
            ("max_messages=99999999999GiB", "`max_messages` must be a whole number"),
            ("declare=make", "`create` or `check`"),
            ("verify=true&verify=true", "stands twice"),
            ("connect_timeout=soon", "a duration"),
        ] {
            let error = read(query).unwrap_err();
            assert!(error.contains(says) && !error.contains("s3cret"), "{query}: {error}");
        }
    }
}

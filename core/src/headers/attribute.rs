//! The attributes that live in the arena, by name and by number.

macro_rules! attributes {
    ($($(#[doc = $doc:expr])+ $name:ident = $number:literal $text:literal,)+) => {
        /// A `CloudEvents` attribute or extension that lives in the arena. (`id` and `time` are fields of the envelope, and so is a
        /// `schemaversion` that is a number; `specversion` is always 1.0.)
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Attribute { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Attribute {
            /// Every attribute, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The `CloudEvents` name, without a broker's prefix.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The attribute of a `CloudEvents` name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$name),)+ _ => None }
            }

            pub(super) fn from_arena(name: &[u8]) -> Option<Self> {
                match name { $([$number] => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

attributes! {
    /// What kind of message it is.
    Type = 1 "type",
    /// Who published it.
    Source = 2 "source",
    /// What it is about, within the source.
    Subject = 3 "subject",
    /// The media type of the body.
    ContentType = 4 "datacontenttype",
    /// Where the schema of the body stands.
    DataSchema = 5 "dataschema",
    /// The unit of order, any bytes.
    Key = 6 "partitionkey",
    /// The publisher's own identity of the business fact.
    IdempotencyKey = 7 "idempotencykey",
    /// What belongs to one conversation.
    CorrelationId = 8 "correlationid",
    /// The id of the message that caused this one.
    CausationId = 9 "causationid",
    /// The publisher's own sequence.
    Sequence = 11 "sequence",
    /// After this time the message is of no use; milliseconds since the Unix epoch.
    ExpiryTime = 12 "expirytime",
    /// Where an answer goes.
    ReplyTo = 14 "replyto",
    /// W3C trace context.
    TraceParent = 15 "traceparent",
    /// W3C trace state.
    TraceState = 16 "tracestate",
    /// A version of the message type that came off the wire and is no number up to 4,294,967,295.
    SchemaVersion = 17 "schemaversion",
}

impl Attribute {
    /// Its bit among [`Contents`](super::arena::Contents).
    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

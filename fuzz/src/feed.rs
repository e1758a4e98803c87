//! Takes bytes apart into the values that a target wants. Bytes that run out give empty values.

use postrider_core::HeaderValue;

/// What is left of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed<'a>(pub(crate) &'a [u8]);

impl<'a> Feed<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }

    /// As many bytes as the first one says; the highest lengths stand for lengths around the bounds.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = match self.byte() {
            255 => 9_000,
            254 => 2_100,
            253 => 300,
            length => usize::from(length),
        };
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn text(&mut self) -> String {
        let bytes = self.bytes();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// One of those known, as often as not; else any text.
    pub(crate) fn one_of(&mut self, known: &[&str]) -> String {
        match self.byte() {
            n if usize::from(n) < known.len() * 4 => known[usize::from(n) % known.len()].to_owned(),
            _ => self.text(),
        }
    }

    pub(crate) fn maybe<T>(&mut self, take: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.byte() % 2 == 1).then(|| take(self))
    }

    /// A header's value, given to `with`. Long ones are made from short input.
    pub(crate) fn value<T>(&mut self, with: impl FnOnce(HeaderValue<'_>) -> T) -> T {
        match self.byte() % 9 {
            0 => with(HeaderValue::Bytes(self.bytes())),
            1 => with(HeaderValue::Int(self.number().cast_signed())),
            2 => with(HeaderValue::Bool(self.byte() % 2 == 1)),
            3 => with(HeaderValue::Time(self.number().cast_signed())),
            4 => with(HeaderValue::Null),
            5 => {
                let kind = self.byte();
                with(HeaderValue::Native(kind, self.bytes()))
            }
            6 => {
                let text = self.text();
                with(HeaderValue::Text(&text.repeat(usize::from(self.byte()))))
            }
            _ => with(HeaderValue::Text(&self.text())),
        }
    }
}

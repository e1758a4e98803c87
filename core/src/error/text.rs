//! Texts of errors that are the user's: a `Display` may fail, panic or never end, a `source` may lead back, a `Drop` may panic.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

use super::{BoxError, MAX_CHAIN};
use crate::message::DecodeError;
use crate::panics::{caught, drop_caught};

/// Stands for the text of an error that has none to give.
const NO_TEXT: &str = "(no text: the error's Display failed)";
/// How much of one error's text is read, in bytes: twice what a dead letter's header keeps.
const MAX_TEXT: usize = 4 * 1024;

/// An error's text and those of its sources. Nothing in it is the user's code.
pub(crate) struct ErrorText {
    text: String,
    source: Option<Box<Self>>,
}

impl ErrorText {
    /// Reads an error and its sources, [`MAX_CHAIN`] in all.
    fn of(error: &(dyn StdError + 'static)) -> Self {
        let texts: Vec<_> = chain(error).map(text_of).collect();
        let mut texts = texts.into_iter().rev();
        // a chain begins with the error itself
        let last = Self { text: texts.next().unwrap_or_default(), source: None };
        texts.fold(last, |source, text| Self { text, source: Some(Box::new(source)) })
    }
}

impl fmt::Display for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for ErrorText {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The same error without any code of the user's, which is dropped here.
pub(crate) fn contained(error: BoxError) -> BoxError {
    // what says which type or version was found is our own, and logged as such
    if error.downcast_ref::<DecodeError>().is_some_and(|error| error.source().is_none()) {
        return error;
    }
    let text = ErrorText::of(&*error);
    drop_caught(error);
    Box::new(text)
}

/// An error and its sources, [`MAX_CHAIN`] in all.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let source = |error: &&'a (dyn StdError + 'static)| {
        let error = *error;
        caught(|| error.source()).ok().flatten()
    };
    std::iter::successors(Some(error), source).take(MAX_CHAIN)
}

/// The text of one error, without its sources.
pub(crate) fn text_of(error: &(dyn StdError + 'static)) -> String {
    let mut written = Bounded::default();
    match caught(|| write!(written, "{error}")) {
        Ok(Ok(())) => written.text,
        _ if written.is_full => written.text,
        _ => NO_TEXT.to_owned(),
    }
}

/// Takes so much text, and no more.
#[derive(Default)]
struct Bounded {
    text: String,
    is_full: bool,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let mut fits = more.len().min(MAX_TEXT - self.text.len());
        while !more.is_char_boundary(fits) {
            fits -= 1;
        }
        self.text.push_str(&more[..fits]);
        self.is_full |= fits < more.len();
        if self.is_full { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum Hostile {
        Fails,
        Panics,
        NeverEnds,
        OwnSource,
        SourcePanics,
        DropPanics,
    }

    impl fmt::Display for Hostile {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Fails => Err(fmt::Error),
                Self::Panics => panic!("no text"),
                Self::NeverEnds => loop {
                    f.write_str("more and ")?;
                },
                other => write!(f, "{other:?}"),
            }
        }
    }

    impl StdError for Hostile {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            match self {
                Self::OwnSource => Some(self),
                Self::SourcePanics => panic!("no source"),
                _ => None,
            }
        }
    }

    impl Drop for Hostile {
        fn drop(&mut self) {
            assert!(!matches!(self, Self::DropPanics), "no drop");
        }
    }

    #[test]
    fn every_error_has_a_text_and_an_end() {
        let read = |error: Hostile| {
            let error = contained(error.into());
            (text_of(&*error), chain(&*error).count())
        };
        assert_eq!(read(Hostile::Fails), (NO_TEXT.into(), 1));
        assert_eq!(read(Hostile::Panics), (NO_TEXT.into(), 1));
        let (text, length) = read(Hostile::NeverEnds);
        assert!(text.starts_with("more and more") && text.len() == MAX_TEXT && length == 1);
        assert_eq!(read(Hostile::OwnSource), ("OwnSource".into(), MAX_CHAIN));
        assert_eq!(read(Hostile::SourcePanics), ("SourcePanics".into(), 1));
        assert_eq!(read(Hostile::DropPanics), ("DropPanics".into(), 1));
    }

    #[test]
    fn sources_keep_their_order() {
        let inner = crate::Error::config("inner", "deepest");
        let outer = crate::Error::config("outer", "topmost").because(inner);
        let contained = contained(outer.into());
        let texts: Vec<_> = chain(&*contained).map(text_of).collect();
        assert_eq!(texts, ["outer: topmost", "inner: deepest"]);
    }
}

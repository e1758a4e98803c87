//! Single values of options: text, numbers, durations, words. Each mistake is reported at the value.

use std::time::Duration;

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Expr, ExprLit, ExprPath, Lit, LitStr};

use crate::errors::{Errors, suggestion};

pub(crate) fn text(value: &Expr, errors: &mut Errors) -> Option<LitStr> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.clone()),
        other => {
            errors.at(other, "expected text in quotes");
            None
        }
    }
}

/// A path in quotes: the name of a crate.
pub(crate) fn path(value: &Expr, errors: &mut Errors) -> Option<TokenStream> {
    match text(value, errors)?.parse::<syn::Path>() {
        Ok(path) => Some(path.into_token_stream()),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// Text that a rule allows.
pub(crate) fn named(
    value: &Expr,
    rule: fn(&str) -> Result<(), String>,
    errors: &mut Errors,
) -> Option<LitStr> {
    let text = text(value, errors)?;
    match rule(&text.value()) {
        Ok(()) => Some(text),
        Err(why) => {
            errors.at(text, why);
            None
        }
    }
}

/// A whole number, at least 1.
pub(crate) fn count(value: &Expr, errors: &mut Errors) -> Option<u64> {
    let Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) = value else {
        errors.at(value, "expected a whole number, without quotes");
        return None;
    };
    match number.base10_parse::<u64>() {
        Ok(0) => {
            errors.at(value, "must be at least 1");
            None
        }
        Ok(number) => Some(number),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// A whole number that a `u32` holds, at least 1.
pub(crate) fn small_count(value: &Expr, errors: &mut Errors) -> Option<u32> {
    let number = u32::try_from(count(value, errors)?);
    if number.is_err() {
        errors.at(value, format!("must be at most {}", u32::MAX));
    }
    number.ok()
}

/// A part of a whole: above 0, up to 1.
pub(crate) fn part(value: &Expr, errors: &mut Errors) -> Option<f64> {
    let number = match value {
        Expr::Lit(ExprLit { lit: Lit::Float(number), .. }) => number.base10_parse::<f64>().ok(),
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse::<f64>().ok(),
        _ => None,
    };
    let number = number.filter(|number| *number > 0.0 && *number <= 1.0);
    if number.is_none() {
        errors.at(value, "expected a part of all calls, above 0 and up to 1: 0.5");
    }
    number
}

pub(crate) fn duration(value: &Expr, errors: &mut Errors) -> Option<Duration> {
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = value else {
        errors.at(value, "expected a duration in quotes, a number with its unit: \"30s\"");
        return None;
    };
    match humantime::parse_duration(&text.value()) {
        Ok(duration) if u64::try_from(duration.as_millis()).is_ok() => Some(duration),
        _ => {
            errors
                .at(text, "not a duration; write a number with its unit: \"250ms\", \"3s\", \"5m\", \"7d\"");
            None
        }
    }
}

/// A duration longer than nothing.
pub(crate) fn positive(value: &Expr, errors: &mut Errors) -> Option<Duration> {
    let duration = duration(value, errors)?;
    if duration.is_zero() {
        errors.at(value, "must be longer than nothing");
        return None;
    }
    Some(duration)
}

/// A bare word out of a few.
pub(crate) fn word<'a>(value: &Expr, known: &[&'a str], errors: &mut Errors) -> Option<&'a str> {
    let Some(word) = as_word(value) else {
        errors.at(value, format!("expected a word, without quotes: {}", known.join(", ")));
        return None;
    };
    let found = known.iter().find(|k| **k == word).copied();
    if found.is_none() {
        errors.at(value, format!("unknown value `{word}`; {}", suggestion(&word, known)));
    }
    found
}

pub(crate) fn as_word(value: &Expr) -> Option<String> {
    match value {
        Expr::Path(ExprPath { path, .. }) => path.get_ident().map(ToString::to_string),
        // `continue` is a keyword, so it parses as an expression of its own
        Expr::Continue(_) => Some("continue".into()),
        _ => None,
    }
}

/// The duration as tokens.
pub(crate) fn duration_tokens(duration: Duration) -> TokenStream {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    quote!(::std::time::Duration::new(#seconds, #nanos))
}

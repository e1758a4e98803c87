//! `retry(…)`: attempts, back-off, jitter, ceiling, and which errors are worth it.

use proc_macro2::TokenStream;
use quote::quote;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Expr, ExprCall, Meta, Token};

use crate::errors::{Errors, suggestion};
use crate::values::{as_word, count, duration, duration_tokens, positive, word};

const KNOWN: [&str; 6] = ["attempts", "backoff", "jitter", "max_elapsed", "durable", "only_if"];

/// The builder calls of `retry(…)`.
pub(crate) fn parse(list: &syn::MetaList, krate: &TokenStream, errors: &mut Errors) -> TokenStream {
    let items = match list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) {
        Ok(items) => items,
        Err(error) => {
            errors.push(error);
            return TokenStream::new();
        }
    };
    let mut calls = quote!(#krate::Retry::new());
    let mut seen: Vec<String> = Vec::new();
    let mut single = false;
    for item in &items {
        let name = item.path().get_ident().map(ToString::to_string).unwrap_or_default();
        if seen.contains(&name) {
            errors.at(item, format!("`{name}` stands twice"));
            continue;
        }
        seen.push(name.clone());
        if name == "durable" {
            match item {
                Meta::Path(_) => calls.extend(quote!(.durable())),
                other => errors.at(other, "`durable` stands alone, without a value"),
            }
            continue;
        }
        let Meta::NameValue(pair) = item else {
            let help = if KNOWN.contains(&&*name) { format!("write `{name} = …`") } else { unknown(&name) };
            errors.at(item, help);
            continue;
        };
        match &*name {
            "attempts" => {
                if let Some(attempts) = count(&pair.value, errors) {
                    if attempts > u64::from(u32::MAX) {
                        errors.at(&pair.value, "more attempts than can be counted");
                    }
                    single = attempts == 1;
                    let attempts = attempts as u32;
                    calls.extend(quote!(.attempts(#attempts)));
                }
            }
            "backoff" => {
                if let Some(backoff) = backoff(&pair.value, krate, errors) {
                    calls.extend(quote!(.backoff(#backoff)));
                }
            }
            "jitter" => {
                let jitter = match word(&pair.value, &["full", "decorrelated", "none"], errors) {
                    Some("full") => quote!(Full),
                    Some("decorrelated") => quote!(Decorrelated),
                    Some(_) => quote!(None),
                    None => continue,
                };
                calls.extend(quote!(.jitter(#krate::Jitter::#jitter)));
            }
            "max_elapsed" => {
                if let Some(ceiling) = positive(&pair.value, errors) {
                    let ceiling = duration_tokens(ceiling);
                    calls.extend(quote!(.max_elapsed(#ceiling)));
                }
            }
            "only_if" => match &pair.value {
                Expr::Path(function) => calls.extend(quote!(.only_if(#function))),
                other => {
                    errors.at(other, "expected the name of a function: `fn(&(dyn Error + 'static)) -> bool`");
                }
            },
            _ => errors.at(&pair.path, unknown(&name)),
        }
    }
    if single && seen.iter().any(|name| name != "attempts") {
        errors.at(list, "with one attempt nothing is retried, so the other settings have no effect; write `retry = never`");
    }
    calls
}

/// Where it says that retries wait at the broker.
pub(crate) fn durable(retry: &Meta) -> Option<Meta> {
    let Meta::List(list) = retry else {
        return None;
    };
    let items = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
    items.into_iter().find(|item| item.path().is_ident("durable"))
}

fn unknown(name: &str) -> String {
    format!("unknown setting `{name}` of `retry`; {}", suggestion(name, &KNOWN))
}

fn backoff(value: &Expr, krate: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    const HELP: &str =
        "expected `exponential(\"200ms\"..\"30s\")`, `fixed(\"1s\")` or `list(\"1s\", \"5s\")`";
    let Expr::Call(ExprCall { func, args, .. }) = value else {
        errors.at(value, HELP);
        return None;
    };
    match (as_word(func).as_deref(), args.len()) {
        (Some("exponential"), 1) => {
            let Expr::Range(range) = &args[0] else {
                errors.at(&args[0], "expected the first wait and the longest: \"200ms\"..\"30s\"");
                return None;
            };
            let (Some(start), Some(end)) = (&range.start, &range.end) else {
                errors.at(range, "expected the first wait and the longest: \"200ms\"..\"30s\"");
                return None;
            };
            let (first, max) = (duration(start, errors)?, duration(end, errors)?);
            if first > max {
                errors.at(range, "the first wait is longer than the longest one");
                return None;
            }
            let (first, max) = (duration_tokens(first), duration_tokens(max));
            Some(quote!(#krate::Backoff::exponential(#first, #max)))
        }
        (Some("fixed"), 1) => {
            let wait = duration_tokens(duration(&args[0], errors)?);
            Some(quote!(#krate::Backoff::Fixed(#wait)))
        }
        (Some("list"), 1..) => {
            let waits: Vec<_> = args.iter().map(|arg| duration(arg, errors).map(duration_tokens)).collect();
            let waits: Vec<_> = waits.into_iter().collect::<Option<_>>()?;
            Some(quote!(#krate::Backoff::List(::std::vec![#(#waits),*])))
        }
        _ => {
            errors.push(syn::Error::new(value.span(), HELP));
            None
        }
    }
}

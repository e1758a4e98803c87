//! `breaker(…)`: when it opens, for how long, and how many probes close it.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::punctuated::Punctuated;
use syn::{Expr, Meta, Token};

use crate::errors::{Errors, suggestion};
use crate::settings;
use crate::values::{duration_tokens, part, positive, small_count, word};

const KNOWN: [&str; 8] =
    ["failure_rate", "window", "min_calls", "consecutive", "slow", "open_for", "probes", "timeout"];

/// `breaker = classical`.
pub(crate) fn preset(value: &Expr, krate: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    word(value, &["classical"], errors).map(|_| quote!(#krate::BreakerPolicy::classical()))
}

/// The builder calls of `breaker(…)`.
pub(crate) fn parse(list: &syn::MetaList, krate: &TokenStream, errors: &mut Errors) -> TokenStream {
    let mut calls = quote!(#krate::BreakerPolicy::new());
    // three settings of one builder call; what isn't said has the builder's default
    let (mut rate, mut window, mut min_calls) = (None, None, None);
    for (name, item) in settings::of("breaker", list, &KNOWN, errors) {
        if let (Meta::List(slow), "slow") = (&item, &*name) {
            calls.extend(self::slow(slow, errors));
            continue;
        }
        let Meta::NameValue(pair) = &item else {
            errors.at(&item, format!("write `{name} = …`"));
            continue;
        };
        match &*name {
            "failure_rate" => rate = part(&pair.value, errors),
            "window" => window = positive(&pair.value, errors).map(duration_tokens),
            "min_calls" => min_calls = small_count(&pair.value, errors),
            "consecutive" => {
                let n = small_count(&pair.value, errors);
                calls.extend(n.map(|n| quote!(.consecutive_failures(#n))));
            }
            "open_for" => {
                let time = positive(&pair.value, errors).map(duration_tokens);
                calls.extend(time.map(|time| quote!(.open_for(#time))));
            }
            "probes" => {
                let n = small_count(&pair.value, errors);
                calls.extend(n.map(|n| quote!(.probes(#n))));
            }
            "timeout" => {
                let limit = positive(&pair.value, errors).map(duration_tokens);
                calls.extend(limit.map(|limit| quote!(.timeout(#limit))));
            }
            _ => errors.at(&item, "write `slow(limit = \"1s\", rate = 0.8)`"),
        }
    }
    if rate.is_some() || window.is_some() || min_calls.is_some() {
        let rate = rate.map_or_else(|| quote!(0.5), |rate| rate.to_token_stream());
        let window = window.unwrap_or_else(|| quote!(::std::time::Duration::from_secs(10)));
        let min_calls = min_calls.unwrap_or(20);
        calls.extend(quote!(.failure_rate(#rate, #window, #min_calls)));
    }
    calls
}

fn slow(list: &syn::MetaList, errors: &mut Errors) -> Option<TokenStream> {
    let items = match list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) {
        Ok(items) => items,
        Err(error) => {
            errors.push(error);
            return None;
        }
    };
    let (mut limit, mut rate) = (None, None);
    for item in &items {
        match item {
            Meta::NameValue(pair) if pair.path.is_ident("limit") => {
                limit = Some(duration_tokens(positive(&pair.value, errors)?));
            }
            Meta::NameValue(pair) if pair.path.is_ident("rate") => rate = Some(part(&pair.value, errors)?),
            other => {
                let name = other.path().to_token_stream().to_string();
                let help = suggestion(&name, &["limit", "rate"]);
                errors.at(other, format!("unknown setting `{name}` of `slow`; {help}"));
                return None;
            }
        }
    }
    let (Some(limit), Some(rate)) = (limit, rate) else {
        errors.at(list, "write `slow(limit = \"1s\", rate = 0.8)`");
        return None;
    };
    Some(quote!(.slow_calls(#limit, #rate)))
}

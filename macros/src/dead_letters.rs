//! `dead_letter_for(…)`: other channels for what is given up on for one reason.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Expr, Ident, LitStr, Meta};

use crate::errors::Errors;
use crate::values::named;
use crate::{names, settings};

/// The reasons, as `Reason::as_str` has them, with `_` for `-`.
const REASONS: [&str; 9] = [
    "rejected",
    "exhausted",
    "undecodable",
    "unknown_type",
    "unknown_version",
    "expired",
    "oversize",
    "crash_loop",
    "no_identity",
];

const NONE_FOR_ONE_REASON: &str = "in quotes it is a channel called `none`, and a single reason can't be without dead letters; name another channel (for one of that name, `RouteOptions::dead_letter_for`)";

/// The name of a dead-letter channel. One in quotes that was meant to say that there is none is refused: `why`.
pub(crate) fn channel(value: &Expr, why: &str, errors: &mut Errors) -> Option<LitStr> {
    let channel = named(value, names::channel, errors)?;
    if channel.value().eq_ignore_ascii_case("none") {
        errors.at(value, why);
        return None;
    }
    Some(channel)
}

/// The builder calls of `dead_letter_for(undecodable = "orders.broken", …)`.
pub(crate) fn parse(list: &syn::MetaList, krate: &TokenStream, errors: &mut Errors) -> TokenStream {
    let mut calls = TokenStream::new();
    for (name, item) in settings::of("dead_letter_for", list, &REASONS, errors) {
        let Meta::NameValue(pair) = &item else {
            errors.at(&item, format!("write `{name} = \"…\"`"));
            continue;
        };
        if let Some(channel) = channel(&pair.value, NONE_FOR_ONE_REASON, errors) {
            let camel: String = name.split('_').map(|part| part[..1].to_uppercase() + &part[1..]).collect();
            let reason = Ident::new(&camel, proc_macro2::Span::call_site());
            calls.extend(quote!(.dead_letter_for(#krate::Reason::#reason, #channel)));
        }
    }
    calls
}

//! `rate(…)`: how many messages may begin in a time.

use proc_macro2::TokenStream;
use quote::quote;
use syn::Meta;

use crate::errors::Errors;
use crate::settings;
use crate::values::{duration_tokens, positive, small_count};

const KNOWN: [&str; 3] = ["limit", "per", "burst"];

/// The builder calls of `rate(…)`.
pub(crate) fn parse(list: &syn::MetaList, krate: &TokenStream, errors: &mut Errors) -> TokenStream {
    let (mut limit, mut per, mut burst) = (None, None, TokenStream::new());
    let mut said = Vec::new();
    for (name, item) in settings::of("rate", list, &KNOWN, errors) {
        said.push(name.clone());
        let Meta::NameValue(pair) = &item else {
            errors.at(&item, format!("write `{name} = …`"));
            continue;
        };
        match &*name {
            "limit" => limit = small_count(&pair.value, errors),
            "per" => per = positive(&pair.value, errors).map(duration_tokens),
            _ => burst.extend(small_count(&pair.value, errors).map(|n| quote!(.burst(#n)))),
        }
    }
    for needed in ["limit", "per"] {
        if !said.iter().any(|name| name == needed) {
            errors.at(list, format!("`rate` needs `{needed}`: `rate(limit = 100, per = \"1s\")`"));
        }
    }
    match (limit, per) {
        (Some(limit), Some(per)) => quote!(#krate::RatePolicy::new(#limit, #per) #burst),
        // reported above
        _ => TokenStream::new(),
    }
}
